/** The head of a view: its title, one sentence, and what can be done. */

import { h } from '../lib/dom.js';

export function pageHead(title, lead, actions = []) {
  return h('header.page-head', null, h('div', null, h('h1', null, title), h('p.lead', null, lead)), h('div.row.end', null, actions));
}
