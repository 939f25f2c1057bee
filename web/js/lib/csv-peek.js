/**
 * Looks into a file that the person chose: at its beginning before it is sent, and at the row that the server names.
 * A file is read in slices and never held as a whole.
 */

const HEAD_BYTES = 64 * 1024;
const SLICE_BYTES = 1024 * 1024;
/** A row that is longer is shown in part. */
const ROW_CHARS_MAX = 64 * 1024;

const NAMES = { ',': 'comma', ';': 'semicolon', '\t': 'tab', '|': 'pipe' };

/** As the server takes it: `tab` is a word. */
export const delimiterOption = (character) => (character === '\t' ? 'tab' : character);
export const delimiterCharacter = (option) => (option === 'tab' ? '\t' : option || ',');
export const delimiterName = (option) => NAMES[delimiterCharacter(option)] ?? `"${option}"`;

/** How a file is compressed, by its first bytes. */
export function compression(bytes) {
  const starts = (...magic) => magic.every((byte, at) => bytes[at] === byte);
  if (starts(0x1f, 0x8b)) return 'gzip';
  if (starts(0x28, 0xb5, 0x2f, 0xfd)) return 'zstd';
  return null;
}

/** The encoding that a byte order mark names. */
export function markedEncoding(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return 'utf-16le';
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return 'utf-16be';
  return null;
}

/**
 * Splits text into rows of cells (RFC 4180), at most `max` of them.
 * @returns {string[][]} the last row may be cut where the text ends
 */
export function parseRows(text, delimiter = ',', max = Infinity) {
  const rows = [];
  let row = [];
  let start = 0;
  let at = 0;
  const endCell = () => {
    row.push(unquoted(text.slice(start, at)));
    start = at + 1;
  };
  const endRow = () => {
    endCell();
    if (row.length > 1 || row[0] !== '') rows.push(row);
    row = [];
  };
  while (at < text.length && rows.length < max) {
    const character = text[at];
    if (character === '"' && at === start) {
      at = Math.min(closingQuote(text, at + 1) + 1, text.length);
      continue;
    }
    if (character === delimiter) endCell();
    else if (character === '\n' || character === '\r') endRow();
    if (character === '\r' && text[at + 1] === '\n') {
      at += 1;
      start += 1;
    }
    at += 1;
  }
  if (rows.length < max && (start < at || row.length > 0)) endRow();
  return rows;
}

/** The text in the quotes; of a cell whose quotes are wrong, the text as it is. */
function unquoted(cell) {
  return /^"(?:[^"]|"")*"$/.test(cell) ? cell.slice(1, -1).replaceAll('""', '"') : cell;
}

function closingQuote(text, from) {
  let at = from;
  for (;;) {
    at = text.indexOf('"', at);
    if (at < 0) return text.length;
    if (text[at + 1] !== '"') return at;
    at += 2;
  }
}

/**
 * What the beginning of a file says about it.
 * @param {string} text
 * @returns {{header: string[], suspect: string|null}} `suspect` is the delimiter that the header
 *   seems to have, if with commas it would be one cell
 */
export function peekText(text) {
  const body = text.replace(/^\ufeff/, '');
  const rows = parseRows(body, ',', 1);
  const header = rows[0] ?? [];
  const suspect = header.length === 1 ? (['\t', ';', '|'].find((character) => header[0].includes(character)) ?? null) : null;
  return { header, suspect };
}

/** How long a line is: of three places in the file, because numbers at its beginning are often shorter. */
async function lineBytes(file) {
  const starts = new Set([0, Math.max(0, Math.floor((file.size - HEAD_BYTES) / 2)), Math.max(0, file.size - HEAD_BYTES)]);
  let bytes = 0;
  let lines = 0;
  for (const start of starts) {
    const slice = new Uint8Array(await file.slice(start, start + HEAD_BYTES).arrayBuffer());
    bytes += slice.length;
    lines += slice.reduce((count, byte) => count + (byte === 10 ? 1 : 0), 0);
  }
  return lines > 1 ? bytes / lines : null;
}

/** Peeks at a file: its compression, its header, and what looks wrong before it is sent. */
export async function peek(file, encoding = 'utf-8') {
  const bytes = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  const compressed = compression(bytes);
  if (compressed) return { compressed, encoding: null, header: [], suspect: null, rowBytes: null };
  const marked = markedEncoding(bytes);
  const text = decoder(marked ?? encoding).decode(bytes);
  return { compressed, encoding: marked, rowBytes: await lineBytes(file), ...peekText(text) };
}

function decoder(label) {
  try {
    return new TextDecoder(label || 'utf-8');
  } catch {
    return new TextDecoder();
  }
}

/**
 * Finds the text of one row.
 * `line` counts lines from 1, as the server does: a row may begin in the middle of quoted lines before it. Without a line, `row`
 * counts rows after the header.
 */
export class RowFinder {
  #state = { line: 1, row: 0, quoted: false, blank: true, afterReturn: false };
  #text = '';
  #found = false;
  #ended = false;

  constructor({ line = null, row = null }) {
    this.target = line === null ? { row } : { line };
    this.#check();
  }

  get isDone() {
    return this.#ended;
  }

  /** The row as text, without its line end; null if it was not found. */
  get text() {
    return this.#found ? this.#text : null;
  }

  #check() {
    const { line, row, blank } = this.#state;
    const here = this.target.line === undefined ? row === this.target.row : line === this.target.line;
    if (here && blank && !this.#state.quoted) this.#found = true;
  }

  feed(text) {
    const state = this.#state;
    for (let at = 0; at < text.length && !this.#ended; at += 1) {
      const character = text[at];
      if (state.afterReturn && character === '\n') {
        state.afterReturn = false;
        continue;
      }
      state.afterReturn = false;
      const endsLine = character === '\n' || character === '\r';
      // Counting by lines needs no state of quotes before the row: the server says where it begins.
      if (character === '"' && (this.#found || this.target.line === undefined)) state.quoted = !state.quoted;
      if (endsLine) {
        state.line += 1;
        state.afterReturn = character === '\r';
        if (!state.quoted && !(this.#found && this.#text === '')) this.#endRow();
        else if (this.#found && this.#text !== '') this.#text += '\n';
      } else {
        state.blank = false;
        if (this.#found) this.#text += character;
      }
      if (this.#text.length > ROW_CHARS_MAX) this.#ended = true;
    }
  }

  #endRow() {
    if (this.#found) {
      this.#ended = true;
      return;
    }
    if (!this.#state.blank) this.#state.row += 1;
    this.#state.blank = true;
    this.#check();
  }
}

/**
 * The row that an error names, and the header, as cells.
 * @param {{line?: number, row?: number}} position row 1 is the first after the header
 * @param {{delimiter?: string, encoding?: string, decompress?: string}} options of the upload
 * @returns {Promise<{header: string[], cells: string[]}|null>} null if it cannot be shown
 */
export async function readRow(file, position, options = {}, signal = undefined) {
  if (position.line === undefined && position.row === undefined) return null;
  const delimiter = delimiterCharacter(options.delimiter);
  const finder = new RowFinder(position);
  let head = '';
  for await (const text of texts(file, options, signal)) {
    if (head.length < HEAD_BYTES) head += text.slice(0, HEAD_BYTES - head.length);
    finder.feed(text);
    if (finder.isDone) break;
  }
  if (finder.text === null) return null;
  const header = parseRows(head.replace(/^\ufeff/, ''), delimiter, 1)[0] ?? [];
  return { header, cells: parseRows(finder.text.replace(/^\ufeff/, ''), delimiter, 1)[0] ?? [] };
}

async function* texts(file, { encoding, decompress }, signal) {
  const isGzip = decompress && compression(new Uint8Array(await file.slice(0, 4).arrayBuffer())) === 'gzip';
  const decode = decoder(encoding);
  for await (const bytes of isGzip ? inflated(file) : slices(file)) {
    signal?.throwIfAborted();
    yield decode.decode(bytes, { stream: true });
  }
}

async function* slices(file) {
  for (let from = 0; from < file.size; from += SLICE_BYTES) {
    yield new Uint8Array(await file.slice(from, from + SLICE_BYTES).arrayBuffer());
  }
}

async function* inflated(file) {
  const reader = file.stream().pipeThrough(new DecompressionStream('gzip')).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
