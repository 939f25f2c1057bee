/** A field for several column names: chosen ones are chips, and names are suggested while one is typed. */

import { api } from '../api.js';
import { h, fill } from '../lib/dom.js';
import { number } from '../lib/format.js';
import { nameOf, typeName } from './cells.js';

const SUGGESTED_MAX = 12;
let lastId = 0;

/** All columns, loaded once for a view. */
export async function loadColumns(signal) {
  const all = [];
  let after = null;
  do {
    const answer = await api.columns({ limit: 1000, after }, signal);
    all.push(...answer.columns);
    after = answer.next ?? null;
  } while (after !== null && all.length < 50000);
  return all;
}

/**
 * @param {{label: string, chosen: string[], suits?: (column: object) => boolean, onChange: (names: string[]) => void}} options
 * @returns {{element: HTMLElement, setColumns: (columns: object[]) => void, choose: (names: string[]) => void}}
 */
export function columnPicker({ label, chosen, suits = () => true, onChange }) {
  const id = `picker-${(lastId += 1)}`;
  let names = [...chosen];
  let columns = [];
  let options = [];
  let active = -1;
  const chips = h('span.chips');
  const list = h('ul.suggestions', { id: `${id}-list`, role: 'listbox', 'aria-label': label, hidden: true });
  const field = h('input.picker-field', {
    id, role: 'combobox', 'aria-expanded': 'false', 'aria-controls': `${id}-list`, 'aria-autocomplete': 'list', autocomplete: 'off', spellcheck: 'false', placeholder: 'Add a column',
    on: { input: suggest, focus: suggest, click: suggest, keydown: onKey, blur: () => setTimeout(close, 0) },
  });
  const element = h('div.field.picker', null, h('label.field-label', { for: id }, label), h('div.picker-box', null, chips, field, list));

  function draw() {
    fill(chips, names.map((name) => h('span.chip', null, nameOf(name), h('button.chip-remove', { type: 'button', 'aria-label': `Remove ${name}`, on: { click: () => change(names.filter((other) => other !== name)) } }, '×'))));
  }

  function change(newNames) {
    names = newNames;
    draw();
    onChange(names);
  }

  function suggest() {
    const wanted = field.value.toLocaleLowerCase();
    const free = columns.filter(({ name }) => !names.includes(name) && name.toLocaleLowerCase().includes(wanted));
    options = [...free.filter(suits), ...free.filter((column) => !suits(column))].slice(0, SUGGESTED_MAX);
    active = -1;
    fill(list, options.map((column, at) => h('li', { id: `${id}-${at}`, role: 'option', 'aria-selected': 'false', on: { pointerdown: (event) => { event.preventDefault(); take(column.name); } } },
      nameOf(column.name), h('span.unit', null, column.types.map(({ type }) => typeName(type)).join(', ')))),
    free.length > options.length ? h('li.note', { role: 'presentation' }, `${number(free.length - options.length)} more: type to find them`) : null);
    list.hidden = options.length === 0;
    field.setAttribute('aria-expanded', String(!list.hidden));
  }

  function take(name) {
    field.value = '';
    change([...names, name]);
    suggest();
  }

  function close() {
    list.hidden = true;
    field.setAttribute('aria-expanded', 'false');
    field.removeAttribute('aria-activedescendant');
  }

  function move(by) {
    if (list.hidden) suggest();
    if (options.length === 0) return;
    active = (active + by + options.length) % options.length;
    Array.from(list.children).forEach((item, at) => item.getAttribute('role') === 'option' && item.setAttribute('aria-selected', String(at === active)));
    field.setAttribute('aria-activedescendant', `${id}-${active}`);
  }

  function onKey(event) {
    if (event.key === 'ArrowDown') move(1);
    else if (event.key === 'ArrowUp') move(-1);
    else if (event.key === 'Escape') close();
    else if (event.key === 'Backspace' && field.value === '' && names.length > 0) change(names.slice(0, -1));
    else if (event.key === 'Enter') takeTyped();
    else return;
    if (event.key !== 'Backspace') event.preventDefault();
  }

  function takeTyped() {
    if (active >= 0) take(options[active].name);
    else if (columns.some(({ name }) => name === field.value)) take(field.value);
    else if (field.value !== '' && options.length === 1) take(options[0].name);
  }

  draw();
  return {
    element,
    setColumns(newColumns) {
      columns = newColumns;
      // Somebody may be typing already.
      if (document.activeElement === field) suggest();
    },
    choose(newNames) {
      names = [...newNames];
      draw();
    },
  };
}
