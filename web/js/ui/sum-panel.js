/** The exact sum of one column, from CSV and from Parquet, with what each of them cost. */

import { api } from '../api.js';
import { h, fill } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { link } from '../lib/router.js';
import { announce } from './announce.js';
import { button, bytesOf, errorBox, nameOf } from './cells.js';

const FORMATS = [['csv', 'CSV'], ['parquet', 'Parquet']];

export function sumPanel(column, signal, { close }) {
  const result = h('div.sum-result', { 'aria-live': 'polite' });
  const again = button('Run again', run, { symbol: 'retry' });
  const panel = h('section.panel', { 'aria-label': `Sum of ${format.visible(column)}`, 'data-testid': 'sum-panel' },
    h('header.panel-head', null, h('h2', null, 'Sum of ', nameOf(column)), h('a.icon-button', { href: close, 'aria-label': 'Close' }, '×')),
    result, h('div.row', null, again));

  async function run() {
    again.disabled = true;
    if (!result.hasChildNodes()) fill(result, h('p.note', null, 'Reading the column from both formats…'));
    const answers = [];
    // One after the other: at the same time, they would slow each other down.
    for (const [name] of FORMATS) {
      try {
        answers.push(await api.sum(column, name, signal));
      } catch (error) {
        if (signal.aborted) return;
        answers.push(error);
      }
    }
    again.disabled = false;
    fill(result, resultOf(answers));
    if (!(answers[0] instanceof Error)) announce(`The sum is ${format.number(answers[0].total)}.`);
  }

  run();
  return panel;
}

function resultOf(answers) {
  const failed = answers.find((answer) => answer instanceof Error);
  if (failed) return failure(failed);
  const [csv, parquet] = answers;
  const isEqual = String(csv.total) === String(parquet.total);
  return [
    h('p.total', { 'data-testid': 'total' }, format.number(csv.total)),
    csv.hint ? h('p.hint', null, format.visible(csv.hint)) : null,
    isEqual ? null : h('p.error', { role: 'alert' }, `The formats differ: Parquet gives ${format.number(parquet.total)}.`),
    h('p.note', null, `${format.count(csv.rows, 'row')} in ${format.number(csv.parts)} of ${format.count(csv.table_parts, 'part')}${isEqual ? ', the same total from both formats' : ''}`),
    comparison('Time', answers, (answer) => answer.elapsed_ms, (ms) => format.durationText(ms)),
    comparison('Bytes read', answers, (answer) => Number(answer.bytes), (bytes) => bytesOf(bytes)),
    h('p.verdict', null, verdict(csv, parquet)),
  ];
}

function failure(error) {
  const { part } = error.fields ?? {};
  const look = part === undefined ? [] : [h('a.button', { href: link('table', { show: 'parts', part }) }, `Look at part ${format.number(part)}`)];
  return errorBox(error, ...look);
}

function comparison(title, answers, valueOf, textOf) {
  const most = Math.max(...answers.map(valueOf), Number.MIN_VALUE);
  return h('div.comparison', { role: 'group', 'aria-label': title }, h('h3', null, title), answers.map((answer, at) => {
    const bar = h('span.bar', { class: at === 0 ? 'grey' : '' });
    bar.style.width = `${(100 * valueOf(answer)) / most}%`;
    return h('div.comparison-row', { 'data-testid': `${FORMATS[at][0]}-${title === 'Time' ? 'time' : 'bytes'}` },
      h('span.comparison-name', null, FORMATS[at][1]), h('span.track', { 'aria-hidden': 'true' }, bar), h('span.num', null, textOf(valueOf(answer))));
  }));
}

function verdict(csv, parquet) {
  if (Number(csv.rows) === 0) return '';
  const compare = (a, b, more, less) => (a >= b ? `${format.ratio(a, b)} times ${more}` : `${format.ratio(b, a)} times ${less}`);
  return `From Parquet: ${compare(csv.elapsed_ms, parquet.elapsed_ms, 'as fast', 'as long')}, ${compare(Number(csv.bytes), Number(parquet.bytes), 'fewer bytes', 'as many bytes')}.`;
}
