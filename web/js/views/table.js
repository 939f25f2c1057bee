/** Table: its columns with the sum of one, its parts, and one part with a preview of its rows. */

import { h, fill, keepFocus } from '../lib/dom.js';
import { link } from '../lib/router.js';
import { getCommands, shell } from '../lib/commands.js';
import { paths } from '../api.js';
import { copyAs, server } from '../ui/copy-as.js';
import { pageHead } from '../ui/page-head.js';
import { columnsTab } from './table-columns.js';
import { partsTab } from './table-parts.js';
import { partPage } from './table-part.js';

export const title = 'Table';

export function show(root, params, signal) {
  let current = params;
  const tabs = h('nav.tabs', { 'aria-label': 'Parts of this view' });
  const body = h('div.stack');
  root.append(pageHead(title, 'Columns and parts. Choose a column to see its sum from both formats.', [copyAs(() => commands(current))]), tabs, body);
  let shown = null;

  function draw() {
    const showsParts = current.get('show') === 'parts';
    keepFocus(tabs, () => fill(tabs, tab('Columns', link('table'), !showsParts), tab('Parts', link('table', { show: 'parts' }), showsParts)));
    const key = !showsParts ? 'columns' : current.has('part') ? `part ${current.get('part')}` : 'parts';
    if (shown?.key === key) {
      shown.update?.(current);
      return;
    }
    shown?.controller.abort();
    const controller = new AbortController();
    const make = !showsParts ? columnsTab : current.has('part') ? partPage : partsTab;
    fill(body);
    shown = { key, controller, update: make(body, current, controller.signal) };
  }

  signal.addEventListener('abort', () => shown?.controller.abort());
  draw();
  return (newParams) => {
    current = newParams;
    draw();
  };
}

function tab(text, href, isCurrent) {
  return h('a.tab', { href, 'aria-current': isCurrent ? 'page' : null }, text);
}

function commands(params) {
  if (params.get('show') === 'parts') {
    const part = params.get('part');
    if (!part) return getCommands(server(), { path: `${paths.parts}?limit=100`, grpc: ['tally.v1.Tally/ListParts', { limit: 100 }], tally: 'parts' });
    const before = Number(part) - 1;
    return getCommands(server(), { path: `${paths.parts}/${part}`, grpc: ['tally.v1.Tally/ListParts', { after: before, limit: 1 }], tally: 'parts --columns' });
  }
  if (!params.has('column')) return getCommands(server(), { path: paths.columns, grpc: ['tally.v1.Tally/ListColumns', {}], tally: 'schema' });
  const column = params.get('column');
  return sumCommands(column);
}

function sumCommands(column) {
  const both = { column, formats: ['CSV', 'PARQUET'] };
  const forms = getCommands(server(), { path: paths.sum(column, 'parquet'), grpc: ['tally.v1.Tally/Sum', both] });
  return { ...forms, tally: `tally sum --format both -- ${shell(column)}` };
}
