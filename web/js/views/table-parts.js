/** The parts of the table, the newest first, a page at a time from the server; and those that were removed. */

import { api, paths } from '../api.js';
import { live } from '../live.js';
import { h, fill, setText } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { go, link, stay } from '../lib/router.js';
import { button, bytesOf, damagedReceipt, download, errorBox, timeOf } from '../ui/cells.js';
import { dataTable } from '../ui/data-table.js';
import { demoButton, fileButtons } from '../ui/add-files.js';
import { announce } from '../ui/announce.js';

const PAGE = 100;
const REMOVED_MAX = 100;
const FIRST = { before: null, newer: 0 };

const COLUMNS = [
  { label: 'Part', cell: (part) => h('a', { href: link('table', { show: 'parts', part: part.part }) }, format.number(part.part)) },
  { label: 'Uploaded', cell: (part) => (part.damaged ? damagedReceipt(part) : timeOf(part.uploaded_at)) },
  { label: 'Rows', number: true, cell: (part) => format.number(part.rows) },
  { label: 'Columns', class: 'wide', number: true, cell: (part) => format.number(part.columns_count) },
  { label: 'CSV', number: true, cell: (part) => bytesOf(part.csv.bytes) },
  { label: 'Parquet', number: true, cell: (part) => bytesOf(part.parquet.bytes) },
  { label: 'CSV : Parquet', class: 'wide', number: true, cell: (part) => format.ratio(part.csv.bytes, part.parquet.bytes) },
  { label: '', class: 'actions', cell: (part) => h('span.row.end', null, download('CSV', paths.csv(part.part), `Download part ${part.part} as CSV`), download('Parquet', paths.parquet(part.part), `Download part ${part.part} as Parquet`)) },
];

export function partsTab(root, params, signal) {
  const list = h('div');
  const pager = h('div.pager');
  const fresh = h('div.fresh', { role: 'status' });
  const removed = h('div');
  root.append(h('div', null, h('div.list-head', null, jump(), fresh), list, pager, removed));
  /** The pages up to the one that is shown: what was passed as `before`, and how many parts are newer. */
  let pages = params.has('before') ? [FIRST, { before: Number(params.get('before')), newer: Number(params.get('newer') ?? 0) }] : [FIRST];
  let known = null;

  async function load() {
    const { before } = pages[pages.length - 1];
    try {
      const answer = await api.parts({ order: 'newest', limit: PAGE, ...(before === null ? {} : { before }) }, signal);
      known = live.stats?.parts ?? answer.total;
      fill(fresh);
      if (answer.total === 0) fill(list, noParts());
      else fill(list, dataTable({ caption: 'Parts of the table, the newest first', columns: COLUMNS, rows: answer.parts, pageSize: PAGE, noun: 'part' }).element);
      list.querySelector('.pager')?.remove();
      fill(pager, answer.total === 0 ? null : pagerOf(answer));
      fill(removed, removedParts(await allRemoved(signal), load));
    } catch (error) {
      if (!signal.aborted) fill(list, errorBox(error));
    }
  }

  function remember() {
    const { before, newer } = pages[pages.length - 1];
    stay('table', { show: 'parts', before, newer: before === null ? null : newer });
  }

  function pagerOf({ parts, next, total }) {
    const { newer } = pages[pages.length - 1];
    const [from, to] = [newer + 1, newer + parts.length];
    const turn = (text, label, isPossible, change) => h('button.button.small', { type: 'button', 'aria-label': label, disabled: !isPossible, on: { click: () => { change(); remember(); load(); } } }, text);
    const position = total > parts.length ? `${format.number(from)}–${format.number(to)} of ${format.count(total, 'part')}, newest first` : format.count(total, 'part');
    const buttons = [turn('‹', 'Newer parts', pages.length > 1, () => pages.pop()), turn('›', 'Older parts', next !== null && next !== undefined, () => pages.push({ before: next, newer: to }))];
    return [h('span.note', { role: 'status' }, position), total > parts.length ? buttons : null];
  }

  live.onStats((stats) => {
    if (known === null || stats.parts === known || fresh.hasChildNodes()) return;
    fill(fresh, button('The parts have changed: show', () => { pages = [FIRST]; remember(); load(); }, { symbol: 'retry' }));
  }, signal);
  live.onBack(load, signal);
  load();
}

function jump() {
  const field = h('input.search.narrow', { type: 'text', inputmode: 'numeric', placeholder: 'Part number', 'aria-label': 'Go to a part by its number', autocomplete: 'off' });
  const wrong = h('span.note', { role: 'status' });
  return h('form.row', { on: { submit: (event) => {
    event.preventDefault();
    const part = field.value.replaceAll(',', '').trim();
    if (/^[1-9]\d*$/.test(part)) go('table', { show: 'parts', part });
    else setText(wrong, 'A part number is a whole number, from 1.');
  } } }, field, h('button.button', { type: 'submit' }, 'Go'), wrong);
}

/** The removed parts, up to `REMOVED_MAX`, and whether there are more. The server lists some at a time. */
async function allRemoved(signal) {
  const removed = [];
  let after = null;
  do {
    const answer = await api.removed(after, signal);
    removed.push(...answer.removed);
    after = answer.next ?? null;
  } while (after !== null && removed.length < REMOVED_MAX);
  return { removed: removed.slice(0, REMOVED_MAX), more: after !== null || removed.length > REMOVED_MAX };
}

function removedParts({ removed, more }, reload) {
  if (removed.length === 0) return null;
  const row = (one) => h('tr', null, h('td', null, format.number(one.part)), h('td', null, timeOf(one.removed_at)), h('td', null, timeOf(one.restorable_until)),
    h('td.actions', null, button('Restore', () => restore(one.part, reload), { 'aria-label': `Restore part ${one.part}` })));
  return h('section.section', { 'aria-label': 'Removed parts' }, h('header.section-head', null, h('h2', null, 'Removed parts'), h('span.note', null, 'not in any answer; they can be restored for some time')),
    h('div.scroll', null, h('table.data', null, h('caption.off-screen', null, 'Removed parts'), h('thead', null, h('tr', null, ['Part', 'Removed', 'Can be restored until'].map((name) => h('th', { scope: 'col' }, name)), h('th', { scope: 'col' }, h('span.off-screen', null, 'Actions')))),
      h('tbody', null, removed.map(row)))),
    more ? h('p.note', null, `These are the first ${REMOVED_MAX}: tally parts --removed lists all.`) : null);
}

async function restore(part, reload) {
  try {
    await api.restore(part);
    announce(`Part ${part} is in the table again.`);
  } catch (problem) {
    announce(problem.message);
  }
  reload();
}

function noParts() {
  return h('div.empty', null, h('h2', null, 'No parts yet'), h('p', null, 'Each file that you add becomes a part.'), h('div.row', null, fileButtons({ kind: 'primary' }), demoButton()));
}
