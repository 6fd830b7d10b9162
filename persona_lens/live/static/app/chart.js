// Projections by turn: a small line chart with a table behind it, drawn without any library.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 340, HEIGHT = 190, LEFT = 44, RIGHT = 8, TOP = 10, BOTTOM = 34;

/**
 * Draw a figure.
 * @param {string} caption What is shown.
 * @param {{name: string, colour: string, hollow?: boolean, values: (number|null)[]}[]} series One value a turn each.
 * @param {{value: number, name: string}[]} thresholds Dashed lines.
 * @returns {HTMLElement}
 */
export function drawChart(caption, series, thresholds = []) {
  const figure = document.createElement("figure");
  const words = document.createElement("figcaption");
  words.textContent = caption;
  figure.append(words, drawLines(caption, series, thresholds), writeTable(series, thresholds));
  return figure;
}

function drawLines(caption, series, thresholds) {
  const turns = Math.max(...series.map((one) => one.values.length));
  const known = [...series.flatMap((one) => one.values), ...thresholds.map((one) => one.value)]
    .filter((value) => value !== null);
  const ticks = chooseTicks(Math.min(...known), Math.max(...known));
  const low = ticks[0], high = ticks[ticks.length - 1];
  const x = (turn) => LEFT + 14 + (WIDTH - LEFT - RIGHT - 28) * (turns === 1 ? 0.5 : turn / (turns - 1));
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.setAttribute("aria-label", `${caption} The numbers are in the table below.`);
  for (const tick of ticks) {
    svg.append(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), stroke: "#e2e2e2" }));
    svg.append(write(format(tick), LEFT - 5, y(tick) + 3.5, "end"));
  }
  const every = Math.ceil(turns / 10);
  for (let turn = 0; turn < turns; turn += every) svg.append(write(String(turn + 1), x(turn), HEIGHT - BOTTOM + 15, "middle"));
  svg.append(write("turn", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle"));
  for (const { value, name } of thresholds) {
    svg.append(make("line", {
      x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), stroke: "#555", "stroke-dasharray": "5 4",
    }));
    svg.append(write(name, WIDTH - RIGHT, y(value) - 3, "end"));
  }
  for (const { colour, hollow, values } of series) {
    const points = values.map((value, turn) => (value === null ? null : [x(turn), y(value)])).filter(Boolean);
    svg.append(make("polyline", {
      points: points.map((one) => one.join(",")).join(" "), fill: "none", stroke: colour, "stroke-width": 1.5,
    }));
    for (const [cx, cy] of points) {
      svg.append(hollow
        ? make("rect", { x: cx - 4, y: cy - 4, width: 8, height: 8, fill: "#fff", stroke: colour, "stroke-width": 2 })
        : make("circle", { cx, cy, r: 4.5, fill: colour }));
    }
  }
  return svg;
}

function writeTable(series, thresholds) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "Numbers";
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of ["turn", ...series.map((one) => one.name)]) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = table.createTBody();
  const turns = Math.max(...series.map((one) => one.values.length));
  for (let turn = 0; turn < turns; turn += 1) addRow(body, turn + 1, series.map((one) => one.values[turn] ?? null));
  for (const { value, name } of thresholds) addRow(body, name, [value]);
  details.append(summary, table);
  return details;
}

function addRow(body, name, values) {
  const row = body.insertRow();
  const first = document.createElement("th");
  first.scope = "row";
  first.textContent = name;
  row.append(first);
  for (const value of values) row.insertCell().textContent = value === null ? "–" : value.toFixed(2);
}

/** Return round numbers that span a range, three to six of them. */
export function chooseTicks(low, high) {
  if (high - low < 1e-9) [low, high] = [low - 0.5, high + 0.5];
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const first = Math.floor(low / step), last = Math.ceil(high / step);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

function format(value) {
  return String(Number(value.toPrecision(6)));
}

function write(text, x, y, anchor) {
  const element = make("text", { x, y, "text-anchor": anchor, "font-size": 11, fill: "#555" });
  element.textContent = text;
  return element;
}

function make(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
