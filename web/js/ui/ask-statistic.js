/** Statistics are jobs: asked for, then fetched. An answer is kept as long as the table does not change. */

import { api, Problem } from '../api.js';
import { live } from '../live.js';

const FIRST_WAIT_MS = 60;
const WAIT_MAX_MS = 1000;
const KEPT_MAX = 200;

const kept = new Map();

/**
 * A job that nobody waits for any more is cancelled.
 * @returns {Promise<object>} the `data` of the result
 */
export async function askStatistic(kind, body, signal) {
  const key = JSON.stringify([kind, body, tableNow()]);
  if (live.state === 'on' && kept.has(key)) return kept.get(key);
  // Without the signal, because only the answer says which job is to be cancelled.
  const { job_id: id } = await api.ask(kind, body);
  const cancel = () => api.cancel('statistic', id).catch(() => {}); // it may have ended
  if (signal.aborted) {
    cancel();
    throw signal.reason;
  }
  signal.addEventListener('abort', cancel);
  try {
    const data = await resultOf(id, signal);
    if (kept.size >= KEPT_MAX) kept.clear();
    kept.set(key, data);
    return data;
  } finally {
    signal.removeEventListener('abort', cancel);
  }
}

async function resultOf(id, signal) {
  for (let wait = FIRST_WAIT_MS; ; wait = Math.min(wait * 1.6, WAIT_MAX_MS)) {
    const result = await api.result(id, signal);
    if (result.status === 'done') return result.data;
    if (result.status === 'error') throw new Problem(400, result.reason ?? result.error ?? 'The server could not answer this.', result);
    await pause(wait, signal);
  }
}

/** What changes with the table, as far as the events say it. */
function tableNow() {
  const { parts, rows, csv_bytes: csv, parquet_bytes: parquet } = live.stats ?? {};
  return [parts, rows, csv, parquet];
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
