/** Statistics of a health survey in the table: a question, a state, and what the server makes of all rows. */

import { api } from '../api.js';
import { live } from '../live.js';
import { h, fill, keepFocus } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { link } from '../lib/router.js';
import { statisticCommands } from '../lib/commands.js';
import { errorBox } from '../ui/cells.js';
import { copyAs, server } from '../ui/copy-as.js';
import { demoButton, fileButtons } from '../ui/add-files.js';
import { field } from '../ui/dialect-form.js';
import { pageHead } from '../ui/page-head.js';
import { KINDS } from './statistics-kinds.js';

export const title = 'Statistics';

const kindOf = (params) => (Object.hasOwn(KINDS, params.get('show')) ? params.get('show') : 'means');

export function show(root, params, signal) {
  let asked = { question: params.get('question') ?? '', state: params.get('state') ?? '', show: kindOf(params) };
  let questions = [];
  let running = new AbortController();
  const question = h('select', { name: 'question', on: { change: () => change({ question: question.value }) } });
  const state = h('select', { name: 'state', on: { change: () => change({ state: state.value }) } });
  const tabs = h('nav.tabs', { 'aria-label': 'Statistics' });
  const result = h('div.stack.close', { 'data-testid': 'statistics-result' });
  const form = h('div', null, h('div.form-row.wide-first', null, field('Question', question), field('State', state)), h('div.tabs-space', null, tabs), result);
  const body = h('div.stack');
  root.append(pageHead(title, 'Means of a health survey, computed on the server over all rows.', [copyAs(() => commands(asked))]), body);

  function change(more) {
    asked = { ...asked, ...more };
    history.replaceState(null, '', link('statistics', asked));
    drawForm();
    run();
  }

  function drawForm() {
    const tab = ([key, kind]) => h('a.tab', { href: link('statistics', { ...asked, show: key }), 'aria-current': key === asked.show ? 'page' : null }, kind.title);
    keepFocus(tabs, () => fill(tabs, Object.entries(KINDS).map(tab)));
    question.value = asked.question;
    state.value = asked.state;
  }

  async function run() {
    running.abort();
    running = new AbortController();
    const { signal: mine } = running;
    result.setAttribute('aria-busy', 'true');
    try {
      const shown = await KINDS[asked.show].ask(asked, mine);
      if (!mine.aborted) fill(result, questionFacts(questions, asked.question), shown);
    } catch (error) {
      if (!mine.aborted) fill(result, errorBox(error));
    }
    if (!mine.aborted) result.removeAttribute('aria-busy');
  }

  async function load() {
    try {
      const [answer, states] = await Promise.all([api.questions(signal), api.states(undefined, signal)]);
      questions = answer.questions;
      if (questions.length === 0) {
        fill(body, noSurvey());
        return;
      }
      const isKnown = questions.some((item) => item.question === asked.question);
      if (!asked.question || (!isKnown && answer.complete)) asked.question = questions[0].question;
      const names = questions.map((item) => item.question);
      if (!isKnown && !names.includes(asked.question)) names.unshift(asked.question);
      fill(question, names.map((name) => h('option', { value: name }, format.visible(format.cut(name, 200)))));
      const stateNames = asked.state && !states.states.includes(asked.state) ? [asked.state, ...states.states] : states.states;
      fill(state, h('option', { value: '' }, 'All states'), stateNames.map((name) => h('option', { value: name }, format.visible(format.cut(name, 80)))));
      fill(body, form);
      drawForm();
      run();
    } catch (error) {
      if (!signal.aborted) fill(body, errorBox(error));
    }
  }

  live.onBack(load, signal);
  signal.addEventListener('abort', () => running.abort());
  addEventListener('pagehide', () => running.abort(), { signal });
  load();
  return (newParams) => {
    asked = { question: newParams.get('question') || asked.question, state: newParams.get('state') ?? '', show: kindOf(newParams) };
    drawForm();
    run();
  };
}

function questionFacts(questions, question) {
  const known = questions.find((item) => item.question === question);
  return known ? h('p.note', null, `${format.count(known.rows, 'row')}; the ${known.best === 'min' ? 'smallest' : 'largest'} mean is the best`) : null;
}

function commands({ question, state, show: kind }) {
  const { job, perState } = KINDS[kind];
  const isOfState = state !== '' && perState;
  return statisticCommands(server(), isOfState ? perState : job, isOfState ? { question, state } : { question });
}

function noSurvey() {
  return h('div.empty', null, h('h2', null, 'No survey in the table'),
    h('p', null, 'Statistics need a file with the columns Question, LocationDesc, Data_Value, StratificationCategory1 and Stratification1. The demo has one.'),
    h('div.row', null, demoButton(), fileButtons()));
}
