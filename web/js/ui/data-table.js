/** Tables of any length: a page of rows at a time, so that ten thousand rows cost what a hundred do. */

import { h, fill, keepFocus, setText } from '../lib/dom.js';
import { count, number } from '../lib/format.js';

/**
 * @param {object} options
 * @param {string} options.caption what the table is, for screen readers
 * @param {{label: string, number?: boolean, class?: string, cell: (row: any) => any, key?: (row: any) => any}[]} options.columns
 *   with `key` a column can be sorted by
 * @param {any[]} options.rows
 * @param {number} [options.pageSize]
 * @param {string} [options.noun] one row, for the count
 * @param {(row: any) => string|null} [options.rowClass]
 */
export function dataTable({ caption, columns, rows, pageSize = 100, noun = 'row', rowClass = () => null }) {
  const body = h('tbody');
  const heads = columns.map((column) => headCell(column, sortBy));
  const table = h('table.data', null, h('caption.off-screen', null, caption), h('thead', null, h('tr', null, heads)), body);
  const position = h('span.note', { role: 'status' });
  const back = h('button.button.small', { type: 'button', 'aria-label': 'Previous page', on: { click: () => turn(-1) } }, '‹');
  const forth = h('button.button.small', { type: 'button', 'aria-label': 'Next page', on: { click: () => turn(1) } }, '›');
  const pager = h('div.pager', null, position, back, forth);
  const element = h('div.table-box', null, h('div.scroll', { tabindex: '0', role: 'group', 'aria-label': caption }, table), pager);
  let shown = rows;
  let page = 0;
  let sorted = null;

  function sortBy(column) {
    sorted = sorted?.column === column ? { column, down: !sorted.down } : { column, down: Boolean(column.number) };
    page = 0;
    draw();
  }

  function turn(by) {
    page += by;
    draw();
    element.scrollIntoView({ block: 'nearest' });
  }

  function draw() {
    const ordered = sorted ? order(shown, sorted) : shown;
    const pages = Math.max(1, Math.ceil(ordered.length / pageSize));
    page = Math.min(page, pages - 1);
    const from = page * pageSize;
    const visibleRows = ordered.slice(from, from + pageSize);
    const cellOf = (row, column) => h('td', { class: `${column.number ? 'num ' : ''}${column.class ?? ''}` }, column.cell(row));
    keepFocus(body, () => fill(body, visibleRows.map((row) => h('tr', { class: rowClass(row) }, columns.map((column) => cellOf(row, column))))));
    columns.forEach((column, at) => heads[at].setAttribute('aria-sort', sorted?.column === column ? (sorted.down ? 'descending' : 'ascending') : 'none'));
    setText(position, ordered.length > pageSize
      ? `${number(from + 1)}–${number(from + visibleRows.length)} of ${count(ordered.length, noun)}` : count(ordered.length, noun));
    back.disabled = page === 0;
    forth.disabled = page >= pages - 1;
    back.hidden = forth.hidden = pages === 1;
  }

  draw();
  return {
    element,
    setRows(newRows) {
      shown = newRows;
      draw();
    },
    redraw: draw,
  };
}

function headCell(column, sortBy) {
  const props = { scope: 'col', class: `${column.number ? 'num ' : ''}${column.class ?? ''}` };
  if (!column.key) return h('th', props, column.label === '' ? h('span.off-screen', null, 'Actions') : column.label);
  return h('th', props, h('button.sort', { type: 'button', on: { click: () => sortBy(column) } }, column.label));
}

function order(rows, { column, down }) {
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return rows.map((row) => [column.key(row), row]).sort(([a], [b]) => (down ? compare(b, a) : compare(a, b))).map(([, row]) => row);
}
