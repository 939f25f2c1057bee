/** The statistics that the view shows: what is asked of the server, and how the answer is drawn. */

import { h } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { parseTuple } from '../lib/python-tuple.js';
import { askStatistic } from '../ui/ask-statistic.js';
import { barChart } from '../ui/bar-chart.js';
import { dataTable } from '../ui/data-table.js';
import { nameOf } from '../ui/cells.js';

const VALUE = 'mean of Data_Value';

/** Each asks for one or two jobs. `job` and `perState` are the paths that "copy as" shows. */
export const KINDS = {
  means: { title: 'Means by state', job: 'states_mean', perState: 'state_mean', ask: means },
  ranks: { title: 'Best and worst', job: 'best5', ask: ranks },
  difference: { title: 'Difference from the mean', job: 'diff_from_mean', perState: 'state_diff_from_mean', ask: difference },
  categories: { title: 'By category', job: 'mean_by_category', perState: 'state_mean_by_category', ask: categories },
};

/** The chosen state keeps the accent, and the others step back. */
const toBars = (data, state) => Object.entries(data).map(([label, value]) => ({
  label, value: value ?? 0, text: format.decimal(value), exact: format.number(value), colour: state && label !== state ? 'grey' : undefined,
}));

async function means({ question, state }, signal) {
  const [states, { global_mean: mean }] = await Promise.all([askStatistic('states_mean', { question }, signal), askStatistic('global_mean', { question }, signal)]);
  // The server sorts them, but an object of JavaScript has names that are numbers first.
  const bars = toBars(states, state).sort((a, b) => a.value - b.value);
  if (bars.length === 0) return none();
  return [
    state ? stateSentence(state, states[state], mean) : null,
    barChart({ title: 'Mean of each state, the smallest first', label: 'State', valueLabel: VALUE, bars, mark: { value: mean, label: `mean of all rows ${format.decimal(mean)}` } }),
  ];
}

function stateSentence(state, value, mean) {
  if (value === undefined || value === null) return h('p', null, nameOf(state), ' has no value for this question.');
  const apart = Math.abs(value - mean);
  return h('p.sentence', null, h('strong', null, nameOf(state)), ` ${format.decimal(value)}, ${apart < 0.005 ? 'as the mean of all rows' : `${format.decimal(apart)} ${value > mean ? 'above' : 'below'} the mean of all rows`}.`);
}

async function ranks({ question, state }, signal) {
  const [best, worst] = await Promise.all([askStatistic('best5', { question }, signal), askStatistic('worst5', { question }, signal)]);
  if (Object.keys(best).length === 0) return none();
  const scaleOf = [...Object.values(best), ...Object.values(worst)];
  const chart = (title, data) => barChart({ title, label: 'State', valueLabel: VALUE, bars: toBars(data, Object.hasOwn(data, state) ? state : ''), scaleOf });
  return h('div.columns-2', null, chart('The five best states, the best first', best), chart('The five worst states, the worst first', worst));
}

async function difference({ question, state }, signal) {
  const data = await askStatistic('diff_from_mean', { question }, signal);
  const bars = toBars(data, state).sort((a, b) => b.value - a.value);
  if (bars.length === 0) return none();
  return barChart({ title: 'Mean of all rows minus the mean of each state', label: 'State', valueLabel: 'difference', bars });
}

async function categories({ question, state }, signal) {
  if (state) return ofState(await askStatistic('state_mean_by_category', { question, state }, signal), state);
  const data = await askStatistic('mean_by_category', { question }, signal);
  const rows = Object.entries(data).map(([key, mean]) => {
    const [place, category, group] = parseTuple(key);
    return { place, category: category ?? '', group: group ?? '', mean };
  });
  if (rows.length === 0) return none();
  return [h('p.note', null, 'Choose a state to see its categories as bars.'), dataTable({
    caption: 'Means by state and category', rows, noun: 'mean', columns: [
      { label: 'State', key: (row) => row.place, cell: (row) => nameOf(row.place) },
      { label: 'Category', key: (row) => row.category, cell: (row) => nameOf(row.category) },
      { label: 'Group', key: (row) => row.group, cell: (row) => nameOf(row.group) },
      { label: 'Mean', number: true, key: (row) => row.mean, cell: (row) => h('span', { title: format.number(row.mean) }, format.decimal(row.mean)) },
    ],
  }).element];
}

function ofState(data, state) {
  const byCategory = new Map();
  for (const [key, value] of Object.entries(data[state] ?? {})) {
    const [category, group = ''] = parseTuple(key);
    if (!byCategory.has(category)) byCategory.set(category, []);
    byCategory.get(category).push({ label: group, value, text: format.decimal(value), exact: format.number(value) });
  }
  if (byCategory.size === 0) return none();
  const scaleOf = Object.values(data[state]);
  return h('div.columns-2', null, Array.from(byCategory, ([category, bars]) =>
    barChart({ title: `${format.visible(state)}: ${VALUE} by ${format.visible(category)}`, label: category, valueLabel: VALUE, bars, scaleOf })));
}

const none = () => h('p.note', null, 'No row of the table has a value for this question.');
