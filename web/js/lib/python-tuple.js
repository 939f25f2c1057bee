/** Reads a tuple of strings as Python writes it: the keys of means by category are such texts. */

const ESCAPES = { n: '\n', r: '\r', t: '\t', '\\': '\\', "'": "'", '"': '"' };
const HEX_DIGITS = { x: 2, u: 4, U: 8 };

/**
 * @param {string} text for example `('Ohio', "it's")`
 * @returns {string[]} the text itself, if it is no tuple
 */
export function parseTuple(text) {
  const items = [];
  let at = 1;
  while (at < text.length && (text[at] === "'" || text[at] === '"')) {
    const [item, end] = parseString(text, at);
    items.push(item);
    at = end;
    while (text[at] === ',' || text[at] === ' ') at += 1;
  }
  return text.startsWith('(') && text[at] === ')' ? items : [text];
}

function parseString(text, start) {
  const quote = text[start];
  let item = '';
  let at = start + 1;
  while (at < text.length && text[at] !== quote) {
    if (text[at] !== '\\') {
      item += text[at];
      at += 1;
      continue;
    }
    const kind = text[at + 1];
    const digits = HEX_DIGITS[kind] ?? 0;
    item += digits > 0 ? String.fromCodePoint(parseInt(text.slice(at + 2, at + 2 + digits), 16)) : (ESCAPES[kind] ?? kind);
    at += 2 + digits;
  }
  return [item, at + 1];
}
