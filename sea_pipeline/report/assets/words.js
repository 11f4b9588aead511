// The words of the labels: where each lands, the box that finds one, Figure 6, settings and quarantine.

// The score of a mark: 1 and up are hundredths from 0, and 0 is no word.
const hundredths = (mark) => (mark - 1) / 100;

class Labels {
  constructor(given) {
    Object.assign(this, given);
    this.ids = unpack(given.word_ids);
    this.marks = unpack(given.scores);
    [this.rows, this.columns] = given.grid;
    this.patches = this.rows * this.columns;
    this.size = this.patches * this.kept;
    this.which = this.kept < given.settings.top_n ? plural(this.kept, "best word") : "words";
    this.places = new Map(given.words.map((word, place) => [word, place]));
    this.uses = new Uint32Array(given.words.length);
    for (const id of this.ids) if (id !== 65535) this.uses[id]++;
  }

  // The words of a patch, best first.
  patch(photo, patch) {
    const start = photo * this.size + patch * this.kept;
    const found = [];
    for (let place = start; place < start + this.kept; place++) {
      if (this.ids[place] !== 65535) found.push({ word: this.words[this.ids[place]], score: hundredths(this.marks[place]) });
    }
    return found;
  }

  // Mark of a word at each patch of a photo, 0 where it is none of its words.
  map(photo, word) {
    const id = this.places.get(word), marks = new Uint8Array(this.patches), start = photo * this.size;
    for (let place = 0; place < this.size; place++) {
      if (this.ids[start + place] === id) marks[Math.floor(place / this.kept)] = this.marks[start + place];
    }
    return marks;
  }

  // The lowest and highest mark of a word anywhere, between which its heat maps go from dark to bright.
  range(word) {
    const id = this.places.get(word);
    let [low, high] = [255, 0];
    for (let place = 0; place < this.ids.length; place++) {
      if (this.ids[place] === id) { low = Math.min(low, this.marks[place]); high = Math.max(high, this.marks[place]); }
    }
    return (mark) => (mark ? 0.12 + 0.88 * (high > low ? (mark - low) / (high - low) : 1) : 0);
  }

  // Photos with a word: {photo, strength, patches}, the highest sum of scores first; of equal ones as in the gallery.
  search(word) {
    const id = this.places.get(word), found = [];
    for (let photo = 0; photo < this.photos.length; photo++) {
      let strength = 0, patches = 0;
      for (let place = photo * this.size, end = place + this.size; place < end; place++) {
        if (this.ids[place] === id) { strength += hundredths(this.marks[place]); patches++; }
      }
      if (patches) found.push({ photo, strength, patches });
    }
    return found.sort((a, b) => b.strength - a.strength || a.photo - b.photo);
  }

  // The word that is a text but for case.
  same(text) {
    const wanted = text.toLowerCase();
    return this.places.has(text) ? text : this.words.find((word) => word.toLowerCase() === wanted);
  }

  // Words that begin with a text, then words that hold it; the most used first.
  like(text, most = 10) {
    const wanted = text.toLowerCase(), found = [];
    this.words.forEach((word, place) => {
      const at = word.toLowerCase().indexOf(wanted);
      if (at >= 0) found.push({ word, uses: this.uses[place], rank: word.toLowerCase() === wanted ? 0 : at === 0 ? 1 : 2 });
    });
    return found.sort((a, b) => a.rank - b.rank || b.uses - a.uses).slice(0, most);
  }
}

// The box with its list of words; `search` hears of the one that is taken, and of "" when there is none any more.
function wordBox(labels, search) {
  const input = byId("word"), list = byId("suggestions");
  input.placeholder = labels.like("", 3).map(({ word }) => word).join(", ");
  let at = -1;
  const options = () => [...list.children];
  function show(text) {
    list.replaceChildren(...labels.like(text).map(({ word, uses }, place) => el("li",
      { role: "option", id: `suggestion-${place}`, "aria-selected": "false", "data-word": word, pointerdown: (event) => { event.preventDefault(); take(word); } },
      el("span", null, word), el("small", null, `${count(uses)} ×`))));
    open(list.children.length > 0);
  }
  function open(shown) {
    list.hidden = !shown;
    input.setAttribute("aria-expanded", String(shown));
    mark(-1);
  }
  function mark(place) {
    at = place;
    options().forEach((option, other) => option.setAttribute("aria-selected", String(other === place)));
    if (place < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `suggestion-${place}`);
  }
  function take(word) {
    input.value = word;
    open(false);
    search(word);
  }
  input.addEventListener("input", () => (input.value.trim() ? show(input.value.trim()) : take("")));
  input.addEventListener("blur", () => open(false));
  input.addEventListener("keydown", (event) => {
    const total = options().length;
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && total) {
      event.preventDefault();
      if (list.hidden) return open(true);
      mark((at + (event.key === "ArrowDown" ? 1 : -1) + total + (at < 0 && event.key === "ArrowUp" ? 1 : 0)) % total);
    } else if (event.key === "Enter") {
      const text = input.value.trim(), word = at >= 0 ? options()[at].dataset.word : labels.same(text);
      if (word || !text) take(word ?? "");
      else search(text);
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (list.hidden) take("");
      else open(false);
    }
  });
  return (word) => take(word);
}

function fact(value, text) {
  return el("div", null, el("b", null, value), el("span", null, text));
}

function wordsPage(labels, search) {
  const stats = labels.statistics, patches = Math.max(1, stats.patches);
  byId("facts").append(
    fact(count(stats.images), `images${labels.settings.crops ? " and crops" : ""} of ${labels.rows} × ${labels.columns} patches`),
    fact((stats.labels / patches).toFixed(1), "words a patch, of at most " + labels.settings.top_n),
    fact(percent(stats.labelled_patches / patches, 1), "of patches have a word"),
    fact(percent(stats.share_used, 1), `of ${count(stats.words)} words in use (the paper: 61.2 %)`),
    fact(percent(stats.share_below_zero, 1), "of words below 0 on average (the paper: 32.7 %)"));
  byId("histograms").append(
    histogram("Scores of the labels", "Figure 6a: every word of every patch, by its score", stats.score_histogram),
    histogram("Mean similarity of each word", "Figure 6b: every word of the list, over all patches; left of the dashed line below 0", stats.mean_histogram));
  byId("frequent").append(table("Most frequent words", ["word", { text: "labels", number: true }, { text: "best word of", number: true }],
    stats.most_frequent.map((each) => [
      labels.places.has(each.word) ? el("button", { type: "button", class: "link", click: () => search(each.word) }, each.word) : each.word,
      { text: count(each.labels), number: true }, { text: plural(each.best, "patch", "patches"), number: true }])));
}

function leaves(tree, prefix = "") {
  return Object.entries(tree).flatMap(([key, value]) => value !== null && typeof value === "object" && !Array.isArray(value)
    ? leaves(value, `${prefix}${key}.`) : [[`${prefix}${key}`, value]]);
}
const fieldTable = (name, rows) => table(name, ["setting", "value"], rows.map(([key, value]) =>
  [key, { text: el("code", null, typeof value === "string" ? value : JSON.stringify(value)), wide: true }]));

function settingsPage(labels) {
  byId("fields").append(fieldTable("Settings", [["fingerprint", labels.fingerprint], ["folder", labels.path], ["images from", labels.image_root], ...leaves(labels.settings)]));
  const bad = labels.quarantine;
  byId("quarantine").append(el("h2", null, "Quarantine"), el("p", { class: "lead" }, labels.bad
    ? `${plural(labels.bad, "image")} could not be used${labels.bad > bad.length ? `; the first ${bad.length} of them` : ""}.`
    : "Every image could be read and labelled."));
  if (bad.length) byId("quarantine").append(table("Quarantine", ["image", "stage", "reason"], bad.map((each) => [each.id, each.stage, { text: each.reason, wide: true }])));
}
