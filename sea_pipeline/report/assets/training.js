// Texts, metrics, curves and recipes of runs.

const METRICS = {
  "lm_loss": "nats per trained token: lower is better",
  "lm_loss_other": "… with another photo's visual tokens",
  "right_photo_gain": "nats per token that the right photo is worth, ± its standard error: 0 of a model that does not look",
  "lm_loss_content": "nats per token of content words: lower is better",
  "right_photo_gain_content": "what the right photo is worth to these: higher is better",
  "trained_tokens": "tokens that are scored",
  "label_hit@1": "share of visual tokens whose nearest word is their patch's best label: higher is better",
  "label_hit@10": "… or any of its labels",
  "tacs": "cosine of the ten best visual tokens to the caption's content words",
  "gap": "distance to the nearest word: lower is nearer",
  "meaningful": "share whose nearest LLM token is a word close to a label of the patch: higher is better",
  "meaningful_chance": "… of another photo's patch: what chance gives",
  "distinct_tokens": "different nearest LLM tokens: few mean a collapse",
};
const CURVES = {
  loss: "the whole loss", loss_lm: "L_lm, nats per trained token", loss_sea: "L_a, SEA's Eq. 9", loss_das: "L_das, BASIC's Eq. 6", loss_sds: "L_sds, BASIC's Eq. 7",
  grad_norm: "length of the gradient", learning_rate: "of the first group of parameters", sea_pairs: "pairs of patch and word in a step",
  sea_weight: "λ of L_a", sea_scale: "1 / τ of L_a",
};

function textsPage(runs) {
  const said = (text) => (text === undefined ? { text: "" } : { text: text.trim() || "(nothing)", wide: true });
  const rows = Object.entries(runs.photos).map(([name, { picture: number, answer }]) => {
    const told = runs.list.map((run) => [run.name, run.views?.images[name]?.generated]).filter(([, generated]) => generated);
    return told.length ? el("div", { class: "story" }, el("span", { class: "frame" }, picture(runs.pictures[number], name)),
      el("div", null, el("h2", null, name), el("p", { class: "lead" }, `The data says: ${answer}`),
        table(`Texts of ${name}`, ["run", "from visual tokens", "from their nearest tokens", "control: another photo's"],
          told.map(([run, { visual, replaced, control }]) => [run, said(visual), said(replaced), said(control)])))) : null;
  }).filter(Boolean);
  const shares = runs.list.filter(({ views }) => views?.replace).map(({ name, views: { replace } }) => [name,
    ...["visual", "visual_control", "replaced", "replaced_control"].map((key) => ({ text: key in replace ? percent(replace[key]) : "", number: true }))]);
  const prompt = runs.list.find(({ views }) => views?.replace)?.views.replace.prompt;
  if (!rows.length) return byId("stories").append(el("p", { class: "notice" }, "No run has generated texts."));
  byId("stories").append(el("p", null, "Asked: ", el("q", null, prompt)),
    el("h2", null, "How often a text holds a word of the photo's own answer"),
    table("Shares of texts", ["run", { text: "visual tokens", number: true }, { text: "other photos", number: true }, { text: "nearest tokens", number: true }, { text: "other photos", number: true }], shares), ...rows);
}

function metricsPage(runs) {
  const found = new Set(runs.list.flatMap(({ summary }) => Object.keys({ ...summary.start, ...summary.end })));
  const keys = [...Object.keys(METRICS).filter((key) => found.has(key)), ...[...found].filter((key) => !(key in METRICS || key.endsWith("_se")))];
  const said = (key, values) => (values?.[key] === undefined ? "–" : ["distinct_tokens", "trained_tokens"].includes(key) ? count(values[key])
    : values[key].toFixed(3) + (`${key}_se` in values ? ` ± ${values[`${key}_se`].toFixed(3)}` : ""));
  byId("final").append(table("Metrics", ["metric", ...runs.list.map(({ name, summary }) => ({ text: name, number: true, note: `start → ${plural(summary.steps, "step")}` }))],
    keys.map((key) => [{ text: el("code", null, key), note: METRICS[key] }, ...runs.list.map(({ summary }) => ({ text: el("b", null, said(key, summary.end)), note: `from ${said(key, summary.start)}`, number: true }))])));
  const names = [...new Set(runs.list.flatMap(({ curves: logged }) => Object.keys(logged)))];
  const order = [...Object.keys(CURVES), ...Object.keys(METRICS).map((key) => `eval_${key}`)];
  const rank = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  for (const name of names.filter((each) => !/runtime|per_second|_se$/.test(each)).sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))) {
    const series = runs.list.map((run, place) => ({ name: run.name, place, ...run.curves[name] })).filter(({ steps }) => steps);
    byId("curves").append(curves(name, CURVES[name] ?? METRICS[name.replace(/^eval_/, "")] ?? "", series));
  }
}

function recipesPage(runs) {
  const box = byId("trained");
  if (runs.list.length > 1) {
    box.append(el("h2", null, "What differs"), runs.differences.length
      ? table("What differs", ["key", ...runs.list.map(({ name }) => name)], runs.differences.map(({ key, values }) => [el("code", null, key), ...values.map((text) => ({ text, wide: true }))]))
      : el("p", { class: "lead" }, "The recipes are the same."));
  }
  for (const run of runs.list) {
    const versions = Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", ");
    box.append(el("h2", null, run.name), fieldTable(`Fields of ${run.name}`, [["fingerprint", run.fingerprint], ["folder", run.path], ["steps", run.summary.steps], ["seconds", run.summary.seconds], ["made with", versions], ...Object.entries(run.fields)]),
      el("details", null, el("summary", null, "The recipe"), el("pre", { tabindex: "0" }, run.recipe)));
  }
}
