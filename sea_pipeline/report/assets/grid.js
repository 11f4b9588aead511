// A photo under its grid of patches. One patch can be reached by tab, the others from it by arrow keys.

class PatchGrid {
  // rows, columns; src and name of the photo; label says what the grid is; chosen(patch, byKey) hears of patches.
  constructor({ rows, columns, src, name, label, chosen }) {
    this.rows = rows;
    this.columns = columns;
    this.chosen = chosen;
    this.patch = 0;
    this.cells = Array.from({ length: rows * columns }, () => el("div", { class: "cell", role: "gridcell", tabindex: "-1" }));
    const lines = Array.from({ length: rows }, (_, row) =>
      el("div", { class: "row", role: "row" }, ...this.cells.slice(row * columns, (row + 1) * columns)));
    const field = el("div", { class: "cells", role: "grid", "aria-label": label, "aria-rowcount": rows, "aria-colcount": columns }, ...lines);
    field.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
    this.node = el("div", { class: "grid" }, picture(src, name), field);
    this.node.style.aspectRatio = `${columns} / ${rows}`;
    this.node.style.setProperty("--columns", columns);
    field.addEventListener("pointerover", (event) => this.#met(event));
    field.addEventListener("pointerdown", (event) => this.#met(event));
    field.addEventListener("focusin", (event) => this.#met(event));
    field.addEventListener("keydown", (event) => this.#key(event));
    this.cells[0].tabIndex = 0;
  }

  #met(event) {
    const patch = this.cells.indexOf(event.target);
    if (patch >= 0) this.chosen(patch, event.type === "focusin");
  }

  #key(event) {
    const [row, column] = [Math.floor(this.patch / this.columns), this.patch % this.columns];
    const to = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      Home: [row, 0], End: [row, this.columns - 1], PageUp: [0, column], PageDown: [this.rows - 1, column],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const within = (value, size) => Math.min(Math.max(value, 0), size - 1);
    this.cells[within(to[0], this.rows) * this.columns + within(to[1], this.columns)].focus();
  }

  // Marks a patch, here or from another grid of the same photo; null marks none.
  choose(patch) {
    this.cells[this.patch].classList.remove("chosen");
    if (patch === null) return;
    this.cells[this.patch].tabIndex = -1;
    this.patch = patch;
    this.cells[patch].classList.add("chosen");
    this.cells[patch].tabIndex = 0;
  }

  // kind: "", "worded" or "heat", of the whole; cell(patch) gives {text, kind, strength, label}.
  paint(kind, cell) {
    this.node.className = `grid ${kind}`;
    this.cells.forEach((node, patch) => {
      const { text = "", kind: own = "", strength, label } = cell(patch);
      const shown = breakable(text);
      if (node.textContent !== shown) node.textContent = shown;
      node.className = `cell ${own}${patch === this.patch && node.classList.contains("chosen") ? " chosen" : ""}`;
      node.style.background = strength === undefined ? "" : heatColour(strength);
      node.setAttribute("aria-label", `row ${Math.floor(patch / this.columns) + 1}, column ${(patch % this.columns) + 1}: ${label}`);
    });
  }
}
