/** Jobs: statistics and file-processing tasks, their progress and results, and a form for a new task. */

import { api, Problem } from '../api.js';
import { live } from '../live.js';
import { h, fill, keepFocus, setText } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { link } from '../lib/router.js';
import { getCommands } from '../lib/commands.js';
import { button, download, errorBox, nameOf, section, timeOf } from '../ui/cells.js';
import { copyAs, server } from '../ui/copy-as.js';
import { dataTable } from '../ui/data-table.js';
import { field } from '../ui/dialect-form.js';
import { jobState } from '../ui/job-state.js';
import { pageHead } from '../ui/page-head.js';
import { announce } from '../ui/announce.js';

export const title = 'Jobs';

const REFRESH_MS = 1000;
const NONE = 'Jobs are asked for over HTTP: there is no such gRPC call or command.';
const STATES = { '': ['All', () => true], undone: ['Not ended', isUndone], failed: ['Failed', ({ state }) => state === 'failed'] };

const filterOf = (params) => (Object.hasOwn(STATES, params.get('state')) ? params.get('state') : '');

function isUndone({ state }) {
  return state === 'queued' || state === 'running';
}

export function show(root, params, signal) {
  let filter = filterOf(params);
  let jobs = [];
  let isLoading = false;
  const note = h('span.note');
  const filters = h('div.choices', { role: 'group', 'aria-label': 'Which jobs' });
  const table = dataTable({ caption: 'Jobs, the newest first', columns: columnsOf(refresh), rows: [], noun: 'job' });
  const list = h('div', { 'data-testid': 'jobs' });
  root.append(
    pageHead(title, 'Work that is asked for now and fetched later. It survives a restart of the server.', [copyAs(() => getCommands(server(), { path: '/api/v1/jobs', none: NONE }))]),
    h('div.list-head', null, filters, h('div.row.end', null, note)), list, h('div.apart', null, newTask(refresh)));

  function draw() {
    const choice = ([key, [label, test]]) => h('a.choice', { href: link('jobs', { state: key }), 'aria-current': key === filter ? 'true' : null }, label, ' ', h('span.unit', null, format.number(jobs.filter(test).length)));
    keepFocus(filters, () => fill(filters, Object.entries(STATES).map(choice)));
    if (jobs.length === 0) {
      fill(list, h('div.empty', null, h('h2', null, 'No jobs yet'), h('p', null, 'A statistic is a job, and so is the group sum of a file that does not become part of the table.'),
        h('div.row', null, h('a.button.primary', { href: '#/statistics' }, 'Ask for a statistic'))));
      return;
    }
    if (table.element.parentNode !== list) fill(list, table.element);
    table.setRows(jobs.filter(STATES[filter][1]));
  }

  async function refresh() {
    if (isLoading) return;
    isLoading = true;
    try {
      const answer = await api.jobs(signal);
      const isChanged = JSON.stringify(answer.jobs) !== JSON.stringify(jobs);
      jobs = answer.jobs;
      // A list that is the same is left alone, with the focus and the selection in it.
      if (isChanged || !list.hasChildNodes()) draw();
      setText(note, answer.undone > 0 ? `${format.count(answer.undone, 'job')} not ended` : '');
    } catch (error) {
      if (!signal.aborted && jobs.length === 0) fill(list, errorBox(error));
    }
    isLoading = false;
  }

  let last = '';
  const timer = setInterval(() => {
    const counts = JSON.stringify(live.stats?.jobs ?? null);
    if (live.state === 'off' || (counts === last && !jobs.some(isUndone))) return;
    last = counts;
    refresh();
  }, REFRESH_MS);
  signal.addEventListener('abort', () => clearInterval(timer));
  live.onBack(refresh, signal);
  refresh();
  return (newParams) => {
    filter = filterOf(newParams);
    draw();
  };
}

function columnsOf(refresh) {
  return [
    { label: 'Job', class: 'cut', cell: (job) => h('code', null, nameOf(job.id)) },
    { label: 'Kind', class: 'wide', cell: (job) => (job.kind === 'task' ? 'file task' : 'statistic') },
    { label: 'Since', class: 'wide', cell: (job) => timeOf(job.since) },
    { label: 'State', cell: (job) => [jobState(job), progressOf(job), job.reason ? h('div.reason', null, format.visible(format.cut(job.reason, 300))) : null] },
    { label: '', class: 'actions', cell: (job) => actions(job, refresh) },
  ];
}

function progressOf({ state, done, total }) {
  return state === 'running' && total > 0 ? h('progress', { max: String(total), value: String(done ?? 0), 'aria-label': 'Progress' }) : null;
}

function actions(job, refresh) {
  if (isUndone(job)) {
    return button('Cancel', async () => {
      try {
        await api.cancel(job.kind, job.id);
        announce(`Job ${job.id} was cancelled.`);
      } catch (problem) {
        announce(problem.message);
      }
      refresh();
    }, { 'aria-label': `Cancel ${job.id}` });
  }
  if (!job.result) return null;
  // A statistic's result is JSON without a name; a task's is a CSV file.
  const link = download('Download', job.result, `Download the result of ${job.id}`);
  if (job.kind === 'statistic') link.setAttribute('download', `${job.id}.json`);
  return link;
}

function newTask(refresh) {
  const file = h('input', { type: 'file', name: 'file', accept: '.csv', required: true });
  const by = h('input', { name: 'by', value: 'Song,Date', required: true, autocomplete: 'off', spellcheck: 'false' });
  const sum = h('input', { name: 'sum', value: 'Number of Plays', required: true, autocomplete: 'off', spellcheck: 'false' });
  const result = h('div', { role: 'status' });
  const submit = h('button.button.primary', { type: 'submit' }, 'Start the task');
  const form = h('form.form-row', { 'aria-label': 'New file task', on: { submit: start } },
    field('CSV file', file), field('Group by', by), field('Sum', sum), submit);

  async function start(event) {
    event.preventDefault();
    submit.disabled = true;
    fill(result, h('p.note', null, 'Sending the file…'));
    try {
      const { task } = await api.task(file.files[0], { group_by: by.value, sum: sum.value });
      fill(result, h('p.note', null, `Task ${task.id} was accepted.`));
      form.reset();
    } catch (error) {
      fill(result, error instanceof Problem ? errorBox(error) : h('p.note', null, String(error)));
    }
    submit.disabled = false;
    refresh();
  }

  return section('New file task', { note: 'groups and sums one file, which does not become part of the table; several columns are written as a row of CSV' }, form, result);
}
