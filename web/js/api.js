/** All calls to the server. Whatever a call needs besides its question, such as an access token, is added here. */

/** A refused or failed call. `fields` are those of the problem (RFC 9457): part, row, line, column, cell, hint. */
export class Problem extends Error {
  constructor(status, detail, fields = {}) {
    super(detail);
    this.status = status;
    this.fields = fields;
  }

  /** Whether the call may have been carried out although its answer did not come: a proxy's 502 or 504, for example. */
  get isUncertain() {
    return this.status === 0 || this.status >= 500;
  }

  /** Whether the same call may go well later. */
  get isTemporary() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status === 503;
  }
}

export const UNREACHABLE = 'The server does not answer.';

const KEY = 'tally-token';

/** The token of this tab, or null. It fires `needed` when the server asks for one. */
class Access extends EventTarget {
  token = globalThis.sessionStorage?.getItem(KEY) ?? null;

  keep(token) {
    this.token = token;
    if (token === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, token);
  }
}

export const access = new Access();

/** Headers that every call has. */
function headers(more = {}) {
  return { Accept: 'application/json', ...(access.token === null ? {} : { Authorization: `Bearer ${access.token}` }), ...more };
}

/** A path with its query; a list becomes one parameter for each item. */
export function path(base, query = {}) {
  const params = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const item of value === null || value === undefined ? [] : [value].flat()) params.append(key, item);
  }
  const text = params.toString();
  return text ? `${base}?${text}` : base;
}

async function call(method, target, { signal, body, more } = {}) {
  let response;
  try {
    // What is removed or cancelled when the page is left is sent nevertheless.
    response = await fetch(target, { method, signal, body, headers: headers(more), cache: 'no-store', keepalive: method === 'DELETE' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, UNREACHABLE);
  }
  if (!response.ok) throw problemOf(response.status, await response.text().catch(() => ''), response.headers.get('Retry-After'));
  return response;
}

/** A question that was refused because the server is busy is asked again. What changes something is not. */
async function patiently(method, target, options) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call(method, target, options);
    } catch (error) {
      const isBusy = error instanceof Problem && (error.status === 429 || error.status === 503);
      if (!isBusy || method !== 'GET' || tries >= BUSY_MAX) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.min(error.retryAfter ?? 1, 3) * 1000));
    }
  }
}

/** The error forms of all paths: problem+json, and those of the original servers. */
export function problemOf(status, text, retryAfter = null) {
  if (status === 401) access.dispatchEvent(new Event('needed'));
  let fields = {};
  try {
    fields = JSON.parse(text) ?? {};
  } catch {
    // A proxy's page, for example: only the status is known.
  }
  const details = Array.isArray(fields.details) ? fields.details.map((item) => item.message).join('; ') : '';
  const reason = typeof fields.reason === 'string' ? fields.reason : '';
  const error = typeof fields.error === 'string' ? fields.error : '';
  const detail = fields.detail || details || reason || error || fields.message || `The server answered with status ${status}.`;
  const problem = new Problem(status, detail, fields);
  problem.retryAfter = retryAfter === null ? null : Number(retryAfter);
  return problem;
}

/** How often a question is asked again when the server is busy. */
const BUSY_MAX = 3;

async function json(method, target, options) {
  const response = await patiently(method, target, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, 'The answer is incomplete: the connection was lost.');
  }
}

const get = (target, signal) => json('GET', target, { signal });
const TABLE = '/api/v1/table';
const TASKS = '/api/v1/file-processing/tasks';

export const paths = {
  parts: `${TABLE}/parts`,
  csv: (part) => `${TABLE}/parts/${part}/csv`,
  parquet: (part) => `${TABLE}/parts/${part}/parquet`,
  sum: (column, format) => path(`${TABLE}/sum`, { column, format }),
  groups: (query) => path(`${TABLE}/groups`, query),
  columns: `${TABLE}/columns`,
  tasks: `${TASKS}/`,
  demo: (name) => `/console/demo/${name}`,
};

export const api = {
  overview: (signal) => get(TABLE, signal),
  growth: (signal) => get(`${TABLE}/growth?points=200`, signal),
  parts: (query, signal) => get(path(paths.parts, query), signal),
  part: (part, signal) => get(`${paths.parts}/${part}`, signal),
  rows: (part, limit, signal) => get(path(`${paths.parts}/${part}/rows`, { limit }), signal),
  columns: (query, signal) => get(path(paths.columns, query), signal),
  sum: (column, format, signal) => get(paths.sum(column, format), signal),
  groups: (query, signal) => get(paths.groups(query), signal),
  remove: (part) => json('DELETE', `${paths.parts}/${part}`),
  restore: (part) => json('POST', `${paths.parts}/${part}/restore`),
  removed: (after, signal) => get(path(`${TABLE}/removed`, { after }), signal),
  questions: (signal) => get('/api/v1/survey/questions?limit=1000', signal),
  states: (question, signal) => get(path('/api/v1/survey/states', { question }), signal),
  ask: (kind, body) =>
    json('POST', `/api/${kind}`, { body: JSON.stringify(body), more: { 'Content-Type': 'application/json' } }),
  result: (id, signal) => get(`/api/get_results/${id}`, signal),
  jobs: (signal) => get('/api/v1/jobs?limit=100', signal),
  cancel: (kind, id) => call('DELETE', kind === 'task' ? `${TASKS}/${id}` : `/api/jobs/${id}`),
  task(file, query, signal) {
    const body = new FormData();
    body.append('file', file, file.name);
    return json('POST', path(paths.tasks, query), { signal, body });
  },
  events: (signal) => call('GET', '/api/v1/events', { signal, more: { Accept: 'text/event-stream' } }),
  token: (signal) => get('/api/v1/token', signal),
  /** A link that can be followed once, without the token. */
  async ticketed(target) {
    const { ticket } = await json('POST', path('/api/v1/tickets', { target }));
    return ticket === null ? target : `${target}${target.includes('?') ? '&' : '?'}ticket=${ticket}`;
  },
  demo: async (name) => new File([await (await call('GET', paths.demo(name))).blob()], name, { type: 'text/csv' }),
};

/**
 * Sends one file. XMLHttpRequest says how much of it was sent, which fetch does not.
 * @returns {{done: Promise<object>, abort: () => void}} the receipt, with `replayed` if the part was there already
 */
export function sendFile(file, { query, key, onProgress }) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.open('POST', path(paths.parts, query));
    for (const [name, value] of Object.entries(headers({ 'Idempotency-Key': key, 'Content-Type': 'text/csv' }))) {
      request.setRequestHeader(name, value);
    }
    request.upload.addEventListener('progress', (event) => onProgress(event.loaded));
    request.addEventListener('error', () => reject(new Problem(0, UNREACHABLE)));
    request.addEventListener('abort', () => reject(new DOMException('stopped', 'AbortError')));
    request.addEventListener('load', () => {
      if (request.status !== 201) {
        reject(problemOf(request.status, request.responseText, request.getResponseHeader('Retry-After')));
        return;
      }
      try {
        const replayed = request.getResponseHeader('Idempotency-Replayed') === 'true';
        resolve({ ...JSON.parse(request.responseText), replayed });
      } catch {
        reject(new Problem(0, 'The answer is incomplete: the connection was lost.'));
      }
    });
    request.send(file);
  });
  return { done, abort: () => request.abort() };
}
