/** The options of an upload, for files that are not plain CSV. */

import { h } from '../lib/dom.js';

const DELIMITERS = [['', 'comma'], [';', 'semicolon'], ['tab', 'tab'], ['|', 'pipe']];
const ENCODINGS = ['utf-8', 'windows-1252', 'iso-8859-15', 'utf-16le', 'utf-16be', 'shift_jis', 'gbk', 'euc-kr', 'windows-1251'];
const COMPRESSIONS = [['', 'recognise gzip and zstd'], ['gzip', 'gzip'], ['zstd', 'zstd']];

/** The options in a view's link. */
export function optionsOf(params) {
  const options = {};
  for (const name of ['delimiter', 'encoding', 'trim', 'drop_trailing_empty', 'decompress']) {
    if (params.get(name)) options[name] = params.get(name);
  }
  if (params.getAll('null').length > 0) options.null = params.getAll('null');
  return options;
}

/** @param {(options: object) => void} onChange */
export function dialectForm(options, onChange) {
  const choice = (name, values) => {
    const known = values.some(([value]) => value === (options[name] ?? ''));
    const all = known ? values : [...values, [options[name], options[name]]];
    return h('select', { name }, all.map(([value, text]) => h('option', { value, selected: value === (options[name] ?? '') }, text)));
  };
  const check = (name, text) => h('label.check', null, h('input', { type: 'checkbox', name, checked: options[name] === 'true' }), text);
  const encodings = h('datalist', { id: 'encodings' }, ENCODINGS.map((value) => h('option', { value })));
  const form = h('form.form-grid', { 'aria-label': 'Options for files that are not plain CSV', on: { submit: (event) => event.preventDefault(), change: () => onChange(read(form)) } },
    field('Delimiter', choice('delimiter', DELIMITERS)),
    field('Encoding', h('input', { name: 'encoding', list: 'encodings', placeholder: 'utf-8', value: options.encoding ?? '', autocomplete: 'off', spellcheck: 'false' }), encodings),
    field('Compression', choice('decompress', COMPRESSIONS)),
    field('Texts for no value, one a line', h('textarea', { name: 'null', rows: '2', placeholder: 'NA', value: (options.null ?? []).join('\n'), spellcheck: 'false' })),
    h('div.checks', null, check('trim', 'Remove white space around cells'), check('drop_trailing_empty', 'Remove empty cells at the end of rows')));
  return form;
}

export function field(label, ...controls) {
  return h('label.field', null, h('span.field-label', null, label), controls);
}

function read(form) {
  const options = {};
  for (const name of ['delimiter', 'encoding', 'decompress']) {
    const value = form.elements[name].value.trim();
    if (value) options[name] = value;
  }
  const nulls = form.elements.null.value.split('\n').filter((line) => line !== '');
  if (nulls.length > 0) options.null = nulls;
  for (const name of ['trim', 'drop_trailing_empty']) if (form.elements[name].checked) options[name] = 'true';
  return options;
}
