/** A refused file: what is wrong, the row that the server names with the cell marked, and what to do. */

import { readRow } from '../lib/csv-peek.js';
import { h, fill } from '../lib/dom.js';
import { count, cut, number, visible } from '../lib/format.js';
import { columnWindow, markedCell, sentence, suggestions } from '../lib/suggest.js';
import { button } from './cells.js';

const CELL_CHARS_MAX = 80;

/** @param {(options: object) => void} retry sends the file again with other options */
export function refusal(item, retry) {
  const { problem } = item;
  const excerpt = h('div.excerpt');
  const tries = suggestions({ detail: problem.message, hint: problem.fields.hint }, item.head, item.options);
  const canRead = problem.fields.line !== undefined || problem.fields.row !== undefined;
  if (canRead) showRow(item, excerpt);
  const again = button('Retry as it is', () => retry({}), { symbol: 'retry' });
  return h('div.refusal', { 'data-testid': 'refusal' },
    h('p.refusal-text', { role: 'alert' }, visible(sentence(problem.message))),
    // The buttons say it.
    problem.fields.hint && tries.length === 0 ? h('p.hint', null, visible(sentence(problem.fields.hint))) : null,
    canRead ? excerpt : null,
    h('div.row', null, tries.map((one) => button(one.label, () => retry(one.options), { kind: 'primary' })), again));
}

async function showRow(item, excerpt) {
  fill(excerpt, h('p.note', null, 'Reading the row from the file…'));
  try {
    const { line, row } = item.problem.fields;
    const found = await readRow(item.file, line === undefined ? { row } : { line }, item.options);
    fill(excerpt, found ? rowTable(item.problem.fields, found) : null);
  } catch {
    fill(excerpt, h('p.note', null, 'The row cannot be shown: the browser cannot read this file any more.'));
  }
}

function rowTable(fields, { header, cells }) {
  const marked = markedCell(fields, header, cells);
  const width = Math.max(header.length, cells.length);
  const { from, to } = columnWindow(width, marked);
  const indices = Array.from({ length: to - from }, (_, at) => from + at);
  const isHeader = fields.row === 0;
  const place = isHeader ? 'Header' : [fields.row === undefined ? null : `Row ${number(fields.row)}`, fields.line === undefined ? null : `line ${number(fields.line)}`].filter(Boolean).join(', ');
  const head = (at) => h('th', { scope: 'col', class: at === marked ? 'marked' : null }, h('span.ordinal', null, number(at + 1)), isHeader ? null : at < header.length ? cellText(header[at]) : h('span.none', null, 'no column'));
  const cell = (at) => h('td', { class: at === marked ? 'marked' : null }, cellOf(at, marked, header, cells));
  return h('div', null,
    h('p.note', null, `${place} of the file:`),
    h('div.scroll', { tabindex: '0', role: 'group', 'aria-label': 'The refused row' },
      h('table.data.row-table', null, h('caption.off-screen', null, `${place}, with the cell that is wrong`),
        h('thead', null, h('tr', null, leftOut(from, 'th'), indices.map(head), leftOut(width - to, 'th'))),
        h('tbody', null, h('tr', null, leftOut(from, 'td'), indices.map(cell), leftOut(width - to, 'td'))))));
}

function cellOf(at, marked, header, cells) {
  if (at >= cells.length) return h('span.none', { 'data-testid': at === marked ? 'marked-cell' : null }, 'missing');
  const text = cellText(cells[at]);
  return at === marked ? h('mark', { 'data-testid': 'marked-cell' }, text) : text;
}

function cellText(text) {
  return text === '' ? h('span.none', null, 'empty') : visible(cut(text, CELL_CHARS_MAX));
}

const leftOut = (columns, tag) => (columns > 0 ? h(`${tag}.left-out`, null, tag === 'th' ? `${count(columns, 'more column')}` : '…') : null);
