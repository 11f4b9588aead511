// The gallery, and the photo that is looked at.

function gallery(labels, openPhoto) {
  const list = byId("gallery"), found = byId("found");
  const arrived = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
    if (isIntersecting) fill(tiles[Number(target.dataset.photo)]);
  }), { rootMargin: "400px" });
  let word = "", strength = null;
  const tiles = labels.photos.map(({ id, src }, photo) => {
    const frame = el("span", { class: "frame" });
    const note = el("span", { class: "name" }, id);
    const node = el("li", { "data-photo": photo }, el("button", { type: "button", class: "tile", "aria-label": id, click: () => openPhoto(photo, word) }, frame, note));
    arrived.observe(node);
    return { photo, id, src, frame, note, node, filled: false };
  });

  // A tile gets its picture, and its heat map, when it comes into view.
  function fill(tile) {
    if (!tile.filled) tile.frame.prepend(picture(tile.src, tile.id));
    tile.filled = true;
    if (tile.word === word) return;
    tile.word = word;
    tile.frame.querySelector("canvas")?.remove();
    if (word) tile.frame.append(heatCanvas(labels, tile.photo, word, strength));
  }

  function show(shown, said) {
    list.replaceChildren(...shown.map((tile) => tile.node));
    for (const tile of shown) {
      tile.frame.classList.toggle("heated", Boolean(word));
      if (tile.filled) { arrived.unobserve(tile.node); arrived.observe(tile.node); }
    }
    found.replaceChildren(...said);
  }

  // All photos, those whose id holds a text, or those with a word, the strongest first.
  function update(newWord, idPart) {
    word = labels.places.has(newWord) ? newWord : "";
    const fits = (tile) => tile.id.toLowerCase().includes(idPart.toLowerCase());
    if (newWord && !word) return show([], [el("b", null, newWord), ` is not among the ${labels.which} of any patch here${labels.like(newWord, 1).length ? "; the box lists words that contain it" : ""}.`]);
    if (!word) {
      for (const tile of tiles) tile.note.textContent = tile.id;
      const shown = tiles.filter(fits);
      const left = labels.total - labels.photos.length;
      return show(shown, [el("b", null, plural(shown.length, "photo")), idPart ? " with such an id" : left ? ` of ${count(labels.total)} labelled images` : ""]);
    }
    strength = labels.range(word);
    const hits = labels.search(word).filter(({ photo }) => fits(tiles[photo]));
    const patches = hits.reduce((sum, hit) => sum + hit.patches, 0);
    for (const { photo, patches: here } of hits) tiles[photo].note.textContent = `${plural(here, "patch", "patches")} · ${tiles[photo].id}`;
    show(hits.map(({ photo }) => tiles[photo]), [el("b", null, word), ` lands on ${plural(patches, "patch", "patches")} of ${plural(hits.length, "photo")}${labels.which === "words" ? "" : `, among their ${labels.which}`}, the strongest first. Bright patches have the highest scores.`]);
  }
  addEventListener("beforeprint", () => [...list.children].forEach((node) => fill(tiles[Number(node.dataset.photo)])));
  return update;
}

function heatCanvas(labels, photo, word, strength) {
  const canvas = el("canvas", { width: labels.columns, height: labels.rows, "aria-hidden": "true" });
  const pen = canvas.getContext("2d"), marks = labels.map(photo, word);
  marks.forEach((mark, patch) => {
    if (!mark) return;
    pen.fillStyle = heatColour(strength(mark));
    pen.fillRect(patch % labels.columns, Math.floor(patch / labels.columns), 1, 1);
  });
  return canvas;
}

// The dialog with one photo; `search` takes a word to the gallery.
function viewer(labels, search) {
  const dialog = byId("viewer");
  let grid, photo, word, wordsShown = false;
  const side = el("aside", { class: "inspector", "aria-live": "polite", "aria-label": "The chosen patch" });
  function patchChosen(patch) {
    grid.choose(patch);
    const words = labels.patch(photo, patch);
    const place = el("h3", null, `Patch in row ${Math.floor(patch / labels.columns) + 1}, column ${(patch % labels.columns) + 1}`);
    if (!words.length) return side.replaceChildren(place, el("p", null, "No word has a similarity of 0 or more here."));
    side.replaceChildren(place, el("p", null, `Its ${labels.which} and their scores; press one to find it in all photos.`),
      bars(words, Math.max(...words.map(({ score }) => score)), (each) => { dialog.close(); search(each); }));
  }
  function paint() {
    const marks = word ? labels.map(photo, word) : null;
    const strength = word ? labels.range(word) : null;
    grid.paint(word ? "heat" : wordsShown ? "worded" : "", (patch) => {
      const [first] = labels.patch(photo, patch);
      const label = first ? `${first.word} ${first.score.toFixed(2)}` : "no word";
      if (marks) return { strength: strength(marks[patch]), label: marks[patch] ? `${word} ${hundredths(marks[patch]).toFixed(2)}` : label };
      return { text: wordsShown && first ? first.word : "", label };
    });
  }
  function open(which, withWord) {
    photo = which;
    word = withWord;
    const { id, src } = labels.photos[photo];
    grid = new PatchGrid({ rows: labels.rows, columns: labels.columns, src, name: id, label: `Patches of ${id}`, chosen: patchChosen });
    const words = labels.best[photo].map((id) => labels.words[id]);
    const chips = [...new Set([...(word ? [word] : []), ...words])].map((each) => el("button", { type: "button", "aria-pressed": String(each === word), click: (event) => {
      word = word === each ? "" : each;
      for (const chip of event.target.parentNode.children) chip.setAttribute("aria-pressed", String(chip.textContent === word));
      paint();
    } }, each));
    const toggle = el("button", { type: "button", "aria-pressed": String(wordsShown), click: () => {
      wordsShown = !wordsShown;
      toggle.setAttribute("aria-pressed", String(wordsShown));
      if (wordsShown) { word = ""; for (const chip of chips) chip.setAttribute("aria-pressed", "false"); }
      paint();
    } }, "Words in the patches");
    side.replaceChildren(el("h3", null, "Point at a patch"), el("p", null, "or reach it by tab and arrow keys, to see its words."));
    dialog.replaceChildren(
      el("div", { class: "bar" }, el("h2", { id: "viewer-title", title: id }, id),
        el("button", { type: "button", "aria-label": "Photo before", click: () => step(-1) }, "←"),
        el("button", { type: "button", "aria-label": "Next photo", click: () => step(1) }, "→"),
        el("button", { type: "button", "aria-label": "Close", click: () => dialog.close() }, "✕")),
      el("div", { class: "beside" }, el("div", null, grid.node,
        el("div", { class: "chips", role: "group", "aria-label": "Words of this photo, as heat maps" }, ...chips, toggle)), side));
    paint();
    if (!dialog.open) dialog.showModal();
    grid.cells[0].focus({ focusVisible: false });
  }
  const step = (by) => open((photo + by + labels.photos.length) % labels.photos.length, word);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "[" || event.key === "]") step(event.key === "]" ? 1 : -1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  return open;
}
