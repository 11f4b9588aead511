// Histograms and curves as SVG, with one unit of the drawing a pixel at its natural size.

const WIDTH = 480, HEIGHT = 200, LEFT = 44, BOTTOM = 26, TOP = 10, RIGHT = 10;

const figure = (title, note, ...content) => el("figure", null, el("figcaption", null, el("b", null, title), note), ...content);

// About `wanted` round numbers from low to high.
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-6; place++) found.push(Number((place * step).toPrecision(10)));
  return found;
}

// Texts of ticks that tell them apart.
function named(values) {
  const texts = [3, 4, 5, 6].map((digits) => values.map((value) => short(value, digits)));
  return texts.find((each) => new Set(each).size === values.length) ?? texts.at(-1);
}

function axes(low, high, bottom, top, log = false) {
  const across = (value) => LEFT + ((value - low) / (high - low || 1)) * (WIDTH - LEFT - RIGHT);
  const scale = log ? Math.log10 : (value) => value;
  const up = (value) => HEIGHT - BOTTOM - ((scale(value) - scale(bottom)) / (scale(top) - scale(bottom) || 1)) * (HEIGHT - BOTTOM - TOP);
  const lines = svg("g", { "aria-hidden": "true" });
  const upright = log ? [bottom, Math.sqrt(bottom * top), top] : ticks(bottom, top, 4), texts = named(upright);
  for (const [place, value] of upright.entries()) {
    lines.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: up(value), y2: up(value) }),
      svg("text", { x: LEFT - 6, y: up(value) + 4, "text-anchor": "end" }, texts[place]));
  }
  for (const value of ticks(low, high, 6)) {
    lines.append(svg("text", { x: across(value), y: HEIGHT - 8, "text-anchor": "middle" }, short(value)));
  }
  return { across, up, lines };
}

// `counts` of bins of equal width from `start`; bins below zero are marked.
function histogram(title, note, { start, bin_width: width, counts }) {
  let first = counts.findIndex(Boolean), last = counts.findLastIndex(Boolean);
  if (first < 0) return figure(title, note, el("p", null, "nothing to count"));
  [first, last] = [Math.max(0, first - 1), Math.min(counts.length - 1, last + 1)];
  const begin = start + first * width, end = start + (last + 1) * width, total = counts.reduce((sum, each) => sum + each, 0);
  const { across, up, lines } = axes(begin, end, 0, Math.max(...counts));
  const boxes = counts.slice(first, last + 1).map((each, place) => {
    const from = begin + place * width;
    return svg("rect", { class: from + width / 2 < 0 ? "below" : "barred", x: across(from) + 0.5, y: up(each),
      width: Math.max(0.5, across(from + width) - across(from) - 1), height: HEIGHT - BOTTOM - up(each) },
    svg("title", null, `${from.toFixed(2)} to ${(from + width).toFixed(2)}: ${count(each)} (${percent(each / total, 1)})`));
  });
  const zero = begin < 0 && end > 0 ? svg("line", { class: "zero", x1: across(0), x2: across(0), y1: TOP, y2: HEIGHT - BOTTOM }) : null;
  const peak = begin + (counts.indexOf(Math.max(...counts)) - first) * width;
  const label = `${title}: ${count(total)} values, most of them from ${peak.toFixed(2)} to ${(peak + width).toFixed(2)}`;
  return figure(title, note, svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, lines, ...boxes, zero));
}

const DASHES = ["", "7 4", "2 4", "10 3 2 3", "14 5", "4 2"];

// One line a series {name, place, steps, values}; `place` gives its colour and dashes, the same in every chart.
function curves(title, note, series, unit = "step") {
  const all = series.flatMap(({ values }) => values), steps = series.flatMap((each) => each.steps);
  let [bottom, top] = [Math.min(...all), Math.max(...all)];
  const log = bottom > 0 && top / bottom > 50;
  if (!log) { const room = (top - bottom) * 0.06 || Math.abs(top) * 0.1 || 1; [bottom, top] = [bottom >= 0 ? Math.max(0, bottom - room) : bottom - room, top + room]; }
  const [low, high] = [Math.min(...steps), Math.max(...steps)];
  const { across, up, lines } = axes(low, high, bottom, top, log);
  const drawn = series.map(({ place, steps: at, values }) => values.length === 1
    ? svg("circle", { class: `dot s${place % 6}`, cx: across(at[0]), cy: up(values[0]), r: 4 })
    : svg("polyline", { class: `line s${place % 6}`, "stroke-dasharray": DASHES[place % 6],
      points: values.map((value, index) => `${across(at[index]).toFixed(1)},${up(value).toFixed(1)}`).join(" ") }));
  drawn.forEach((line) => line.style.setProperty("fill", line.tagName === "polyline" ? "none" : ""));
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const readings = series.map(() => el("output"));
  const keys = el("div", { class: "keys" }, ...series.map(({ name, place }, index) => el("span", null,
    svg("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" }, svg("line", { class: `line s${place % 6}`, x1: 1, x2: 27, y1: 5, y2: 5, "stroke-dasharray": DASHES[place % 6] })),
    `${name} `, readings[index])));
  const last = () => series.forEach(({ values }, index) => { readings[index].textContent = short(values.at(-1)); });
  const said = series.map(({ name, values }) => `${name} from ${short(values[0])} to ${short(values.at(-1))}`).join("; ");
  const box = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${said}`,
    pointermove: (event) => {
      const bounds = box.getBoundingClientRect();
      const at = low + (((event.clientX - bounds.left) / bounds.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (high - low);
      const near = (each) => each.steps.reduce((best, step, index) => (Math.abs(step - at) < Math.abs(each.steps[best] - at) ? index : best), 0);
      series.forEach((each, index) => { const place = near(each); readings[index].textContent = `${short(each.values[place])} at ${unit} ${each.steps[place]}`; });
      const x = across(Math.min(high, Math.max(low, at)));
      cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
    },
    pointerleave: () => { cursor.setAttribute("visibility", "hidden"); last(); },
  }, lines, ...drawn, cursor);
  last();
  return figure(title, log ? `${note} (logarithmic)` : note, box, keys);
}
