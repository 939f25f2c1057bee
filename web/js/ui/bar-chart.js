/**
 * Bars with long labels. They are elements, not a canvas: their labels wrap, can be selected, and are read aloud.
 */

import { h } from '../lib/dom.js';
import { axisText, barScale, percent } from '../lib/scale.js';
import { visible } from '../lib/format.js';
import { figure } from './figure.js';

/**
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.label what a bar is
 * @param {string} options.valueLabel what its length is
 * @param {{label: string, value: number, text: string, colour?: 'grey'}[]} options.bars `text` is the exact value
 * @param {{value: number, label: string}|null} [options.mark] a line across all bars
 * @param {number[]} [options.scaleOf] values that share the scale: those of the charts beside this one
 */
export function barChart({ title, label, valueLabel, bars, mark = null, scaleOf = [] }) {
  const scale = barScale([...scaleOf, ...bars.map(({ value }) => value), ...(mark ? [mark.value] : [])]);
  const plot = h('div.bars', { role: 'list', 'aria-label': title },
    mark ? markRow(mark, scale) : null,
    bars.map((bar) => barRow(bar, scale, mark)),
    axisRow(scale, valueLabel));
  const numbers = () => ({ head: [label, valueLabel], rows: bars.map((bar) => [visible(bar.label), bar.exact ?? bar.text]) });
  return figure({ title, plot, numbers }).element;
}

function barRow({ label, value, text, exact, colour }, scale, mark) {
  const bar = h('span.bar', { class: colour ?? '' });
  const zero = percent(0, scale);
  const end = percent(value, scale);
  bar.style.left = `${Math.min(zero, end)}%`;
  bar.style.width = `${Math.abs(end - zero)}%`;
  const shown = label === '' ? '(empty)' : visible(label);
  return h('div.bar-row', { role: 'listitem', title: `${shown}: ${exact ?? text}` },
    h('bdi.bar-label', null, shown), h('span.track', { 'aria-hidden': 'true' }, gridLines(scale), bar, mark ? line('mark-line', mark.value, scale) : null),
    h('span.bar-value', null, text));
}

function line(kind, value, scale) {
  const element = h(`span.${kind}`);
  element.style.left = `${percent(value, scale)}%`;
  return element;
}

const gridLines = (scale) => scale.ticks.map((tick) => line(tick === 0 ? 'grid-line.zero' : 'grid-line', tick, scale));

function markRow(mark, scale) {
  const text = line('mark-label', mark.value, scale);
  text.textContent = mark.label;
  const share = percent(mark.value, scale);
  text.dataset.side = share > 50 ? 'left' : 'right';
  return h('div.bar-row.mark-row', { role: 'listitem' }, h('span.bar-label'), h('span.track', null, text), h('span.bar-value'));
}

function axisRow(scale, valueLabel) {
  const ticks = scale.ticks.map((tick) => {
    const element = line('tick', tick, scale);
    element.textContent = axisText(tick);
    return element;
  });
  return h('div.bar-row.axis-row', { role: 'presentation', 'aria-hidden': 'true' }, h('span.bar-label'), h('span.track', null, ticks, h('span.axis-label', null, valueLabel)), h('span.bar-value'));
}
