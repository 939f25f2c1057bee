/** Scales of charts. Pure functions. */

/** A round step, so that `span` has about `count` of them: 1, 2 or 5 times a power of ten. */
export function niceStep(span, count) {
  const rough = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.75) ?? 10;
  return step * power;
}

/**
 * The scale of bars: it always has zero, because the length of a bar is its value.
 * @param {number[]} values
 * @returns {{min: number, max: number, ticks: number[]}}
 */
export function barScale(values, count = 4) {
  let low = 0;
  let high = 0;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === high) high = 1;
  const step = niceStep(high - low, count);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const ticks = Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
  return { min: low, max: high, ticks };
}

/** Where a value is between `min` and `max`, in percent. */
export const percent = (value, { min, max }) => (100 * (value - min)) / (max - min);

/** A large figure for an axis: 1,200 or 3.4 M. */
export function axisText(value) {
  const magnitude = Math.abs(value);
  const [unit, name] = [[1e12, ' T'], [1e9, ' G'], [1e6, ' M'], [1e4, ' k']].find(([least]) => magnitude >= least) ?? [1, ''];
  const shown = unit === 1e4 ? value / 1000 : value / unit;
  return `${Number(shown.toPrecision(4)).toLocaleString('en-US').replace('-', '\u2212')}${name}`;
}
