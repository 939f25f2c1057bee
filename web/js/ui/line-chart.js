/** Lines over time or numbers, drawn by uPlot. */

import { h, setText } from '../lib/dom.js';
import { figure } from './figure.js';

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const FONT = '12px system-ui, sans-serif';

/**
 * @param {object} options
 * @param {string} options.title
 * @param {{label: string, colour: string, area?: boolean}[]} options.series `colour` is the name of a CSS variable
 * @param {{label: string, isTime: boolean, text: (x: number) => string, utc?: boolean, isDays?: boolean, rows?: 1,
 *   range?: (low: number, high: number) => number[], tick?: (x: number) => string}} options.x `rows`: lines of the axis' labels
 * @param {{label: string, text: (y: number) => string, axisText?: (y: number) => string, steps?: 'binary', least?: number}} options.y
 *   `least`: the axis goes at least up to it
 * @param {AbortSignal} options.signal ends the chart
 */
export function lineChart({ title, series, x, y, height = 200, signal }) {
  const plot = h('div.plot', { role: 'img', 'aria-label': title });
  plot.style.height = `${height}px`;
  const values = series.map(() => h('span.readout-value'));
  const where = h('span.readout-x');
  const readout = h('span.readout', { 'aria-hidden': 'true' }, where, series.map((item, at) => {
    const key = h('span.key');
    key.style.backgroundColor = `var(${item.colour})`;
    return h('span.readout-item', null, key, item.label, ' ', values[at]);
  }));
  let data = [[], ...series.map(() => [])];
  const frame = figure({ title, plot, readout, numbers: () => table(data, series, x, y) });
  let chart = null;

  function show(index) {
    const at = index ?? data[0].length - 1;
    setText(where, at < 0 || data[0].length === 0 ? '' : x.text(data[0][at]));
    values.forEach((value, item) => {
      const figureAt = data[item + 1][at];
      setText(value, figureAt === null || figureAt === undefined ? '–' : y.text(figureAt));
    });
  }

  function draw() {
    if (plot.hidden || plot.clientWidth === 0) return;
    if (!chart) chart = new globalThis.uPlot(options({ series, x, y, width: plot.clientWidth, height, show }), data, plot);
    else chart.setSize({ width: plot.clientWidth, height });
  }

  const resized = new ResizeObserver(draw);
  resized.observe(plot);
  const scheme = matchMedia('(prefers-color-scheme: dark)');
  scheme.addEventListener('change', () => chart?.redraw(false, true), { signal });
  signal.addEventListener('abort', () => {
    resized.disconnect();
    chart?.destroy();
  });

  return {
    element: frame.element,
    /** @param {number[][]} newData x first, then each series */
    set(newData) {
      data = newData;
      if (chart) chart.setData(data);
      else draw();
      show(chart?.cursor.idx ?? null);
      frame.refresh();
    },
  };
}

function options({ series, x, y, width, height, show }) {
  const axis = {
    stroke: () => style('--text-2'), font: FONT, ticks: { show: false }, labelFont: FONT, labelSize: 16, labelGap: 0,
    grid: { stroke: () => style('--hairline'), width: 1 },
  };
  return {
    width, height, padding: [8, 28, 0, 0],
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 7 }, y: false },
    scales: { x: { time: x.isTime, range: x.range ? (_, low, high) => x.range(low, high) : undefined }, y: { range: (_, low, high) => yRange(low, high, y.least ?? 0) } },
    tzDate: x.utc ? (seconds) => globalThis.uPlot.tzDate(new Date(seconds * 1000), 'UTC') : undefined,
    axes: [
      { ...axis, label: x.label, grid: { show: false }, incrs: x.isDays ? DAYS : undefined, size: x.rows === 1 ? 28 : 44, space: 72, values: x.tick ? (_, ticks) => ticks.map(x.tick) : x.isTime ? TIME_VALUES : undefined },
      { ...axis, label: y.label, size: 64, space: 28, values: (_, ticks) => ticks.map(y.axisText ?? y.text), splits: y.steps === 'binary' ? binarySplits : undefined },
    ],
    series: [{}, ...series.map((item) => ({
      label: item.label, width: 1.5, points: { show: false }, spanGaps: true,
      stroke: () => style(item.colour),
      fill: item.area ? () => style('--accent-wash') : undefined,
    }))],
    hooks: { setCursor: [(chart) => show(chart.cursor.idx)] },
  };
}

/** Steps of a time axis that has days alone, from one day to ten years. */
const DAYS = [1, 2, 3, 7, 14, 30, 90, 182, 365, 730, 1826, 3652].map((days) => days * 86400);

/** Labels of the time axis, from a day to a second: the larger unit appears where it changes. */
const TIME_VALUES = [
  [3600 * 24 * 365, '{YYYY}', null, null, null, null, null, null, 1],
  [3600 * 24 * 28, '{MMM}', '\n{YYYY}', null, null, null, null, null, 1],
  [3600 * 24, '{D} {MMM}', '\n{YYYY}', null, null, null, null, null, 1],
  [60, '{HH}:{mm}', '\n{D} {MMM}', null, '\n{D} {MMM}', null, null, null, 1],
  [1, '{HH}:{mm}:{ss}', null, null, null, null, null, null, 1],
];

function yRange(low, high, least) {
  const top = Math.max(high ?? 0, least, 0);
  const bottom = Math.min(low ?? 0, 0);
  return top === bottom ? [0, 1] : [bottom < 0 ? bottom * 1.08 : 0, top > 0 ? top * 1.08 : 0];
}

/** Ticks of sizes: steps of 1, 2 or 5 in the unit that the axis shows. */
function binarySplits(chart, axis, low, high, increment) {
  const unit = 1024 ** Math.max(0, Math.floor(Math.log(Math.max(high, 1)) / Math.log(1024)));
  const power = 10 ** Math.floor(Math.log10(increment / unit));
  const step = unit * power * ([1, 2, 5, 10].find((factor) => factor * power * unit >= increment * 0.999) ?? 10);
  const splits = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) splits.push(tick);
  return splits;
}

function table(data, series, x, y) {
  const rows = data[0].map((at, index) => [x.text(at), ...series.map((_, item) => {
    const value = data[item + 1][index];
    return value === null || value === undefined ? '–' : y.text(value);
  })]);
  return { head: [x.label, ...series.map((item) => item.label)], rows: rows.reverse() };
}
