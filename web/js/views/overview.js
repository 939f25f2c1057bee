/** Overview: how large the table is, how it grew, and what the server does now. */

import { api } from '../api.js';
import { live, HISTORY } from '../live.js';
import { h, fill, setText } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { axisText } from '../lib/scale.js';
import { link } from '../lib/router.js';
import { bytesOf, damagedReceipt, errorBox, nameOf, section, timeOf } from '../ui/cells.js';
import { copyAs, server } from '../ui/copy-as.js';
import { getCommands } from '../lib/commands.js';
import { demoButton, fileButtons } from '../ui/add-files.js';
import { lineChart } from '../ui/line-chart.js';
import { jobState } from '../ui/job-state.js';
import { pageHead } from '../ui/page-head.js';

export const title = 'Overview';

const RECENT = 8;
/** While parts are added, what is asked for again is asked for at most this often. */
const REFRESH_MS = 4000;
// The server reads the receipts of many parts for it.
const GROWTH_MS = 30_000;

const COMMANDS = {
  path: '/api/v1/table', tally: 'parts', grpc: ['tally.v1.Tally/ListParts', {}],
};

export function show(root, params, signal) {
  const notice = h('div');
  const body = h('div.stack');
  root.append(pageHead(title, 'What the table holds and what the server does now.', [copyAs(() => getCommands(server(), COMMANDS))]), notice, body);
  let parts = null;
  let jobCounts = null;
  let refreshed = 0;
  let growth = null;
  let grownAt = 0;
  let timer = 0;
  let view = null;

  async function refresh() {
    refreshed = Date.now();
    try {
      const isOld = !growth || refreshed - grownAt >= GROWTH_MS;
      const [overview, grown, recent, jobs] = await Promise.all([
        api.overview(signal), isOld ? api.growth(signal) : growth, api.parts({ order: 'newest', limit: RECENT }, signal), api.jobs(signal),
      ]);
      if (signal.aborted) return;
      if (isOld) grownAt = refreshed;
      growth = grown;
      parts = overview.parts;
      fill(notice, overview.quarantined > 0 ? quarantineNotice(overview.quarantined) : null);
      if (parts === 0 && overview.removed === 0 && overview.quarantined === 0) {
        view = null;
        fill(body, emptyTable());
        return;
      }
      if (!view) {
        view = filled(signal);
        fill(body, view.element);
      }
      view.set({ overview, growth, recent, jobs });
    } catch (error) {
      if (!signal.aborted) fill(notice, errorBox(error));
    }
  }

  live.onStats((stats) => {
    view?.setLive(stats);
    const jobs = JSON.stringify(stats.jobs ?? {});
    jobCounts ??= jobs;
    if (parts === null || (stats.parts === parts && jobs === jobCounts)) return;
    jobCounts = jobs;
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(0, refreshed + REFRESH_MS - Date.now()));
  }, signal);
  live.onBack(refresh, signal);
  signal.addEventListener('abort', () => clearTimeout(timer));
  refresh();
}

function emptyTable() {
  return h('div.empty', null, h('h2', null, 'The table is empty'),
    h('p', null, 'Drop CSV files or folders anywhere on this page. Each file becomes a part of the table, is stored as CSV and as Parquet, and its columns can be summed.'),
    h('div.row', null, fileButtons({ kind: 'primary' }), demoButton()),
    h('p.note', null, 'The demo’s files are four small tables (26 KiB): numbers, song plays by day, and rows of a health survey.'));
}

function quarantineNotice(count) {
  return h('div.error', { role: 'alert' }, h('p', null, `${format.count(count, 'part')} in quarantine: sums are refused, because the stored files are damaged.`),
    h('p.hint', null, 'Restore the files from a backup and restart the server, or accept the loss with tally forget.'));
}

function filled(signal) {
  const figures = keyFigures();
  const growth = growthCharts(signal);
  const activity = liveSection(signal);
  const recent = h('div');
  const jobs = h('div');
  return {
    element: h('div.stack', null, figures.element, growth.element, activity.element,
      h('div.columns-2', null,
        section('Recent parts', { actions: [h('a', { href: link('table', { show: 'parts' }) }, 'All parts')] }, recent),
        section('Recent jobs', { actions: [h('a', { href: '#/jobs' }, 'All jobs')] }, jobs))),
    set(all) {
      figures.set(all.overview);
      growth.set(all.growth.points);
      // What the last event said is shown at once, not a second later.
      if (live.stats) activity.set(live.stats);
      fill(recent, recentParts(all.recent.parts));
      fill(jobs, recentJobs(all.jobs.jobs));
    },
    setLive(stats) {
      figures.set(stats);
      activity.set(stats);
    },
  };
}

function keyFigures() {
  const cell = ([label, testid]) => {
    const value = h('dd.key-value', { 'data-testid': testid }, '–');
    return { value, element: h('div.key-figure', null, h('dt', null, label), value) };
  };
  const cells = [['Rows', 'rows'], ['Parts', 'parts'], ['Columns', 'columns'], ['As CSV', 'csv-bytes'], ['As Parquet', 'parquet-bytes'], ['CSV to Parquet', 'ratio']].map(cell);
  const [rows, parts, columns, csv, parquet, smaller] = cells;
  let latest = {};
  return {
    element: h('dl.key-figures', { 'aria-label': 'The table' }, cells.map((item) => item.element)),
    /** Figures that are not known stay as they are. */
    set(of) {
      latest = { ...latest, ...of };
      setText(rows.value, format.number(latest.rows));
      setText(parts.value, format.number(latest.parts));
      setText(columns.value, format.number(latest.columns));
      fill(csv.value, bytesOf(latest.csv_bytes));
      fill(parquet.value, bytesOf(latest.parquet_bytes));
      fill(smaller.value, format.ratio(latest.csv_bytes, latest.parquet_bytes), h('span.unit', null, '\u00a0: 1'));
    },
  };
}

function growthCharts(signal) {
  const box = h('div.columns-2');
  let charts = null;
  let isTime = null;
  return {
    element: section('Growth', {}, box),
    set(points) {
      const known = points.every((point) => point.uploaded_at) && points.length > 1;
      if (!charts || known !== isTime) {
        isTime = known;
        charts = makeGrowthCharts(isTime, signal);
        fill(box, charts.map((chart) => chart.element));
      }
      // Parts that were uploaded within one second have one point: the last.
      const unique = points.filter((point, at) => !isTime || at === points.length - 1 || Date.parse(points[at + 1].uploaded_at) > Date.parse(point.uploaded_at));
      const xs = unique.map((point) => (isTime ? Date.parse(point.uploaded_at) / 1000 : point.part));
      charts[0].set([xs, unique.map((point) => Number(point.rows))]);
      charts[1].set([xs, unique.map((point) => Number(point.csv_bytes)), unique.map((point) => Number(point.parquet_bytes))]);
    },
  };
}

function makeGrowthCharts(isTime, signal) {
  const x = isTime
    ? { label: 'time of upload', isTime, text: (seconds) => format.timeText(seconds * 1000) }
    : { label: 'part', isTime, rows: 1, text: (part) => `part ${format.number(part)}` };
  const rows = { title: 'Rows in the table', x, signal, series: [{ label: 'rows', colour: '--accent', area: true }], y: { label: 'rows', text: format.number, axisText } };
  const bytes = {
    title: 'Stored bytes', x, signal, series: [{ label: 'CSV', colour: '--grey-line' }, { label: 'Parquet', colour: '--accent' }],
    y: { label: 'bytes', text: format.sizeText, steps: 'binary' },
  };
  return [lineChart(rows), lineChart(bytes)];
}

function liveSection(signal) {
  const clock = (at) => format.timeText(at * 1000).slice(11);
  const seconds = { label: 'time', isTime: true, rows: 1, range: (_, high) => [high - HISTORY, high], tick: clock, text: clock };
  const rate = lineChart({
    title: 'Bytes received a second', x: seconds, height: 160, signal, series: [{ label: 'received', colour: '--accent', area: true }],
    y: { label: 'bytes a second', text: format.rateText, axisText: format.sizeText, steps: 'binary', least: 1024 },
  });
  const memory = lineChart({
    title: 'Memory of the server, and its limit', x: seconds, height: 160, signal, series: [{ label: 'in use', colour: '--accent', area: true }, { label: 'limit', colour: '--grey-line' }],
    y: { label: 'bytes', text: format.sizeText, steps: 'binary' },
  });
  const lanes = h('dl.lanes');
  const running = h('div.running', { 'data-testid': 'running-uploads' });
  const element = section('Now', { note: `the last ${HISTORY / 60} min` },
    h('div.columns-2', null, rate.element, memory.element, h('div', null, h('h3', null, 'Waiting for a worker'), lanes), running));
  return {
    element,
    set(stats) {
      const times = live.history.map((item) => item.time);
      rate.set([times, live.history.map((item) => item.rate)]);
      memory.set([times, live.history.map((item) => item.resident), times.map(() => stats.memory?.limit ?? null)]);
      fill(lanes, LANES.map((lane) => h('div', null, h('dt', null, `${lane}s`), h('dd', null, format.number(stats.queue?.[lane])))));
      fill(running, runningUploads(stats));
    },
  };
}

/** The lanes of the queue, in the order of the page. */
const LANES = ['upload', 'question', 'job', 'probe'];

function runningUploads({ uploads = [], uploads_count: all = 0 }) {
  const lines = uploads.slice(0, 3).map((item) => h('li', null, h('span', null, item.peer ? `from ${item.peer}` : 'by the server itself'), h('span.num', null, bytesOf(item.bytes))));
  const head = h('h3', null, all === 0 ? 'No upload is running' : `${format.count(all, 'upload')} running`);
  return [head, h('ul.plain', null, lines)];
}

function recentParts(parts) {
  const row = (part) => h('tr', null,
    h('td', null, h('a', { href: link('table', { show: 'parts', part: part.part }) }, `part ${format.number(part.part)}`)),
    h('td', null, part.damaged ? damagedReceipt(part) : timeOf(part.uploaded_at)), h('td.num', null, format.number(part.rows)), h('td.num', null, bytesOf(part.csv.bytes)));
  return recentTable('The newest parts', ['Part', 'Time', 'Rows', 'CSV'], parts.map(row), 'No parts.');
}

function recentJobs(jobs) {
  const row = (job) => h('tr', null, h('td.cut.narrow', null, h('code', null, nameOf(job.id))), h('td', null, timeOf(job.since)), h('td', null, jobState(job)));
  return recentTable('The newest jobs', ['Job', 'Since', 'State'], jobs.slice(0, RECENT).map(row), 'No jobs yet. Statistics and file tasks are jobs.', 3);
}

function recentTable(caption, heads, rows, none, numbersFrom = 2) {
  if (rows.length === 0) return h('p.note', null, none);
  return h('div.scroll', null, h('table.data', null, h('caption.off-screen', null, caption),
    h('thead', null, h('tr', null, heads.map((head, at) => h('th', { scope: 'col', class: at >= numbersFrom ? 'num' : null }, head)))),
    h('tbody', null, rows)));
}
