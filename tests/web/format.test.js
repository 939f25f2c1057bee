import assert from 'node:assert/strict';
import test from 'node:test';

import * as format from '../../web/js/lib/format.js';

test('integers are exact, whatever their size', () => {
  for (const [value, text] of [
    [0, '0'], [999, '999'], [1000, '1,000'], [-1234567, '\u22121,234,567'], ['9223372036854775807', '9,223,372,036,854,775,807'],
    [123456789012345678901234567890n, '123,456,789,012,345,678,901,234,567,890'], [1e21, '1,000,000,000,000,000,000,000'],
    [21.849999999999998, '21.849999999999998'], [1234.5, '1,234.5'], [null, '–'], ['x', 'x'],
  ]) assert.equal(format.number(value), text);
});

test('sizes have three digits and a unit', () => {
  for (const [bytes, text] of [
    [0, '0 B'], [1023, '1,023 B'], [1024, '1.00 KiB'], [10239, '10.0 KiB'], [102400, '100 KiB'], [1048064, '1.00 MiB'], [5 * 2 ** 40, '5.00 TiB'], [undefined, '–'],
  ]) assert.equal(format.sizeText(bytes), text);
});

test('durations, times left and ratios', () => {
  assert.deepEqual([0.42, 12.34, 999.4, 1000, 59000, 61000, 3600000].map(format.durationText), ['0.42 ms', '12.3 ms', '999 ms', '1.00 s', '59.0 s', '1 min 1 s', '1 h 0 min']);
  assert.deepEqual([0.2, 1.2, 61, Infinity].map(format.leftText), ['less than 1 s left', '2 s left', '2 min left', '']);
  assert.deepEqual([[3, 1], [100, 3], [1000, 3], [1, 20], [1, 0]].map(([a, b]) => format.ratio(a, b)), ['3.0', '33.3', '333', '0.05', '–']);
});

test('words for counts and times', () => {
  assert.deepEqual([format.count(1, 'row'), format.count(0, 'row'), format.count(2000, 'row')], ['1 row', '0 rows', '2,000 rows']);
  const now = Date.parse('2026-01-02T00:00:00Z');
  assert.deepEqual(['2026-01-01T23:59:58Z', '2026-01-01T23:00:00Z', '2025-12-01T00:00:00Z', null].map((time) => format.agoText(time, now)), ['2 s ago', '1 h ago', '32 days ago', '–']);
});

test('texts are cut between characters, and hidden characters are shown', () => {
  assert.equal(format.cut('😀😀😀', 2), '😀…');
  assert.equal(format.cut('abc', 3), 'abc');
  assert.equal(format.visible('a\u0000b\u202ec\n'), 'a\u2400b\ufffdc\u240a');
});
