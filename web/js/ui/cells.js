/** Small pieces that all views share: quantities, names, errors, empty states. */

import { access, api } from '../api.js';
import { h, icon, ICONS } from '../lib/dom.js';
import { sentence } from '../lib/suggest.js';
import { agoText, number, size, timeText, visible } from '../lib/format.js';

/** A figure with its unit in grey. */
export function quantity(figure, unit) {
  return unit ? [figure, h('span.unit', null, `\u00a0${unit}`)] : [figure];
}

export function bytesOf(bytes) {
  const { figure, unit } = size(bytes);
  return quantity(figure, unit);
}

/** A name from data, with what cannot be seen made visible. The empty name has a word. */
export function nameOf(name) {
  return name === '' ? h('span.none', null, '(no name)') : h('bdi', { title: name.length > 60 ? visible(name.slice(0, 500)) : null }, visible(name));
}

export function timeOf(rfc3339) {
  return rfc3339 ? h('time', { datetime: rfc3339, title: agoText(rfc3339) }, timeText(rfc3339)) : h('span.none', null, '–');
}

const TYPE_NAMES = { int64: 'integer', float64: 'decimal', boolean: 'boolean', date32: 'date', timestamp: 'timestamp', timestamp_utc: 'timestamp UTC', utf8: 'text' };

/** The types that a column has in its parts. */
export function typesOf(types) {
  const name = (type) => h('span.type', { title: type }, TYPE_NAMES[type] ?? type);
  if (types.length <= 1) return types.map(({ type }) => name(type));
  return types.map(({ type, parts }, at) => [at > 0 ? ', ' : '', name(type), h('span.unit', { title: `in ${number(parts)} parts` }, ` ${number(parts)}`)]);
}

export const typeName = (type) => TYPE_NAMES[type] ?? type;

/** What went wrong, where, and what to do. */
export function errorBox(problem, ...actions) {
  const { part, row, line, column, hint } = problem.fields ?? {};
  const isNamed = row !== undefined && problem.message.includes(`row ${row}`);
  const place = isNamed ? [] : [
    part === undefined ? null : `part ${number(part)}`,
    row === undefined ? null : row === 0 ? 'header' : `row ${number(row)}`,
    line === undefined ? null : `line ${number(line)}`,
    column === undefined ? null : `column "${visible(column)}"`,
  ].filter(Boolean);
  return h('div.error', { role: 'alert' },
    h('p', null, visible(sentence(problem.message))),
    hint ? h('p.hint', null, visible(sentence(hint))) : null,
    place.length > 0 ? h('p.place', null, place.join(' · ')) : null,
    actions.length > 0 ? h('div.row', null, actions) : null);
}

export function button(label, onClick, { kind = '', symbol = null, ...props } = {}) {
  return h('button.button', { type: 'button', class: kind, ...props, on: { click: onClick } }, symbol ? icon(ICONS[symbol]) : null, label);
}

/** A button with an icon alone. */
export function iconButton(label, symbol, onClick) {
  return h('button.icon-button', { type: 'button', 'aria-label': label, title: label, on: { click: onClick } }, icon(ICONS[symbol]));
}

export function download(label, href, description) {
  const anchor = h('a.button', { href, download: '', 'aria-label': description ?? null, on: { click: follow } }, icon(ICONS.down), label);
  let said;
  // A browser that follows a link sends no token.
  async function follow(event) {
    if (access.token === null) return;
    event.preventDefault();
    try {
      h('a', { href: await api.ticketed(href), download: anchor.getAttribute('download') }).click();
    } catch (problem) {
      said?.remove();
      anchor.after(said = errorBox(problem));
    }
  }
  return anchor;
}

/** A section with a heading, and what can be done with it on the right. */
export function section(title, { note = null, actions = [], id = null } = {}, ...children) {
  return h('section.section', { 'aria-label': title, id },
    h('header.section-head', null, h('h2', null, title), note ? h('span.note', null, note) : null, h('div.row.end', null, actions)),
    children);
}

/** A state of a job, a file or the server: a dot with its colour, and always a word. */
export function status(kind, text) {
  return h('span.status', { class: kind }, h('span.dot', { 'aria-hidden': 'true' }), text);
}

/** Where a list has the time of an upload, if the receipt of the part cannot be read. */
export function damagedReceipt(part) {
  return h('span', { title: visible(part.damaged) }, status('bad', 'damaged receipt'));
}

/** A bar of progress. */
export function progressBar(label) {
  const value = h('span.progress-value');
  const bar = h('div.progress', { role: 'progressbar', 'aria-label': label, 'aria-valuemin': '0', 'aria-valuemax': '100' }, value);
  return {
    element: bar,
    /** @param {number|null} share 0 to 1, or null if it is not known */
    set(share, kind = '') {
      const percent = share === null ? 0 : Math.max(0, Math.min(100, share * 100));
      value.style.width = `${percent}%`;
      if (share === null) bar.removeAttribute('aria-valuenow');
      else bar.setAttribute('aria-valuenow', String(Math.floor(percent)));
      bar.dataset.kind = kind;
    },
  };
}
