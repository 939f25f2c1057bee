import assert from 'node:assert/strict';
import test from 'node:test';

import { compression, parseRows, peek, peekText, readRow, RowFinder } from '../../web/js/lib/csv-peek.js';

const file = (text) => new Blob([text]);

test('rows are split as RFC 4180 says', () => {
  assert.deepEqual(parseRows('a,b\r\n1,"x, ""y""\nz"\n\n,\n'), [['a', 'b'], ['1', 'x, "y"\nz'], ['', '']]);
  assert.deepEqual(parseRows('a;b', ';'), [['a', 'b']]);
  assert.deepEqual(parseRows('a,"b'), [['a', '"b']]);
  assert.deepEqual(parseRows('3,"x"y\n,z"'), [['3', '"x"y'], ['', 'z"']], 'wrong quotes are shown as they are');
  assert.deepEqual(parseRows('a\nb\nc', ',', 2), [['a'], ['b']]);
});

test('a header that is one cell with another delimiter is suspect', () => {
  for (const [text, suspect] of [['a;b;c\n1;2;3\n', ';'], ['a\tb\n', '\t'], ['a|b\n', '|'], ['a,b;c\n', null], ['alone\n1\n', null], ['', null]]) {
    assert.equal(peekText(text).suspect, suspect, text);
  }
  assert.deepEqual(peekText('\ufeffa;b\n').header, ['a;b']);
});

test('compressed and marked files are recognised', async () => {
  assert.equal(compression(new Uint8Array([0x1f, 0x8b, 8])), 'gzip');
  assert.equal(compression(new Uint8Array([0x28, 0xb5, 0x2f, 0xfd])), 'zstd');
  assert.equal(compression(new Uint8Array([])), null);
  assert.equal((await peek(file(new Uint8Array([0xff, 0xfe, 0x61, 0x00, 0x3b, 0x00, 0x62, 0x00])))).encoding, 'utf-16le');
});

test('the length of lines is taken from three places', async () => {
  const rows = Array.from({ length: 100000 }, (_, at) => String(at));
  const { rowBytes } = await peek(file(`id\n${rows.join('\n')}\n`));
  assert.ok(rowBytes > 5.5 && rowBytes < 6, String(rowBytes));
});

test('the row of an error is found by its line and by its number', async () => {
  const text = 'a,b\r\n1,2\r\n\r\n"x\ny",3\r\n4,5,6\r\n7,8\r\n';
  // Lines: 1 header, 2 "1,2", 3 empty, 4 and 5 the quoted row, 6 the long one.
  assert.deepEqual(await readRow(file(text), { line: 6 }), { header: ['a', 'b'], cells: ['4', '5', '6'] });
  assert.deepEqual(await readRow(file(text), { row: 3 }), { header: ['a', 'b'], cells: ['4', '5', '6'] });
  assert.deepEqual((await readRow(file(text), { line: 4 })).cells, ['x\ny', '3']);
  assert.deepEqual((await readRow(file(text), { row: 2 })).cells, ['x\ny', '3']);
  assert.deepEqual((await readRow(file(text), { row: 0 })).cells, ['a', 'b']);
  assert.equal(await readRow(file(text), { line: 99 }), null);
  assert.equal(await readRow(file(text), {}), null);
  assert.deepEqual((await readRow(file('a;b\n1;2'), { row: 1 }, { delimiter: ';' })).cells, ['1', '2']);
});

test('rows are found however the text is cut', () => {
  const text = 'a\r\n"1\r\n2"\r3\n4';
  for (let at = 0; at <= text.length; at += 1) {
    for (const [position, row] of [[{ row: 1 }, '"1\n2"'], [{ row: 2 }, '3'], [{ line: 4 }, '3'], [{ line: 5 }, '4'], [{ line: 2 }, '"1\n2"']]) {
      const finder = new RowFinder(position);
      finder.feed(text.slice(0, at));
      finder.feed(text.slice(at));
      assert.equal(finder.text, row, `${JSON.stringify(position)} cut at ${at}`);
    }
  }
});

test('a row far into a file is read in slices', async () => {
  const rows = Array.from({ length: 200000 }, (_, at) => `${at},name ${at}`);
  const found = await readRow(file(`id,name\n${rows.join('\n')}\n`), { line: 150002 });
  assert.deepEqual(found.cells, ['150000', 'name 150000']);
});

test('the row of a compressed file is found', async () => {
  const packed = await new Response(file('a,b\n1,2\n3\n').stream().pipeThrough(new CompressionStream('gzip'))).blob();
  assert.deepEqual((await readRow(packed, { line: 3 }, { decompress: 'gzip' })).cells, ['3']);
});
