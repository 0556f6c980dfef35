/** Numbers behind the plots, without the page: scales, ticks, series, texts. */

/** Seconds that the time plots show. */
export const SPAN_S = 300;

/** A gap between points longer than this breaks a line; points come once a second. */
const GAP_S = 5;

/**
 * Round ticks from 0 up to the first one that covers `most`.
 *
 * @param {number} most largest value to show
 * @param {number} wanted about how many steps
 * @param {boolean} whole only whole numbers, for counts
 * @returns {number[]} at least two ticks, the first is 0
 */
export function ticks(most, wanted, whole = false) {
  const end = most > 0 ? most : 1;
  const rough = end / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough * 0.999);
  if (whole) step = Math.max(1, step);
  const count = Math.max(1, Math.ceil(end / step - 1e-9));
  return Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

/** The straight line that sends `from` to `to`, both [low, high]. */
export function scale(from, to) {
  return (value) => to[0] + ((value - from[0]) / (from[1] - from[0])) * (to[1] - to[0]);
}

/** A number in few characters; "–" for what is not one. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${trim((value / 1e6).toFixed(1))}M`;
  if (size >= 1e4) return `${trim((value / 1e3).toFixed(1))}k`;
  return trim(value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2));
}

function trim(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/**
 * Runs of neighbouring points with a number under `key`, as [seconds before the last point, value].
 *
 * @param {object[]} points of /stats, oldest first, `t` in seconds
 */
export function runs(points, key) {
  const end = points.at(-1)?.t;
  const found = [];
  let last = -Infinity;
  for (const point of points) {
    if (!Number.isFinite(point[key]) || point.t < end - SPAN_S) continue;
    if (point.t - last > GAP_S || !found.length) found.push([]);
    last = point.t;
    found.at(-1).push([point.t - end, point[key]]);
  }
  return found;
}

/** The latest, mean, lowest and highest of the numbers under `key`; NaN where there are none. */
export function summary(points, key) {
  const values = points.map((point) => point[key]).filter(Number.isFinite);
  if (!values.length) return { now: NaN, mean: NaN, lowest: NaN, highest: NaN };
  return {
    now: points.at(-1)[key] ?? NaN,
    mean: values.reduce((a, b) => a + b) / values.length,
    lowest: Math.min(...values),
    highest: Math.max(...values),
  };
}

/** Acceptance of slots 1, 2, … at the last point that has any; NaN for a slot without rounds. */
export function acceptance(points) {
  const last = points.findLast((point) => point.accept_by_position?.length);
  return (last?.accept_by_position ?? []).map((share) => share ?? NaN);
}

/** Drafted, verified and accepted draft tokens over all the points. */
export function totals(points) {
  const sum = (key) => points.reduce((all, point) => all + (point[key] ?? 0), 0);
  return { drafted: sum("drafted"), verified: sum("verified"), accepted: sum("accepted") };
}

/** The sentence that stands for a line to those who cannot see it. */
export function inWords({ name, unit }, { now, lowest, highest }) {
  return `${name}: now ${short(now)} ${unit}, lowest ${short(lowest)}, highest ${short(highest)}.`;
}
