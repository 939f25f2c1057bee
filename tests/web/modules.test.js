import assert from 'node:assert/strict';
import test from 'node:test';

import { columnList, getCommands, shell, statisticCommands, uploadCommands } from '../../web/js/lib/commands.js';
import { EventParser, watch } from '../../web/js/lib/events.js';
import { parseTuple } from '../../web/js/lib/python-tuple.js';
import { link, parseHash } from '../../web/js/lib/router.js';
import { barScale, niceStep, percent } from '../../web/js/lib/scale.js';
import { Speed } from '../../web/js/lib/speed.js';
import { columnWindow, markedCell, optionTexts, sentence, suggestions } from '../../web/js/lib/suggest.js';
import { KeptKeys } from '../../web/js/lib/upload-keys.js';
import { problemOf } from '../../web/js/api.js';
import { Uploads } from '../../web/js/uploads.js';

test('events are parsed however they are cut', () => {
  const stream = ': hello\r\nevent: stats\ndata: {"a":\ndata:1}\n\nid: 7\ndata: x\r\n\r\nevent: none\n\n';
  const expected = [{ event: 'stats', data: '{"a":\n1}' }, { event: 'message', data: 'x' }];
  for (let at = 0; at <= stream.length; at += 1) {
    const parser = new EventParser();
    assert.deepEqual([...parser.feed(stream.slice(0, at)), ...parser.feed(stream.slice(at))], expected, `cut at ${at}`);
  }
});

test('a stream that ends is opened again', async () => {
  let opened = 0;
  const states = [];
  await new Promise((resolve) => {
    const watching = watch(async () => {
      opened += 1;
      if (opened === 1) throw new TypeError('refused');
      return new Response('data: 1\n\n');
    }, {
      onState: (state) => {
        states.push(state);
        if (state === 'off') watching.retry();
        if (opened === 3) resolve(watching.stop());
      },
      onEvent: () => {},
    });
    queueMicrotask(function again() {
      watching.retry();
      if (opened < 3) setTimeout(again, 1);
    });
  });
  assert.ok(opened >= 3);
  assert.deepEqual(states.slice(0, 3), ['off', 'on', 'off']);
});

test('links hold any name', () => {
  const hostile = '<img src=x onerror=alert(1)>&column=y#/?"';
  const { view, params } = parseHash(link('table', { column: hostile, by: ['a', 'b'], none: null, empty: '' }));
  assert.equal(view, 'table');
  assert.equal(params.get('column'), hostile);
  assert.deepEqual(params.getAll('by'), ['a', 'b']);
  assert.ok(!params.has('none') && !params.has('empty'));
  assert.equal(parseHash(link('table', { column: '' })).params.get('column'), '', 'a column may have no name');
  assert.deepEqual([parseHash('').view, parseHash('#/').view, parseHash('#/jobs').view], ['', '', 'jobs']);
});

test('commands are safe to paste', () => {
  assert.equal(shell("it's $(rm -rf ~)"), "'it'\\''s $(rm -rf ~)'");
  assert.equal(shell(''), "''");
  assert.equal(columnList(['Song', 'City, State', 'say "x"', '']), 'Song,"City, State","say ""x""",""');
  const server = { origin: 'http://localhost:5000', host: 'localhost' };
  const forms = getCommands(server, { path: '/api/v1/table/sum?column=it%27s', grpc: ['tally.v1.Tally/Sum', { column: "it's" }], none: 'no' });
  assert.equal(forms.curl, "curl -s 'http://localhost:5000/api/v1/table/sum?column=it%27s'");
  assert.equal(forms.grpcurl, `grpcurl -plaintext -d '{"column":"it'\\''s"}' localhost:5440 tally.v1.Tally/Sum`);
  assert.deepEqual(forms.tally, { none: 'no' });
  assert.equal(uploadCommands(server, '/p', { delimiter: ';', trim: 'true', null: ['NA', '-'] }).tally, "tally upload --delimiter ';' --trim --null NA --null - file.csv");
  assert.match(statisticCommands(server, 'best5', { question: 'a "b"' }).Python, /\{"question": "a \\"b\\""\}/);
});

test('a refusal suggests what the server names', () => {
  const labels = (problem, head = null, options = {}) => suggestions(problem, head, options).map(({ options: found }) => found);
  assert.deepEqual(labels({ detail: 'the separator looks like ";": upload with --delimiter ";"' }), [{ delimiter: ';' }]);
  assert.deepEqual(labels({ detail: 'x', hint: 'upload with delimiter=tab' }), [{ delimiter: 'tab' }]);
  assert.deepEqual(labels({ detail: 'x', hint: 'send it again with ?delimiter=%3B' }), [{ delimiter: ';' }]);
  assert.deepEqual(labels({ detail: 'upload with --delimiter "|"', hint: 'send it again with ?delimiter=%7C' }), [{ delimiter: '|' }], 'once');
  assert.deepEqual(labels({ detail: 'the file is compressed with gzip: upload with --decompress gzip' }), [{ decompress: 'gzip' }]);
  assert.deepEqual(labels({ detail: 'row 2 has 3 cells; upload with --drop-trailing-empty' }), [{ drop_trailing_empty: 'true' }]);
  assert.deepEqual(labels({ detail: 'row 1 is not valid UTF-8' }), [{ encoding: 'windows-1252' }]);
  assert.deepEqual(labels({ detail: 'row 1 has 1 cell' }, { suspect: '\t' }), [{ delimiter: 'tab' }]);
  assert.deepEqual(labels({ detail: 'upload with --delimiter ";"' }, null, { delimiter: ';' }), [], 'what was tried is not suggested again');
  assert.deepEqual(optionTexts({ delimiter: 'tab', null: ['NA'], trim: true, drop_trailing_empty: false, bytes: 3 }), ['delimiter tab', 'null "NA"', 'trim']);
});

test('messages are sentences without flags', () => {
  for (const [text, expected] of [
    ['the separator looks like ";": upload with --delimiter ";"', 'The separator looks like ";".'],
    ['row 2 has 3 cells, the header has 2: its extra cells are empty; upload with --drop-trailing-empty', 'Row 2 has 3 cells, the header has 2: its extra cells are empty.'],
    ['perhaps Windows-1252: upload with --encoding windows-1252', 'Perhaps Windows-1252.'], ['', ''], ['The server does not answer.', 'The server does not answer.'],
  ]) assert.equal(sentence(text), expected);
});

test('the wrong cell and the columns around it', () => {
  assert.equal(markedCell({ column_index: 3 }, [], []), 3);
  assert.equal(markedCell({ column: 'b' }, ['a', 'b'], ['1', 'x']), 1);
  assert.equal(markedCell({}, ['a', 'b'], ['1', '2', '3']), 2);
  assert.equal(markedCell({}, ['a', 'b'], ['1']), 1);
  assert.equal(markedCell({}, ['a'], ['1']), null);
  assert.deepEqual([columnWindow(3, 1), columnWindow(100, 50), columnWindow(100, 99), columnWindow(100, null)], [{ from: 0, to: 3 }, { from: 46, to: 55 }, { from: 91, to: 100 }, { from: 0, to: 9 }]);
});

test('scales of bars have zero and round ticks', () => {
  assert.deepEqual(barScale([3, 41]), { min: 0, max: 41, ticks: [0, 10, 20, 30, 40] });
  assert.deepEqual(barScale([-0.3, 0.7]).ticks, [-0.2, 0, 0.2, 0.4, 0.6]);
  assert.deepEqual(barScale([]), { min: 0, max: 1, ticks: [0, 0.2, 0.4, 0.6, 0.8, 1] });
  assert.equal(niceStep(100, 4), 20);
  assert.equal(percent(5, { min: 0, max: 10 }), 50);
});

test('tuples of Python', () => {
  assert.deepEqual(parseTuple(`('Ohio', "it's", '$15,000 - $24,999')`), ['Ohio', "it's", '$15,000 - $24,999']);
  assert.deepEqual(parseTuple(String.raw`('a\'b"', '\x7f\u200b\U0001f600\\', '')`), ['a\'b"', '\x7f\u200b😀\\', '']);
  assert.deepEqual(parseTuple('Ohio'), ['Ohio']);
});

test('the speed is that of the last seconds', () => {
  const speed = new Speed();
  assert.equal(speed.bytesPerSecond, null);
  for (let at = 0; at <= 20; at += 1) speed.add(at * 1000, at < 10 ? 0 : (at - 10) * 500);
  assert.equal(speed.bytesPerSecond, 500);
  assert.equal(speed.secondsLeft(1000), 2);
});

test('a file that a reload interrupted keeps its key', () => {
  const values = new Map();
  const storage = { getItem: (key) => values.get(key) ?? null, setItem: (key, value) => values.set(key, value) };
  const item = { name: 'a.csv', file: { size: 3, lastModified: 7 }, options: {}, key: 'k1' };
  new KeptKeys(storage).keep(item);
  const reloaded = new KeptKeys(storage);
  assert.equal(reloaded.interrupted.length, 1);
  assert.equal(reloaded.interruptedKey({ ...item, options: { trim: 'true' } }), null);
  assert.equal(reloaded.interruptedKey(item), 'k1');
  assert.equal(reloaded.interruptedKey(item), null);
  new KeptKeys(storage).forgetInterrupted();
  assert.deepEqual(new KeptKeys(storage).interrupted, []);
  assert.deepEqual(new KeptKeys({ getItem: () => 'no json' }).interrupted, []);
});

/** Resolves when the first file of a queue has a state. */
function untilState(uploads, state) {
  return new Promise((resolve) => {
    const look = () => uploads.items[0].state === state && resolve(uploads.items[0]);
    uploads.addEventListener('change', look);
    look();
  });
}

const add = (uploads, text) => uploads.add([{ file: new File([text], 'a.csv'), name: 'a.csv' }]);

test('a file that may have been added is sent again with the same key', async () => {
  const keys = [];
  const statuses = [504, 400, 409, 400];
  globalThis.XMLHttpRequest = class extends EventTarget {
    upload = new EventTarget();
    responseText = '{}';
    open() {}
    getResponseHeader() { return null; }
    setRequestHeader(name, value) {
      if (name === 'Idempotency-Key') keys.push(value);
    }
    send() {
      this.status = statuses.shift();
      queueMicrotask(() => this.dispatchEvent(new Event('load')));
    }
  };
  const uploads = new Uploads();
  add(uploads, 'x\n1\n');
  for (const options of [{}, {}, { trim: 'true' }]) uploads.send(await untilState(uploads, 'refused'), options);
  await untilState(uploads, 'refused');
  assert.equal(keys.length, 4);
  assert.equal(keys[1], keys[0], 'a proxy gave up waiting for the answer');
  assert.equal(new Set(keys).size, 3, 'a file that was refused has a new key');
  delete globalThis.XMLHttpRequest;
});

test('a file that is paused before its header was looked at is looked at when it goes on', async () => {
  const uploads = new Uploads();
  add(uploads, 'a;b\n1;2\n');
  uploads.pauseAll();
  assert.equal(uploads.items[0].state, 'paused');
  uploads.resumeAll();
  const item = await untilState(uploads, 'asking');
  uploads.pauseAll();
  assert.equal(item.state, 'asking', 'it is not sent before it has an answer');
});

test('a browser that keeps no data of the site shows the page', () => {
  Object.defineProperty(globalThis, 'sessionStorage', { configurable: true, get() { throw new Error('refused'); } });
  assert.deepEqual(new Uploads().interrupted, []);
  delete globalThis.sessionStorage;
});

test('errors of all paths have a text', () => {
  assert.equal(problemOf(400, '{"detail":"d","row":7}').fields.row, 7);
  assert.equal(problemOf(400, '{"code":"Bad Request","message":"m","details":[{"field":"f","message":"x"}]}').message, 'x');
  assert.equal(problemOf(404, '{"status":"error","reason":"Invalid job_id"}').message, 'Invalid job_id');
  assert.equal(problemOf(502, '<html>').message, 'The server answered with status 502.');
  assert.equal(problemOf(400, 'null').message, 'The server answered with status 400.');
});
