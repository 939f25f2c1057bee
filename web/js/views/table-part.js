/** One part: its receipt, its columns, the first of its rows. */

import { api, paths } from '../api.js';
import { h, fill } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { link } from '../lib/router.js';
import { optionTexts } from '../lib/suggest.js';
import { readOnlyNote } from '../ui/ask-token.js';
import { button, bytesOf, download, errorBox, nameOf, section, timeOf, typeName } from '../ui/cells.js';
import { dataTable } from '../ui/data-table.js';
import { announce } from '../ui/announce.js';

const ROWS = 20;
const NUMBERS = new Set(['int64', 'float64']);

export function partPage(root, params, signal) {
  const part = params.get('part');
  const body = h('div.stack');
  root.append(h('p.crumbs', null, h('a', { href: link('table', { show: 'parts' }) }, 'All parts'), ' / ', `Part ${format.number(part)}`), body);

  async function load() {
    try {
      const receipt = await api.part(part, signal);
      const preview = h('div');
      fill(body, head(receipt, load), section('First rows', { note: 'cells as in the CSV' }, preview), section('Columns', {}, columns(receipt)));
      const types = new Map(receipt.columns.map((column) => [column.name, column.type]));
      fill(preview, rowsTable(await api.rows(part, ROWS, signal), types, receipt));
    } catch (error) {
      if (!signal.aborted) fill(body, errorBox(error, ...(isRemoved(error) ? [button('Restore', () => restore(), { kind: 'primary' })] : [])));
    }
  }

  async function restore() {
    try {
      await api.restore(part);
    } catch (problem) {
      announce(problem.message);
    }
    load();
  }

  load();
}

const isRemoved = (error) => error.status === 404 && /restore/.test(error.message);

function head(receipt, reload) {
  const facts = [
    ['Uploaded', timeOf(receipt.uploaded_at)], ['Rows', format.number(receipt.rows)], ['Columns', format.number(receipt.columns.length)],
    ['CSV', bytesOf(receipt.csv.bytes)], ['Parquet', bytesOf(receipt.parquet.bytes)],
    ['CSV to Parquet', [format.ratio(receipt.csv.bytes, receipt.parquet.bytes), h('span.unit', null, '\u00a0: 1')]],
  ];
  const source = receipt.source ? optionTexts(receipt.source) : [];
  return h('div', null,
    h('dl.key-figures.small', null, facts.map(([name, value]) => h('div.key-figure', null, h('dt', null, name), h('dd.key-value', null, value)))),
    source.length > 0 ? h('p.note', null, `Sent with ${source.join(', ')}; what is stored is plain CSV.`) : null,
    h('div.row', null, download('CSV', paths.csv(receipt.part), `Download part ${receipt.part} as CSV`), download('Parquet', paths.parquet(receipt.part), `Download part ${receipt.part} as Parquet`), removal(receipt.part, reload)),
    readOnlyNote('removing a part'),
    h('p.note.checksums', null, 'XXH3 of the CSV ', h('code', null, receipt.csv.xxh3), ', of the Parquet file ', h('code', null, receipt.parquet.xxh3)));
}

/** Removing asks once, in its place; it can be undone. */
function removal(part, reload) {
  const box = h('span.row');
  const ask = () => fill(box, h('span', null, 'Remove this part from the table?'),
    button('Remove', remove, { kind: 'danger' }), button('Keep', first));
  const first = () => fill(box, button('Remove', ask, { symbol: 'bin' }));
  async function remove() {
    try {
      await api.remove(part);
      announce(`Part ${part} was removed.`);
      reload();
    } catch (problem) {
      fill(box, errorBox(problem), button('Close', first));
    }
  }
  first();
  return box;
}

function rowsTable({ columns: names, rows, more, columns_left_out: leftOut }, types, receipt) {
  if (rows.length === 0) return h('p.note', null, more ? 'The first row is too long to be shown.' : 'This part has no rows.');
  const isNumber = names.map((name) => NUMBERS.has(types.get(name)));
  const note = [more ? `The first ${format.number(rows.length)} of ${format.count(receipt.rows, 'row')}.` : `All ${format.count(rows.length, 'row')}.`, leftOut ? `${format.count(leftOut, 'more column')} not shown.` : ''];
  const cell = (text, at) => h('td', { class: isNumber[at] ? 'num' : 'text' }, text === null ? h('span.none', null, 'null') : format.visible(text));
  return [h('div.scroll', { tabindex: '0', role: 'group', 'aria-label': 'First rows' }, h('table.data.preview', null, h('caption.off-screen', null, `First rows of part ${receipt.part}`),
    h('thead', null, h('tr', null, names.map((name, at) => h('th', { scope: 'col', class: isNumber[at] ? 'num' : null }, nameOf(name))))),
    h('tbody', null, rows.map((row) => h('tr', null, row.map(cell)))))), h('p.note', null, note.join(' '))];
}

function columns(receipt) {
  return dataTable({
    caption: `Columns of part ${receipt.part}`, rows: receipt.columns, noun: 'column', columns: [
      { label: 'Column', class: 'cut', key: (column) => column.name, cell: (column) => h('a', { href: link('table', { column: column.name }) }, nameOf(column.name)) },
      { label: 'Type', key: (column) => column.type, cell: (column) => h('span.type', { title: column.type }, typeName(column.type)) },
      { label: 'Nulls', number: true, key: (column) => Number(column.nulls), cell: (column) => format.number(column.nulls) },
    ],
  }).element;
}
