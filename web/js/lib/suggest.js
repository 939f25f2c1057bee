/** What can be done about a refused file, as options of another try. Pure functions. */

import { delimiterName, delimiterOption } from './csv-peek.js';

const NAMED = /(?:--)?\b(delimiter|encoding|decompress)(?:=|\s+)(?:"([^"]+)"|([^\s,.]+))/g;

/**
 * @param {{detail: string, hint?: string}} problem
 * @param {{suspect?: string|null}|null} head what was seen at the beginning of the file
 * @param {Record<string, string|string[]>} options of the try that failed
 * @returns {{label: string, options: Record<string, string>}[]}
 */
export function suggestions({ detail, hint = '' }, head, options) {
  const found = new Map();
  const add = (name, value) => {
    if (options[name] !== value) found.set(`${name}=${value}`, { label: labelOf(name, value), options: { [name]: value } });
  };
  const text = `${detail} ${hint}`;
  for (const [, name, quoted, bare] of text.matchAll(NAMED)) add(name, quoted ?? decoded(bare));
  if (/drop[-_]trailing[-_]empty/.test(text)) add('drop_trailing_empty', 'true');
  if (found.size === 0 && head?.suspect && !options.delimiter) add('delimiter', delimiterOption(head.suspect));
  if (found.size === 0 && /UTF-8/.test(text) && !options.encoding) add('encoding', 'windows-1252');
  return [...found.values()];
}

/** A hint may have a value as it is in a query: `%3B`. */
function decoded(value) {
  try {
    return decodeURIComponent(value);
  } catch {
    return value;
  }
}

function labelOf(name, value) {
  if (name === 'delimiter') return `Retry with ${delimiterName(value)} as delimiter`;
  if (name === 'encoding') return `Retry as ${value}`;
  if (name === 'decompress') return `Retry decompressed (${value})`;
  return 'Retry without empty cells at the end';
}

const OPTIONS = ['delimiter', 'encoding', 'null', 'trim', 'drop_trailing_empty', 'decompress'];

/** What `tally` would be told to do: the page has a button for it. */
const FLAGS = /[:;,]? upload with --[a-z-]+(?: (?:"[^"]*"|[^\s,;]+))?/;

/** A message as a sentence, without the flags of the command line. */
export function sentence(text) {
  const plain = text.replace(FLAGS, '').trim();
  return plain === '' ? '' : `${plain[0].toLocaleUpperCase()}${plain.slice(1)}${/[.!?…:]$/.test(plain) ? '' : '.'}`;
}

/** The options as short words: those of an upload, or of a receipt's source. */
export function optionTexts(options) {
  const given = OPTIONS.filter((name) => options[name]).map((name) => [name, options[name]]);
  return given.flatMap(([name, value]) => [value].flat().map(String).map((item) => {
    if (name === 'delimiter') return `delimiter ${delimiterName(item)}`;
    if (name === 'null') return `null "${item}"`;
    return item === 'true' ? name.replaceAll('_', ' ') : `${name} ${item}`;
  }));
}

/**
 * Which columns of a wide row to show: some around the one that matters.
 * @returns {{from: number, to: number}}
 */
export function columnWindow(count, marked, width = 9) {
  if (count <= width || marked === null) return { from: 0, to: Math.min(count, width) };
  const from = Math.max(0, Math.min(marked - Math.floor(width / 2), count - width));
  return { from, to: from + width };
}

/** Which cell of a refused row is wrong; null if it is not known. */
export function markedCell({ column_index: index, column }, header, cells) {
  if (Number.isInteger(index)) return index;
  // Of two columns of one name, it is the second.
  const named = column === undefined ? -1 : header.lastIndexOf(column);
  if (named >= 0) return named;
  return cells.length === header.length ? null : Math.min(cells.length, header.length);
}
