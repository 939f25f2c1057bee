/** The columns of the table, and the sum of the one that is chosen. */

import { api } from '../api.js';
import { live } from '../live.js';
import { h, fill, setText } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { link, stay } from '../lib/router.js';
import { bytesOf, errorBox, nameOf, typesOf } from '../ui/cells.js';
import { dataTable } from '../ui/data-table.js';
import { demoButton, fileButtons } from '../ui/add-files.js';
import { sumPanel } from '../ui/sum-panel.js';

const FETCHED_AT_ONCE = 1000;
/** Names beyond these are not loaded by the page; the API lists all. */
const COLUMNS_MAX = 50000;

export function columnsTab(root, params, signal) {
  const filter = h('input.search', { type: 'search', placeholder: 'Find a column', 'aria-label': 'Find a column', value: params.get('find') ?? '', autocomplete: 'off', spellcheck: 'false', on: { input: () => find() } });
  const note = h('p.note', { role: 'status' });
  const list = h('div');
  const aside = h('div.detail');
  const split = h('div.split', null, h('div.split-main', null, h('div.list-head', null, filter), note, list), aside);
  root.append(split);
  let all = [];
  let chosen = null;
  let table = null;

  const columns = [
    { label: 'Column', key: (row) => row.name, cell: (row) => h('a', { href: link('table', { column: row.name, find: filter.value }) }, nameOf(row.name)), class: 'cut' },
    { label: 'Type', cell: (row) => typesOf(row.types) },
    { label: 'Parts', number: true, key: (row) => row.parts, cell: (row) => format.number(row.parts) },
    { label: 'Rows', number: true, key: (row) => Number(row.rows), cell: (row) => format.number(row.rows) },
    { label: 'Nulls', number: true, key: (row) => Number(row.nulls), cell: nullsOf },
    { label: 'Parquet', number: true, key: (row) => Number(row.parquet_bytes), cell: parquetOf },
  ];

  function find() {
    stay('table', { column: chosen, find: filter.value });
    const wanted = filter.value.toLocaleLowerCase();
    table?.setRows(wanted === '' ? all : all.filter((row) => row.name.toLocaleLowerCase().includes(wanted)));
  }

  async function load() {
    try {
      const first = await api.columns({ limit: FETCHED_AT_ONCE }, signal);
      all = first.columns;
      if (first.table_parts === 0 || all.length === 0) {
        fill(root, noColumns());
        return;
      }
      table = dataTable({ caption: 'Columns of the table', columns, rows: all, noun: 'column', rowClass: (row) => (row.name === chosen ? 'chosen' : null) });
      fill(list, table.element);
      find();
      await loadMore(first);
    } catch (error) {
      if (!signal.aborted) fill(list, errorBox(error));
    }
  }

  async function loadMore(answer) {
    let last = answer;
    while (last.next !== null && last.next !== undefined && all.length < COLUMNS_MAX) {
      setText(note, `${format.number(all.length)} columns loaded, more are coming`);
      last = await api.columns({ limit: FETCHED_AT_ONCE, after: last.next }, signal);
      all = all.concat(last.columns);
    }
    setText(note, last.complete === false ? 'The table has more columns than the server keeps figures of: the others can be summed, but are not listed.' : '');
    find();
  }

  function choose(newParams) {
    const column = newParams.has('column') ? newParams.get('column') : null;
    if (column === chosen) return;
    chosen = column;
    split.classList.toggle('has-detail', column !== null);
    fill(aside, column === null ? null : sumPanel(column, signal, { close: link('table', { find: filter.value }) }));
    table?.redraw();
    if (table && column !== null && matchMedia('(max-width: 900px)').matches) aside.scrollIntoView();
  }

  live.onBack(load, signal);
  choose(params);
  load();
  return choose;
}

function nullsOf({ nulls, rows }) {
  const share = Number(nulls) / Number(rows);
  return Number(nulls) === 0 || !(share > 0) ? format.number(nulls) : [format.number(nulls), h('span.unit', null, ` (${share < 0.01 ? '<1' : Math.round(share * 100)} %)`)];
}

/** Receipts of older versions do not say how many bytes a column has. */
function parquetOf({ parquet_bytes: bytes, parts, parts_without_bytes: without = 0 }) {
  if (without === 0) return bytesOf(bytes);
  return without === parts ? h('span.none', { title: 'Not known: an older version wrote these parts' }, '–') : ['≥ ', bytesOf(bytes)];
}

function noColumns() {
  return h('div.empty', null, h('h2', null, 'No columns yet'), h('p', null, 'Drop a CSV file anywhere on this page: the names in its first row become columns.'),
    h('div.row', null, fileButtons({ kind: 'primary' }), demoButton()));
}
