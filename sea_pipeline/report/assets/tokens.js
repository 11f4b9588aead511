// Visual tokens of runs, side by side: words before and after training, LLM tokens through the layers, attention.

const MODES = {
  before: { of: "before", name: "Before training", meaning: "Before: the word nearest to each visual token with the model that the run began with." },
  after: { of: "after", name: "After training", meaning: "After: the word nearest to each visual token with the trained model (SEA, Figure 1)." },
  layers: { of: "layers", name: "Through the layers", meaning: "Layers: the LLM token nearest to each visual token as it passes through the LLM; layer 0 is the projector's output, before the LLM (BASIC, Figures 2, 7, 8). A hit here is a whole word that is close in meaning to a label of the patch." },
  attention: { of: "degree", name: "Attention", meaning: "Attention: how much the text looks at each patch in the LLM's first layers (half of them by default), the degree a of BASIC's Eq. 5. The brightest weigh 3 times an equal share or more." },
};
const BRIGHT = 3;

class TokenView {
  constructor(run, name) {
    this.run = run;
    this.views = run.views;
    this.image = run.views?.images[name];
    if (!this.image) return;
    [this.rows, this.columns] = this.image.grid ?? run.views.grid;
    this.size = this.rows * this.columns;
    for (const moment of ["before", "after"]) {
      if (this.image[moment]) this[moment] = { nearest: unpack(this.image[moment].nearest), cosine: unpack(this.image[moment].cosine) };
    }
    this.layers = this.image.layers ? unpack(this.image.layers) : null;
    this.degree = this.image.degree ? unpack(this.image.degree) : null;
    this.depth = this.layers ? this.layers.length / this.size - 1 : 0;
  }

  // The centre of a patch in the photo, by which views of other grids and other parts of it find theirs.
  spot(patch) {
    const [x0, y0, x1, y1] = this.image.box;
    return [x0 + ((patch % this.columns + 0.5) / this.columns) * (x1 - x0), y0 + ((Math.floor(patch / this.columns) + 0.5) / this.rows) * (y1 - y0)];
  }

  // The patch at a spot, null if the run does not see it. Of a centre on the edge of finer patches it is the later one.
  at([x, y]) {
    const [x0, y0, x1, y1] = this.image.box;
    const row = Math.floor(((y - y0) / (y1 - y0)) * this.rows + 1e-6), column = Math.floor(((x - x0) / (x1 - x0)) * this.columns + 1e-6);
    return row >= 0 && row < this.rows && column >= 0 && column < this.columns ? row * this.columns + column : null;
  }

  where(patch) { return `row ${Math.floor(patch / this.columns) + 1}, column ${(patch % this.columns) + 1}`; }

  text(id) { return readable(this.views.texts[id]); }

  labels(patch) { return this.image.labels?.[patch] ?? null; }

  kind(moment, patch) {
    const own = this.labels(patch);
    if (!own?.length) return "none";
    return own.includes(this[moment].nearest[patch]) ? "hit" : "miss";
  }

  describing(layer, patch) { return this.image.describing ? (this.image.describing[layer][patch] === "1" ? "hit" : "miss") : "none"; }

  hits(moment) {
    if (!this[moment] || !this.image.labels) return null;
    const kinds = Array.from({ length: this.size }, (_, patch) => this.kind(moment, patch));
    return { hits: kinds.filter((kind) => kind === "hit").length, of: kinds.filter((kind) => kind !== "none").length };
  }

  can(mode) { return MODES[mode].of in this.image; }

  // One line on what a panel shows.
  caption(mode, layer) {
    const share = ({ hits, of }) => `${hits} of ${of} hit (${percent(hits / Math.max(1, of))})`;
    if (mode === "attention") return `${plural(this.degree.filter((each) => each * this.size >= BRIGHT).length, "patch", "patches")} of ${BRIGHT} times the share`;
    if (mode === "layers") {
      if (!this.image.describing) return `layer ${Math.min(layer, this.depth)} of ${this.depth}`;
      const row = this.image.describing[Math.min(layer, this.depth)];
      return `layer ${Math.min(layer, this.depth)}: ${percent([...row].filter((each) => each === "1").length / this.size)} meaningful`;
    }
    const found = this.hits(mode);
    if (!found) return new Set(this[mode].nearest).size + " different tokens";
    return share(found);
  }

  cell(mode, layer, patch) {
    if (mode === "attention") {
      const shares = this.degree[patch] * this.size;
      return { strength: shares / BRIGHT, label: `${shares.toFixed(2)} times its share` };
    }
    if (mode === "layers") {
      const at = Math.min(layer, this.depth), text = this.text(this.layers[at * this.size + patch]), kind = this.describing(at, patch);
      return { text, kind, label: kind === "none" ? text : `${text}, ${kind === "hit" ? "meaningful" : "not meaningful"}` };
    }
    const text = this.text(this[mode].nearest[patch]), kind = this.kind(mode, patch);
    return { text, kind, label: `${text}, ${kind === "none" ? "no label" : kind}` };
  }

  // Of one patch, for the side: words before and after, the way through the layers, attention.
  details(patch, layer) {
    const said = (moment) => (this[moment] ? `${this.text(this[moment].nearest[patch])} (${this[moment].cosine[patch].toFixed(2)}${this.kind(moment, patch) === "hit" ? ", hit ✓" : ""})` : null);
    const list = el("dl", null);
    const row = (name, text) => text !== null && list.append(el("dt", null, name), el("dd", null, text));
    row("before", said("before"));
    row("after", said("after"));
    if (this.layers) {
      const at = Math.min(layer, this.depth);
      row(`at layer ${at}`, this.text(this.layers[at * this.size + patch]));
    }
    if (this.degree) row("attention", `${(this.degree[patch] * this.size).toFixed(2)} × its share`);
    return list;
  }
}

function tokensPage(runs) {
  const names = Object.keys(runs.photos), side = byId("patch"), panels = byId("panels");
  const missing = runs.list.filter(({ views }) => !views);
  if (!names.length) {
    panels.parentNode.hidden = true;
    byId("page-tokens").append(el("p", { class: "notice" }, `No views of these runs: ${missing.map(({ name, note }) => `${name}: ${note || "none were asked for"}`).join("; ")}`));
    return;
  }
  const seen = runs.list.filter(({ views }) => views && !views.held_out).map(({ name }) => name);
  if (seen.length) byId("panels").parentNode.before(el("p", { class: "notice" }, `Photos that were trained on, as the recipe holds none out: ${seen.join(", ")}.`));
  const state = { image: names[0], mode: "after", layer: 0, spot: null, hidden: new Set() };
  let views = [], drawn = [];

  function chosen(spot) {
    state.spot = spot;
    for (const { view, grid } of drawn) grid.choose(view.at(spot));
    const patches = views.map((view) => ({ view, patch: view.at(spot) })), seeing = patches.filter(({ patch }) => patch !== null);
    const places = new Set(seeing.map(({ view, patch }) => view.where(patch)));
    const labelled = seeing.find(({ view, patch }) => view.labels(patch));
    const words = labelled?.view.labels(labelled.patch).map((id) => labelled.view.views.texts[id]) ?? [];
    side.replaceChildren(
      el("h3", null, places.size === 1 ? `Patch in ${[...places][0]}` : "A place in the photo"),
      labelled ? el("p", null, words.length ? `Its labels: ${words.join(", ")}` : "It has no label.") : "",
      ...patches.flatMap(({ view, patch }) => [el("h3", null, view.run.name + (patch === null || places.size === 1 ? "" : `: ${view.where(patch)}`)),
        patch === null ? el("p", null, "It does not see this place.") : view.details(patch, state.layer)]));
  }

  function repaint() {
    for (const { view, mode, grid, caption } of drawn) {
      grid.paint(mode === "attention" ? "heat" : "worded", (patch) => view.cell(mode, state.layer, patch));
      caption.textContent = view.caption(mode, state.layer);
    }
    if (state.spot) chosen(state.spot);
  }

  function panel(run, mode, title) {
    const caption = el("span"), head = el("header", null, el("h2", null, title), caption);
    const view = views.find((each) => each.run === run);
    if (!view?.can(mode)) {
      const why = view?.views.notes?.[MODES[mode].of] ?? run.note;
      return el("div", { class: "panel" }, head, el("p", { class: "notice" }, why || "This run did not look at this photo."));
    }
    const grid = new PatchGrid({ rows: view.rows, columns: view.columns, src: runs.pictures[view.image.picture], name: state.image, label: `${title}: ${state.image}`, chosen: (patch) => chosen(view.spot(patch)) });
    drawn.push({ view, mode, grid, caption });
    const start = mode === "before" && run.start ? el("p", { class: "found" }, `It began with ${run.start}: what was learnt before is in there.`) : null;
    return el("div", { class: "panel" }, head, grid.node, start);
  }

  // A panel a run; a single run shows before and after beside each other.
  function rebuild() {
    const shown = runs.list.filter(({ name }) => !state.hidden.has(name));
    views = shown.map((run) => new TokenView(run, state.image)).filter(({ image }) => image);
    drawn = [];
    const pair = shown.length === 1 && state.mode === "after" && views[0]?.can("before");
    panels.replaceChildren(...(pair
      ? ["before", "after"].map((mode) => panel(shown[0], mode, `${shown[0].name}, ${mode}`))
      : shown.map((run) => panel(run, state.mode, run.name))));
    byId("meaning").textContent = MODES[state.mode].meaning;
    side.replaceChildren(el("h3", null, "Point at a patch"), el("p", null, "or reach it by tab and arrow keys. The same place is marked in every grid."));
    repaint();
  }

  const looked = runs.list.flatMap(({ views: each }) => Object.values(each?.images ?? {}));
  const modes = Object.keys(MODES).filter((mode) => looked.some((image) => MODES[mode].of in image));
  const depth = Math.max(0, ...runs.list.map((run) => run.views?.summary?.at(-1).layer ?? 0));
  const reading = el("output", { for: "layer" }, "0");
  const slider = el("input", { type: "range", id: "layer", min: "0", max: String(depth), value: "0", step: "1", input: () => {
    state.layer = Number(slider.value);
    reading.textContent = slider.value;
    slider.setAttribute("aria-valuetext", `layer ${slider.value} of ${depth}`);
    if (state.mode === "layers") repaint();
  } });
  const layers = el("div", { hidden: true }, el("label", { for: "layer" }, "Layer of the LLM ", reading, ` of ${depth}`), slider);
  const modeButtons = el("fieldset", { "aria-label": "What to show" }, el("legend", null, "Show"));
  const runButtons = el("fieldset", null, el("legend", null, "Runs"), ...runs.list.map(({ name }) => el("button", { type: "button", "aria-pressed": "true", click: (event) => {
    if (state.hidden.has(name)) state.hidden.delete(name);
    else if (state.hidden.size + 1 < runs.list.length) state.hidden.add(name);
    event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    rebuild();
  } }, name)));
  byId("tools").append(modeButtons, ...(runs.list.length > 1 ? [runButtons] : []), layers);
  let ready = false;
  choices(modeButtons, modes.map((mode) => ({ name: MODES[mode].name })),
    Math.max(0, modes.indexOf("after")), (place) => { state.mode = modes[place]; layers.hidden = state.mode !== "layers"; if (ready) rebuild(); });
  choices(byId("strip"), names.map((name) => ({ name, title: name, content: el("span", { class: "frame" }, picture(runs.pictures[runs.photos[name].picture], name)) })), 0,
    (place) => { state.image = names[place]; state.spot = null; if (ready) rebuild(); });
  ready = true;
  rebuild();

  const series = (key) => runs.list.map((run, place) => ({ name: run.name, place, steps: (run.views?.summary ?? []).filter((each) => key in each).map(({ layer }) => layer), values: (run.views?.summary ?? []).filter((each) => key in each).map((each) => each[key]) })).filter(({ steps }) => steps.length);
  for (const [key, title, note] of [["meaningful", "Meaningful tokens by layer", "share whose nearest LLM token is a word close to a label of the patch"],
    ["distinct_tokens", "Different tokens by layer", "few of them: the visual tokens have collapsed"], ["special", "Special tokens by layer", "share nearest to an end of text and the like, BASIC's finding for deep layers"]]) {
    if (series(key).length) byId("depth").append(curves(title, note, series(key), "layer"));
  }
  const lens = (key) => runs.list.map((run, place) => ({ name: run.name, place, steps: (run.views?.lens ?? []).filter((each) => key in each).map(({ layer }) => layer), values: (run.views?.lens ?? []).filter((each) => key in each).map((each) => each[key]) })).filter(({ steps }) => steps.length);
  for (const [key, title, note] of [["word_share", "Nearest word by layer", "share whose nearest input embedding is of a word of the photo's captions"],
    ["contextual_share", "Nearest word in context by layer", "the same with words as the LLM reads them in sentences (LatentLens)"],
    ["word_gain", "Nearest word, over another photo's captions", "0: says nothing of this photo"],
    ["contextual_gain", "Nearest word in context, over another photo's captions", "0: says nothing of this photo"]]) {
    if (lens(key).length) byId("depth").append(curves(title, note, lens(key), "layer"));
  }
}
