/** Upload: files on their way into the table. */

import { path, paths } from '../api.js';
import { canPause } from '../uploads.js';
import { h, fill, keepFocus, setText } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { link } from '../lib/router.js';
import { uploadCommands } from '../lib/commands.js';
import { optionTexts } from '../lib/suggest.js';
import { button } from '../ui/cells.js';
import { copyAs, server } from '../ui/copy-as.js';
import { demoButton, fileButtons, uploads } from '../ui/add-files.js';
import { dialectForm, optionsOf } from '../ui/dialect-form.js';
import { pageHead } from '../ui/page-head.js';
import { readOnlyNote } from '../ui/ask-token.js';
import { uploadRow } from '../ui/upload-row.js';
import { announce } from '../ui/announce.js';

export const title = 'Upload';

const PAGE = 50;
const FILTERS = {
  all: ['All', () => true],
  pending: ['On their way', (item) => item.isPending],
  refused: ['Refused', (item) => item.state === 'refused' || item.state === 'asking'],
  done: ['In the table', (item) => item.state === 'done'],
};

export function show(root, params, signal) {
  uploads.options = optionsOf(params);
  const commands = () => uploadCommands(server(), path(paths.parts, uploads.options), uploads.options);
  const list = uploadList(signal);
  root.append(
    pageHead(title, 'Each file becomes a part of the table, and is stored as CSV and as Parquet.', [copyAs(commands)]),
    readOnlyNote('adding a file'), dropZone(), dialect(), interrupted(signal), list);
}

function dropZone() {
  return h('div.drop-zone', null, h('p', null, 'Drop CSV files or folders anywhere on this page'),
    h('div.row.centre', null, fileButtons({ kind: 'primary' }), demoButton()),
    h('p.note', null, 'Any size. A file is in the table as a whole or not at all.'));
}

function dialect() {
  const chosen = h('span.note');
  const say = () => setText(chosen, optionTexts(uploads.options).join(', ') || 'commas, UTF-8');
  const form = dialectForm(uploads.options, (options) => {
    uploads.options = options;
    history.replaceState(null, '', link('upload', options));
    say();
  });
  say();
  return h('details.disclosure', { open: Object.keys(uploads.options).length > 0 }, h('summary', null, 'Options for the next files ', chosen), form);
}

/** What a reload of the page has interrupted. */
function interrupted(signal) {
  const box = h('div');
  const draw = () => {
    const lost = uploads.interrupted;
    if (lost.length === 0) {
      fill(box);
      return;
    }
    const names = lost.slice(0, 5).map((item) => format.visible(item.name)).join(', ');
    fill(box, h('div.notice', { role: 'status', 'data-testid': 'interrupted' },
      h('p', null, `The page was reloaded while ${format.count(lost.length, 'file was', 'files were')} on ${lost.length === 1 ? 'its' : 'their'} way: ${names}${lost.length > 5 ? ', …' : ''}.`),
      h('p.hint', null, 'Drop the same files again. One that had arrived is not added twice.'),
      h('div.row', null, button('Forget them', () => uploads.forgetInterrupted()))));
  };
  uploads.addEventListener('change', (event) => event.detail.isNewState && draw(), { signal });
  draw();
  return box;
}

function uploadList(signal) {
  const rows = new Map();
  const list = h('ul.uploads', { 'aria-label': 'Files' });
  const head = h('div.list-head');
  const note = h('p.note', { role: 'status' });
  const pager = h('div.pager');
  const element = h('section', { 'aria-label': 'Files on their way' }, head, note, list, pager);
  let filter = 'all';
  let page = 0;
  let waitsForFrame = false;
  let isStale = true;
  const touched = new Set();

  const shownItems = () => uploads.items.filter(FILTERS[filter][1]);

  function drawList() {
    const items = shownItems();
    const pages = Math.max(1, Math.ceil(items.length / PAGE));
    page = Math.min(page, pages - 1);
    const visible = items.slice(page * PAGE, (page + 1) * PAGE);
    const wanted = new Set(visible.map((item) => item.id));
    for (const id of rows.keys()) if (!wanted.has(id)) rows.delete(id);
    const elements = visible.map((item) => {
      if (!rows.has(item.id)) rows.set(item.id, uploadRow(item));
      return rows.get(item.id).element;
    });
    // Rows that stay are not moved, so that the focus stays in them.
    if (elements.length !== list.children.length || elements.some((row, at) => row !== list.children[at])) list.replaceChildren(...elements);
    drawHead();
    setText(note, uploads.note ?? '');
    note.hidden = !uploads.note;
    fill(pager, pages === 1 ? null : [h('span.note', null, `Page ${page + 1} of ${pages}`), turn('‹', 'Previous page', -1, page === 0), turn('›', 'Next page', 1, page === pages - 1)]);
  }

  function turn(text, label, by, isDisabled) {
    return h('button.button.small', { type: 'button', 'aria-label': label, disabled: isDisabled, on: { click: () => { page += by; drawList(); } } }, text);
  }

  function drawHead() {
    const { items } = uploads;
    if (items.length === 0) {
      fill(head);
      return;
    }
    const filters = Object.entries(FILTERS).map(([key, [label, test]]) => h('button.choice', {
      type: 'button', 'aria-pressed': String(filter === key), on: { click: () => { filter = key; page = 0; drawList(); } },
    }, label, ' ', h('span.unit', null, format.number(items.filter(test).length))));
    const can = (test) => items.some(test);
    const act = (label, test, action) => button(label, action, { disabled: !can(test) });
    const actions = [
      can((item) => item.state === 'paused') ? act('Resume all', () => true, () => uploads.resumeAll())
        : act('Pause all', canPause, () => uploads.pauseAll()),
      act('Cancel all', (item) => item.isPending, () => uploads.cancelAll()),
      act('Clear the list', (item) => !item.isPending, () => uploads.clear()),
    ];
    keepFocus(head, () => fill(head, h('div.choices', { role: 'group', 'aria-label': 'Which files' }, filters), h('div.row.end', null, actions)));
  }

  function frame() {
    waitsForFrame = false;
    if (signal.aborted) return;
    if (isStale) drawList();
    isStale = false;
    touched.forEach((id) => rows.get(id)?.update());
    touched.clear();
  }

  uploads.addEventListener('change', ({ detail: { item, isNewState } }) => {
    if (item) touched.add(item.id);
    isStale ||= isNewState || item === null;
    if (item && isNewState && ['done', 'refused', 'asking'].includes(item.state)) announce(`${item.name}: ${item.state === 'done' ? 'in the table' : item.state === 'refused' ? `refused. ${item.problem.message}` : 'needs an answer'}.`);
    if (!waitsForFrame) requestAnimationFrame(frame);
    waitsForFrame = true;
  }, { signal });
  drawList();
  return element;
}
