// What every page needs: the data, elements, numbers as text. Text from data enters the page as text nodes only.

const data = JSON.parse(document.getElementById("data").textContent);
const ARRAYS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

// The inverse of report/packing.py: {type, data} to a typed array.
function unpack(packed) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return new ARRAYS[packed.type](bytes.buffer);
}

// An element with attributes (functions become listeners, null is left out) and children, which are nodes or text.
function make(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (name, attributes, ...children) => make(null, name, attributes, children);
const svg = (name, attributes, ...children) => make(SVG, name, attributes, children);

const count = (value) => value.toLocaleString("en");
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;
const plural = (value, one, more = `${one}s`) => `${count(value)} ${value === 1 ? one : more}`;
function short(value, digits = 3) {
  const size = Math.abs(value);
  if (Number.isInteger(value)) return count(value);
  if (size >= 1000) return count(Math.round(value));
  if (size >= 0.001) return String(Number(value.toPrecision(digits)));
  return value.toExponential(1);
}

// A token as a reader can see it: its spaces and line ends are shown where it has nothing else.
function readable(text) {
  const trimmed = text.trim();
  return trimmed || text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(empty)";
}

function announce(text) {
  byId("live").textContent = text;
}

// A photo, whose box takes its shape, or a tile in its place.
function picture(src, name) {
  if (!src) return el("span", { class: "gone" }, `${name}: the photo is gone`);
  const image = el("img", { src, alt: "", draggable: "false", load: () => {
    if (image.parentNode) image.parentNode.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
  } });
  return image;
}

// A word in a narrow cell: a long one may be broken in its middle.
const breakable = (word) => (/^[\p{L}\p{M}']{6,}$/u.test(word) ? `${word.slice(0, Math.ceil(word.length / 2))}\u00ad${word.slice(Math.ceil(word.length / 2))}` : word);

// Dark to bright, also for eyes that see no red or no green; strength is 0 to 1.
const RAMP = [[59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];
function heatColour(strength) {
  const clamped = Math.min(Math.max(strength, 0), 1), at = clamped * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  const [red, green, blue] = RAMP[low].map((from, channel) => Math.round(from + (RAMP[low + 1][channel] - from) * (at - low)));
  return `rgb(${red} ${green} ${blue} / ${clamped > 0 ? (0.45 + 0.4 * clamped).toFixed(2) : 0})`;
}

// Words with their scores as bars; `chosen` hears of a word that is pressed.
function bars(entries, highest, chosen) {
  return el("ul", { class: "bars" }, ...entries.map(({ word, score }) => {
    const fill = el("span", { class: "fill" });
    fill.style.width = `${Math.max(2, (100 * score) / (highest || 1))}%`;
    const name = chosen ? el("button", { type: "button", class: "link", click: () => chosen(word) }, word) : el("span", null, word);
    return el("li", null, name, el("span", { class: "rail", "aria-hidden": "true" }, fill), el("output", null, score.toFixed(2)));
  }));
}

// name: the table's accessible name, for screen readers.
function table(name, heads, rows) {
  const cell = (kind, value, place) => {
    const given = value !== null && typeof value === "object" && !(value instanceof Node) ? value : { text: value };
    const attributes = { class: given.number ? "number" : given.wide ? "wide" : null };
    if (kind === "th") attributes.scope = place === 0 ? "row" : "col";
    else attributes["data-head"] = heads[place]?.text ?? heads[place];
    return el(kind, attributes, given.text ?? "", given.note ? el("small", null, given.note) : null);
  };
  const head = el("tr", null, ...heads.map((value) => cell("th", value, 1)));
  const body = rows.map((row) => el("tr", null, ...row.map((value, place) => cell(place ? "td" : "th", value, place))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    el("table", null, el("thead", null, head), el("tbody", null, ...body)));
}

// Buttons of which one is chosen: arrows go from one to the next, as in any group of radio buttons.
function choices(group, options, start, chosen) {
  const buttons = options.map(({ name, content, title }, place) => el("button", {
    type: "button", role: "radio", "aria-checked": "false", tabindex: "-1", title: title ?? null, "aria-label": content ? name : null,
    click: () => choose(place),
  }, content ?? name));
  function choose(place, focus = false) {
    buttons.forEach((button, other) => {
      button.setAttribute("aria-checked", String(other === place));
      button.tabIndex = other === place ? 0 : -1;
    });
    if (focus) buttons[place].focus();
    chosen(place);
  }
  group.setAttribute("role", "radiogroup");
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const place = buttons.indexOf(document.activeElement);
    if (!step || place < 0) return;
    event.preventDefault();
    choose((place + step + buttons.length) % buttons.length, true);
  });
  group.append(...buttons);
  choose(start);
  return choose;
}
