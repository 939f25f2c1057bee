/** The state of a job as a word with a colour. */

import { number, sizeText } from '../lib/format.js';
import { status } from './cells.js';

const KINDS = { queued: 'idle', running: 'busy', done: 'good', downloaded: 'good', failed: 'bad' };

/** A statistic counts the parts that it has read, a task the bytes of its file. */
export function jobState({ kind, state, done = 0, total = 0 }) {
  const text = kind === 'task' ? sizeText : number;
  const progress = state !== 'running' ? '' : total > 0 ? `, ${text(done)} of ${text(total)}${kind === 'task' ? '' : ' parts'}` : done > 0 ? `, ${text(done)}` : '';
  return status(KINDS[state] ?? 'idle', `${state}${progress}`);
}
