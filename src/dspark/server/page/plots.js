/** The live plots: lines over time and bars by position, drawn anew once a second. */

import { byId, make, setText, shape } from "./dom.js";
import { SPAN_S, acceptance, inWords, runs, scale, short, summary, ticks, totals }
  from "./plot_logic.js";

const LEFT = 44; // pixels for tick labels
const RIGHT = 10;
const LABEL = 30; // above each panel, clear of the tick below the one before
const AXIS = 38; // below the last panel
const TICK_S = 60;

/** Panels of a figure stand below each other and share the time axis. */
const FIGURES = [
  {
    id: "throughput",
    panels: [
      {
        label: "tokens/s",
        height: 110,
        lines: [{ key: "tokens_per_s", name: "throughput", unit: "tokens/s" }],
      },
    ],
  },
  {
    id: "load",
    panels: [
      {
        label: "requests",
        height: 64,
        whole: true,
        lines: [
          { key: "running", name: "running", unit: "requests" },
          { key: "waiting", name: "waiting", unit: "requests" },
        ],
      },
      {
        label: "verify length (draft tokens per request)",
        height: 64,
        lines: [{ key: "mean_verify_len", name: "verify length", unit: "draft tokens/request" }],
      },
      {
        label: "batch (tokens per target forward)",
        height: 64,
        lines: [{ key: "batch_tokens", name: "batch", unit: "tokens/forward" }],
      },
    ],
  },
];
const BARS = { id: "acceptance", height: 120 };

export class Plots {
  #points = []; // the latest
  #shown = []; // those in the pictures
  #paused = false;
  #pause = byId("pause-plots");

  constructor() {
    for (const figure of FIGURES) addNow(figure);
    this.#pause.addEventListener("click", () => {
      this.#paused = !this.#paused;
      setText(this.#pause, this.#paused ? "Resume plots" : "Pause plots");
      if (!this.#paused) this.#draw(this.#points);
    });
    new ResizeObserver(() => this.#draw(this.#shown)).observe(byId("plots"));
  }

  /** Points of /stats, oldest first. While paused they are kept for later. */
  show(points) {
    this.#points = points;
    if (!this.#paused) this.#draw(points);
  }

  #draw(points) {
    this.#shown = points;
    for (const figure of FIGURES) drawLines(figure, points);
    drawBars(points);
  }
}

const linesOf = (figure) => figure.panels.flatMap((panel) => panel.lines);

/** A place for every line's latest value, beside a sample of the line. */
function addNow({ id, ...figure }) {
  for (const { key, name } of linesOf(figure)) {
    const item = make("li");
    item.append(make("span", `swatch ${key}`), `${name} `, make("b", `value ${key}`, "–"));
    byId(`${id}-now`).append(item);
  }
}

function drawLines({ id, ...figure }, points) {
  const picture = byId(`${id}-plot`);
  const right = picture.parentElement.clientWidth - RIGHT;
  const x = scale([-SPAN_S, 0], [LEFT, right]);
  const parts = [];
  let bottom = 0;
  for (const panel of figure.panels) {
    const top = bottom + LABEL;
    bottom = top + panel.height;
    parts.push(...drawPanel(panel, points, x, [bottom, top], right));
  }
  parts.push(...timeAxis(x, bottom));
  replace(picture, right + RIGHT, bottom + AXIS, parts);

  const all = linesOf(figure).map((line) => ({ line, numbers: summary(points, line.key) }));
  for (const { line, numbers } of all) {
    const value = byId(`${id}-now`).querySelector(`.value.${line.key}`);
    setText(value, `${short(numbers.now)} ${line.unit}`);
  }
  const words = all.map(({ line, numbers }) => inWords(line, numbers));
  picture.setAttribute("aria-label", `Lines over the last ${SPAN_S} seconds. ${words.join(" ")}`);
  fillTable(byId(`${id}-table`), [
    ["", "now", "mean", "lowest", "highest"],
    ...all.map(({ line, numbers: { now, mean, lowest, highest } }) => [
      `${line.name} (${line.unit})`,
      ...[now, mean, lowest, highest].map(short),
    ]),
  ]);
}

/** One panel's label, grid and lines; `rows` are the pixels of its [bottom, top]. */
function drawPanel(panel, points, x, rows, right) {
  const most = Math.max(0, ...panel.lines.map(({ key }) => summary(points, key).highest || 0));
  const marks = ticks(most, 3, panel.whole);
  const y = scale([0, marks.at(-1)], rows);
  const lines = panel.lines.flatMap(({ key }) =>
    runs(points, key).map((run) => {
      const steps = run.map(([t, value]) => `${x(t).toFixed(1)} ${y(value).toFixed(1)}`);
      return shape("path", { class: `line ${key}`, d: `M${steps.join("L")}h0` });
    }),
  );
  return [...valueAxis(panel.label, marks, y, right), ...lines];
}

/** Grid lines with their numbers, and what they count above them. */
function valueAxis(label, marks, y, right) {
  const top = y(marks.at(-1));
  return [
    shape("text", { x: 0, y: top - 12, class: "axis-label" }, label),
    ...marks.flatMap((mark) => [
      shape("line", { x1: LEFT, x2: right, y1: y(mark), y2: y(mark), class: "grid" }),
      shape("text", { x: LEFT - 6, y: y(mark) + 4, class: "tick end" }, short(mark)),
    ]),
  ];
}

function timeAxis(x, bottom) {
  const count = SPAN_S / TICK_S;
  const marks = Array.from({ length: count + 1 }, (_, i) => -i * TICK_S);
  return [
    ...marks.map((mark) => {
      const place = { x: x(mark), y: bottom + 16, class: mark ? "tick middle" : "tick end" };
      return shape("text", place, mark ? `−${-mark}` : "now");
    }),
    axisName("time (seconds before now)", x(-SPAN_S / 2), bottom),
  ];
}

function axisName(text, x, bottom) {
  return shape("text", { x, y: bottom + 32, class: "axis-label middle" }, text);
}

/** Bars of the latest acceptance of each slot, and what was drafted in the time shown. */
function drawBars(points) {
  const picture = byId(`${BARS.id}-plot`);
  const shares = acceptance(points);
  const right = picture.parentElement.clientWidth - RIGHT;
  const bottom = LABEL + BARS.height;
  const y = scale([0, 1], [bottom, LABEL]);
  const x = scale([0, Math.max(1, shares.length)], [LEFT, right]);
  const name = "share accepted, all earlier slots accepted";
  const parts = valueAxis(name, ticks(1, 4), y, right);
  shares.forEach((share, slot) => parts.push(...bar(share, slot, x, y)));
  if (!shares.length) {
    const place = { x: x(0.5), y: y(0.25), class: "tick middle" };
    parts.push(shape("text", place, "no slot verified yet"));
  }
  parts.push(axisName("draft slot", (LEFT + right) / 2, bottom));
  replace(picture, right + RIGHT, bottom + AXIS, parts);

  const each = shares.map((share, slot) => `slot ${slot + 1}: ${short(share)}`);
  const words = each.length ? each.join(", ") : "no slot verified yet";
  picture.setAttribute("aria-label", `Bars of acceptance by draft slot. ${words}.`);
  const { drafted, verified, accepted } = totals(points);
  const sums = `drafted ${drafted}, verified ${verified}, accepted ${accepted}`;
  setText(byId(`${BARS.id}-now`), `last ${SPAN_S} s: ${sums} draft tokens`);
  fillTable(byId(`${BARS.id}-table`), [
    ["slot", "share accepted"],
    ...shares.map((share, slot) => [String(slot + 1), short(share)]),
  ]);
}

/** One slot's bar with its number above it and its slot below the axis. */
function bar(share, slot, x, y) {
  const height = share || 0; // no bar for a slot that was never reached
  const width = x(slot + 0.85) - x(slot + 0.15);
  const box = { x: x(slot + 0.15), y: y(height), width, height: y(0) - y(height), class: "bar" };
  const middle = x(slot + 0.5);
  // A tall bar has its number inside, where the label above the panel cannot meet it.
  const inside = y(height) < LABEL + 16;
  const place = { x: middle, y: y(height) + (inside ? 14 : -4) };
  const number = { ...place, class: inside ? "bar-value inside" : "bar-value" };
  return [
    shape("rect", box),
    shape("text", number, short(share)),
    shape("text", { x: middle, y: y(0) + 16, class: "tick middle" }, String(slot + 1)),
  ];
}

function replace(picture, width, height, parts) {
  picture.setAttribute("width", width);
  picture.setAttribute("height", height);
  picture.replaceChildren(...parts);
}

/** Write rows into a table body; cells stay the same elements while their number does. */
function fillTable(body, rows) {
  const size = `${rows.length}x${rows[0].length}`;
  if (body.dataset.size !== size) {
    body.dataset.size = size;
    body.replaceChildren(...rows.map((row, i) => tableRow(row.length, i === 0)));
  }
  const cells = body.querySelectorAll("th, td");
  rows.flat().forEach((text, i) => setText(cells[i], text));
}

function tableRow(count, first) {
  const row = make("tr");
  for (let column = 0; column < count; column += 1) {
    const cell = make(first || column === 0 ? "th" : "td");
    if (cell.localName === "th") cell.setAttribute("scope", first ? "col" : "row");
    row.append(cell);
  }
  return row;
}
