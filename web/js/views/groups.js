/** Group sums: columns to group by, columns to sum, the largest groups as bars, or days as a line. */

import { api, paths } from '../api.js';
import { h, fill } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { axisText } from '../lib/scale.js';
import { link } from '../lib/router.js';
import { columnList, getCommands, shell } from '../lib/commands.js';
import { barChart } from '../ui/bar-chart.js';
import { button, download, errorBox, nameOf } from '../ui/cells.js';
import { columnPicker, loadColumns } from '../ui/column-picker.js';
import { copyAs, server } from '../ui/copy-as.js';
import { dataTable } from '../ui/data-table.js';
import { demoButton } from '../ui/add-files.js';
import { field } from '../ui/dialect-form.js';
import { lineChart } from '../ui/line-chart.js';
import { pageHead } from '../ui/page-head.js';

export const title = 'Group sums';

const LIMITS = [10, 20, 50, 100, 1000];
const BARS_MAX = 50;
/** The days of one line: 27 years. */
const DAYS_MAX = 10000;
const DAY = /^\d{4}-\d\d-\d\d$/;

/** @returns {{by: string[], sum: string[], limit: number}} the question in a link */
function questionOf(params) {
  const limit = Number(params.get('limit'));
  return { by: params.getAll('by'), sum: params.getAll('sum'), limit: LIMITS.includes(limit) ? limit : 20 };
}

const isComplete = ({ by, sum }) => by.length > 0 && sum.length > 0;

export function show(root, params, signal) {
  let question = questionOf(params);
  let columns = [];
  let running = new AbortController();
  const change = (more) => {
    question = { ...question, ...more };
    history.replaceState(null, '', link('groups', question));
    run();
  };
  const isNumber = ({ types }) => types.some(({ type }) => type === 'int64' || type === 'float64');
  const by = columnPicker({ label: 'Group by', chosen: question.by, suits: (column) => !isNumber(column), onChange: (names) => change({ by: names }) });
  const sum = columnPicker({ label: 'Sum', chosen: question.sum, suits: isNumber, onChange: (names) => change({ sum: names }) });
  const limit = h('select', { name: 'limit', on: { change: () => change({ limit: Number(limit.value) }) } }, LIMITS.map((count) => h('option', { value: String(count), selected: count === question.limit }, `the largest ${format.number(count)}`)));
  const result = h('div.stack', { 'data-testid': 'groups-result' });
  root.append(pageHead(title, 'Add up columns for each group of rows, over all parts that have these columns.', [copyAs(() => commands(question))]),
    h('div.form-row', null, by.element, sum.element, field('Show', limit)), result);

  async function run() {
    running.abort();
    running = new AbortController();
    const { signal: mine } = running;
    if (!isComplete(question)) {
      fill(result, guide(columns, (more) => { by.choose(more.by); sum.choose(more.sum); change(more); }));
      return;
    }
    result.setAttribute('aria-busy', 'true');
    try {
      const answer = await ask(question, columns, mine);
      if (!mine.aborted) fill(result, resultOf(question, answer, mine));
    } catch (error) {
      if (!mine.aborted) fill(result, errorBox(error));
    }
    if (!mine.aborted) result.removeAttribute('aria-busy');
  }

  async function start() {
    try {
      columns = await loadColumns(signal);
      by.setColumns(columns);
      sum.setColumns(columns);
    } catch (error) {
      if (!signal.aborted) fill(result, errorBox(error));
      return;
    }
    run();
  }

  signal.addEventListener('abort', () => running.abort());
  start();
  return (newParams) => {
    question = questionOf(newParams);
    by.choose(question.by);
    sum.choose(question.sum);
    limit.value = String(question.limit);
    run();
  };
}

/** A single column of dates is asked for in the order of days, all else by the largest total. */
async function ask({ by, sum, limit }, columns, signal) {
  const column = by.length === 1 ? columns.find(({ name }) => name === by[0]) : null;
  const isDate = column?.types.every(({ type }) => type === 'date32') ?? false;
  const top = api.groups({ by, sum, order: 'total', limit }, signal);
  if (!isDate) return { top: await top, days: null };
  const [largest, days] = await Promise.all([top, api.groups({ by, sum, order: 'key', limit: DAYS_MAX }, signal)]);
  return { top: largest, days };
}

function resultOf(question, { top, days }, signal) {
  const { by, sum } = question;
  if (top.groups.length === 0) return h('div.empty', null, h('h2', null, 'No groups'), h('p', null, 'No part has all of these columns together. Group sums read only parts that have every column of the question.'));
  const csv = paths.groups({ by, sum, order: 'key', format: 'csv' });
  return [
    h('div.row.between', null, h('p.note', { role: 'status' }, summary(top)), download('All groups as CSV', csv)),
    days ? daysChart(question, days, signal) : null,
    chartOf(question, top),
    groupTable(question, top),
  ];
}

function summary({ groups, more, groups_count: count, elapsed_ms: elapsed }) {
  const shown = more ? `The largest ${format.number(groups.length)} of ${count === undefined ? 'more groups' : format.count(count, 'group')}` : `All ${format.count(groups.length, 'group')}`;
  return elapsed === undefined ? shown : `${shown}, in ${format.durationText(elapsed)}`;
}

const label = (key) => key.map((cell) => (cell === '' ? '(empty)' : cell)).join(' · ');

function chartOf({ by, sum }, { groups }) {
  const bars = groups.slice(0, BARS_MAX).map(({ key, totals }) => ({ label: label(key), value: format.approximate(totals[0]), text: format.number(totals[0]) }));
  return barChart({ title: `${sum[0]} by ${by.join(' and ')}: the largest ${format.number(bars.length)}`, label: by.join(' · '), valueLabel: sum[0], bars });
}

function daysChart({ by, sum }, { groups, more }, signal) {
  const days = groups.filter(({ key }) => DAY.test(key[0]));
  const left = groups.length - days.length;
  const chart = lineChart({
    title: `${sum.join(', ')} by ${by[0]}${more ? `, the first ${format.number(DAYS_MAX)} days` : ''}${left > 0 ? ', without rows that have no date' : ''}`, signal, height: 240,
    x: { label: by[0], isTime: true, utc: true, isDays: true, text: (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10) },
    y: { label: sum[0], text: format.number, axisText },
    series: sum.slice(0, 2).map((name, at) => ({ label: name, colour: at === 0 ? '--accent' : '--grey-line', area: at === 0 })),
  });
  // The chart has to be in the page before it knows its width.
  requestAnimationFrame(() => chart.set([days.map(({ key }) => Date.parse(key[0]) / 1000), ...sum.slice(0, 2).map((_, at) => days.map(({ totals }) => format.approximate(totals[at])))]));
  return chart.element;
}

function groupTable({ by, sum }, { groups }) {
  return dataTable({
    caption: 'Groups', rows: groups, noun: 'group', columns: [
      ...by.map((name, at) => ({ label: name, class: 'text', key: (group) => group.key[at], cell: (group) => nameOfCell(group.key[at]) })),
      ...sum.map((name, at) => ({ label: name, number: true, key: (group) => BigInt(group.totals[at]), cell: (group) => format.number(group.totals[at]) })),
    ],
  }).element;
}

const nameOfCell = (text) => (text === '' ? h('span.none', null, 'empty') : nameOf(text));

/** What to do first; with the demo's columns in the table, their question is one click. */
function guide(columns, choose) {
  const names = new Set(columns.map(({ name }) => name));
  const hasPlays = ['Song', 'Date', 'Number of Plays'].every((name) => names.has(name));
  const tries = hasPlays
    ? [button('Plays by song', () => choose({ by: ['Song'], sum: ['Number of Plays'] }), { kind: 'primary' }), button('Plays by day', () => choose({ by: ['Date'], sum: ['Number of Plays'] }))]
    : columns.length === 0 ? [demoButton()] : [];
  const text = columns.length === 0 ? 'The table has no columns yet. Drop a CSV file anywhere on this page.' : 'Choose at least one column to group by, and one of integers to sum.';
  return h('div.empty', null, h('h2', null, 'Nothing asked yet'), h('p', null, text), tries.length > 0 ? h('div.row', null, tries) : null);
}

function commands({ by, sum, limit }) {
  return getCommands(server(), {
    path: paths.groups({ by, sum, order: 'total', limit }),
    grpc: ['tally.v1.Tally/GroupSum', { by, sum }],
    // The command sums one file; it does not ask the server.
    tally: `group-sum file.csv --by=${shell(columnList(by))} --sum=${shell(columnList(sum))}   # of one file, without a server`,
  });
}
