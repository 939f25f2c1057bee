/** The frame of a chart: a title that says what it shows, a line for values, and a table of the same numbers. */

import { h, fill, icon, ICONS } from '../lib/dom.js';
import { announce } from './announce.js';

const CELLS_SHOWN_MAX = 500;

/**
 * @param {object} options
 * @param {string} options.title
 * @param {Node} options.plot
 * @param {Node|null} [options.readout] the values at the pointer, or the last ones
 * @param {() => {head: string[], rows: any[][], left?: string}} options.numbers the same numbers; all columns but the first
 *   are numbers
 */
export function figure({ title, plot, readout = null, numbers }) {
  const tableBox = h('div.figure-table', { hidden: true, tabindex: '0', role: 'group', 'aria-label': `${title}, as a table` });
  const toggle = h('button.icon-button.figure-toggle', { type: 'button', 'aria-pressed': 'false', title: 'As a table (t)', 'aria-label': `Show as a table: ${title}`, 'aria-keyshortcuts': 't', on: { click: flip } }, icon(ICONS.table));
  const body = h('div.figure-body', null, plot, tableBox);
  const element = h('figure.figure', { 'aria-label': title }, h('figcaption', null, h('span.figure-title', null, title), toggle), readout, body);

  function flip() {
    const showTable = tableBox.hidden;
    if (showTable) {
      // The table takes the place of the plot, no more and no less.
      tableBox.style.height = `${Math.max(plot.offsetHeight, 120)}px`;
      fill(tableBox, numbersTable(title, numbers()));
    }
    tableBox.hidden = !showTable;
    plot.hidden = showTable;
    toggle.setAttribute('aria-pressed', String(showTable));
    announce(showTable ? `${title}: shown as a table.` : `${title}: shown as a chart.`);
    element.dispatchEvent(new Event('flip'));
  }

  return {
    element,
    refresh() {
      if (!tableBox.hidden) fill(tableBox, numbersTable(title, numbers()));
    },
  };
}

function numbersTable(title, { head, rows, left = '' }) {
  const shown = rows.slice(0, CELLS_SHOWN_MAX);
  const note = rows.length > shown.length ? `The first ${CELLS_SHOWN_MAX} of ${rows.length}.` : left;
  return [
    h('table.data', null, h('caption.off-screen', null, title),
      h('thead', null, h('tr', null, head.map((name, at) => h('th', { scope: 'col', class: at > 0 ? 'num' : null }, name)))),
      h('tbody', null, shown.map((row) => h('tr', null, row.map((cell, at) => h('td', { class: at > 0 ? 'num' : null }, cell)))))),
    note ? h('p.note', null, note) : null,
  ];
}

/** Shows the chart that the person is at as a table, or back: the key `t`. */
export function flipNearest() {
  const figures = Array.from(document.querySelectorAll('.figure'));
  const isNear = (test) => figures.find(test);
  const found = isNear((item) => item.contains(document.activeElement)) ?? isNear((item) => item.matches(':hover')) ??
    isNear((item) => item.getBoundingClientRect().bottom > 80 && item.getBoundingClientRect().top < innerHeight);
  found?.querySelector('.figure-toggle').click();
}
