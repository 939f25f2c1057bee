/** The state of a job as a word with a colour. */

import { number, sizeText } from '../lib/format.js';
import { status } from './cells.js';

const KINDS = { queued: 'idle', running: 'busy', done: 'good', downloaded: 'good', failed: 'bad' };

export function jobState({ state, done, total, bytes }) {
  const progress = state !== 'running' ? '' : total ? ` ${number(done ?? 0)} of ${number(total)}` : bytes ? ` ${sizeText(bytes)}` : '';
  return status(KINDS[state] ?? 'idle', `${state}${progress}`);
}
