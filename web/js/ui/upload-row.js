/** One file of the queue: its name, how far it is, and what can be done with it. */

import { h, fill, keepFocus, setText } from '../lib/dom.js';
import * as format from '../lib/format.js';
import { delimiterName, delimiterOption } from '../lib/csv-peek.js';
import { link } from '../lib/router.js';
import { optionTexts, sentence } from '../lib/suggest.js';
import { button, iconButton, progressBar, status } from './cells.js';
import { refusal } from './refusal.js';
import { uploads } from './add-files.js';

const STATES = {
  looking: ['idle', 'looking at its header'], asking: ['busy', 'needs an answer'], waiting: ['idle', 'waiting'], sending: ['busy', 'sending'],
  storing: ['busy', 'storing'], lost: ['busy', 'connection lost, trying again'], paused: ['idle', 'paused'], done: ['good', 'in the table'],
  refused: ['bad', 'refused'], cancelled: ['idle', 'cancelled'],
};

export function uploadRow(item) {
  const state = h('span.upload-state');
  const actions = h('span.upload-actions');
  const bar = progressBar(`Sent of ${item.name}`);
  const figures = h('p.upload-figures');
  const detail = h('div.upload-detail');
  const options = h('span.unit');
  const element = h('li.upload', { 'data-testid': 'upload', 'aria-label': item.name },
    h('div.upload-head', null, h('bdi.upload-name', { title: item.name }, format.visible(item.name)), options, state, actions),
    bar.element, figures, detail);
  let drawn = null;

  function drawState() {
    drawn = item.state;
    element.dataset.state = item.state;
    const isReplayed = item.state === 'done' && item.receipt?.replayed;
    const [kind, text] = isReplayed ? ['good', 'was in the table already'] : STATES[item.state];
    const reason = item.state === 'lost' && item.problem?.status ? 'the server is busy, trying again' : text;
    fill(state, status(kind, reason));
    setText(options, optionTexts(item.options).join(', '));
    keepFocus(actions, () => fill(actions, actionsOf(item)));
    fill(detail, item.state === 'asking' ? question(item)
      : item.state === 'refused' ? refusal(item, (more) => uploads.send(item, more))
        : item.state === 'lost' && item.problem?.status ? h('p.note', null, format.visible(sentence(item.problem.message))) : null);
  }

  function update() {
    if (drawn !== item.state) drawState();
    const share = item.size > 0 ? item.sent / item.size : item.state === 'done' ? 1 : 0;
    bar.set(share, item.state === 'refused' ? 'bad' : item.state === 'done' ? 'good' : item.isActive ? 'busy' : 'plain');
    fill(figures, item.state === 'done' ? receiptLine(item) : setProgress(item));
  }

  update();
  return { element, update };
}

function actionsOf(item) {
  const name = item.name;
  const list = [];
  if (['waiting', 'sending', 'lost'].includes(item.state)) list.push(iconButton(`Pause ${name}`, 'pause', () => uploads.pause(item)));
  if (item.state === 'paused') list.push(iconButton(`Resume ${name}`, 'play', () => uploads.resume(item)));
  if (item.state === 'lost') list.push(iconButton(`Try ${name} now`, 'retry', () => uploads.resume(item)));
  if (item.isPending) list.push(iconButton(`Cancel ${name}`, 'close', () => uploads.cancel(item)));
  return list;
}

function setProgress(item) {
  const isUnderWay = item.isPending && item.sent > 0 && item.sent < item.size;
  const parts = [isUnderWay ? `${format.sizeText(item.sent)} of ${format.sizeText(item.size)}` : format.sizeText(item.size)];
  const rows = item.rowsEstimate;
  if (item.state === 'refused' || item.state === 'cancelled') return parts[0];
  if (rows && item.sent > 0) parts.push(`about ${format.number(rows.sent)} of ${format.number(rows.all)} rows`);
  else if (rows && rows.all > 1) parts.push(`about ${format.number(rows.all)} rows`);
  const speed = item.speed.bytesPerSecond;
  if (item.state === 'sending' && speed !== null) parts.push(format.rateText(speed), format.leftText(item.speed.secondsLeft(item.size - item.sent)));
  if (item.state === 'storing') parts.push('all bytes are sent; the server finds the types and writes Parquet');
  if (item.state === 'paused' && item.sent > 0) parts.push('the server keeps nothing of an unfinished file: it is sent from its start');
  return parts.filter(Boolean).join(' · ');
}

function receiptLine({ receipt }) {
  return [
    h('a', { href: link('table', { show: 'parts', part: receipt.part }) }, `Part ${format.number(receipt.part)}`),
    ` · ${format.count(receipt.rows, 'row')} · ${format.count(receipt.columns_count, 'column')} · ${format.sizeText(receipt.csv.bytes)} as CSV · ${format.sizeText(receipt.parquet.bytes)} as Parquet`,
  ];
}

/** A header that is one cell with a delimiter in it: probably the file does not use commas. */
function question(item) {
  const { suspect, header } = item.head;
  const name = delimiterName(suspect);
  const cells = header[0].split(suspect);
  return h('div.question', { 'data-testid': 'question' },
    h('p', null, `With commas, the header of this file is a single column. Its cells seem to be separated by ${name === 'tab' ? 'tabs' : `${name}s`}:`),
    h('p.chips', null, cells.slice(0, 12).map((cell) => h('bdi.chip', null, format.visible(format.cut(cell, 40)))), cells.length > 12 ? h('span.note', null, `and ${cells.length - 12} more`) : null),
    h('div.row', null,
      button(`Send with ${name} as delimiter`, () => uploads.send(item, { delimiter: delimiterOption(suspect) }), { kind: 'primary' }),
      button('Send as it is', () => uploads.send(item))));
}
