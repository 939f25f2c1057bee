/** The files that this page sends: a queue that lives as long as the page, whatever view is shown. */

import { sendFile, Problem } from './api.js';
import { peek } from './lib/csv-peek.js';
import { KeptKeys, newKey } from './lib/upload-keys.js';
import { Speed } from './lib/speed.js';

/** Files sent at the same time. A browser has six connections to a server, and events take one. */
const AT_ONCE = 3;
/** How often a file is sent again after its connection broke while bytes were on the way. */
const BROKEN_MAX = 5;
const BACKOFF_MS = [1000, 2000, 4000, 8000, 15000];

/**
 * State of a file: `looking` at its beginning, `asking` the person, `waiting` for its turn, `sending`, `storing` (all sent,
 * no receipt yet), `lost` (sent again soon), `paused`, `done`, `refused`, `cancelled`.
 */
export class Upload {
  constructor(id, file, name, options) {
    Object.assign(this, { id, file, name, options, state: 'looking', sent: 0, head: null, receipt: null, problem: null });
    this.size = file.size;
    this.speed = new Speed();
    this.key = null;
    this.broken = 0;
    this.attempts = 0;
    /** Its beginning was looked at, and a question about it was asked. */
    this.isLookedAt = false;
    this.abort = () => {};
  }

  get isActive() {
    return this.state === 'sending' || this.state === 'storing';
  }

  get isOver() {
    return this.state === 'done' || this.state === 'cancelled';
  }

  /** Whether leaving the page would lose it. */
  get isPending() {
    return !this.isOver && this.state !== 'refused';
  }

  /** Rows sent so far and in all, as the length of some of them suggests; null if it is not known. */
  get rowsEstimate() {
    const bytes = this.head?.rowBytes;
    return bytes ? { sent: roughly(this.sent / bytes), all: roughly(this.size / bytes) } : null;
  }
}

/** An estimate shows no more digits than it has. */
const roughly = (value) => (value < 1000 ? Math.round(value) : Number(value.toPrecision(3)));

/** A file whose question is not answered is not sent anyway. One that was sent as a whole may be in the table already. */
export const canPause = (item) => item.isPending && item.state !== 'storing' && item.state !== 'asking';

/** The storage of the browser's tab. A browser that keeps no data of this site throws. */
function tabStorage() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}

export class Uploads extends EventTarget {
  items = [];
  /** What is chosen for files that are added from now on. */
  options = {};
  #keys = new KeptKeys(tabStorage());
  #lastId = 0;
  #looking = Promise.resolve();

  /** Names of files that a reload of the page interrupted. */
  get interrupted() {
    return this.#keys.interrupted;
  }

  forgetInterrupted() {
    this.#keys.forgetInterrupted();
    this.#changed(null);
  }

  /** @param {{file: File, name: string}[]} files */
  add(files) {
    for (const { file, name } of files) {
      const item = new Upload((this.#lastId += 1), file, name, { ...this.options });
      this.items.push(item);
      this.#lookSoon(item);
    }
    this.#changed(null);
  }

  /** One after the other: a folder may have thousands of files. */
  #lookSoon(item) {
    this.#looking = this.#looking.then(() => this.#look(item));
  }

  async #look(item) {
    if (item.state !== 'looking') return;
    try {
      item.head = await peek(item.file, item.options.encoding);
      // A long list of files does not keep their headers.
      if (!item.head.suspect) item.head.header = [];
    } catch {
      this.#refuse(item, new Problem(0, 'The browser cannot read this file. Has it been moved or changed?'));
      return;
    }
    if (item.state !== 'looking') return;
    item.isLookedAt = true;
    if (item.head.compressed && !item.options.decompress) item.options.decompress = item.head.compressed;
    if (item.head.encoding && !item.options.encoding) item.options.encoding = item.head.encoding;
    this.#set(item, item.head.suspect && !item.options.delimiter ? 'asking' : 'waiting');
    this.#next();
  }

  /** Sends a file after a question or a refusal, perhaps with other options. */
  send(item, options = {}) {
    item.options = { ...item.options, ...options };
    // If the server may have added the file before its answer was lost, the same key keeps it from being added twice.
    if (Object.keys(options).length > 0 || !item.problem?.isUncertain) item.key = null;
    item.broken = 0;
    item.attempts = 0;
    this.#set(item, 'waiting');
    this.#next();
  }

  pause(item) {
    if (!canPause(item)) return;
    this.#set(item, 'paused');
    item.abort();
    this.#next();
  }

  resume(item) {
    if (item.state !== 'paused' && item.state !== 'lost') return;
    this.#set(item, item.isLookedAt ? 'waiting' : 'looking');
    if (!item.isLookedAt) this.#lookSoon(item);
    this.#next();
  }

  cancel(item) {
    if (item.isOver) return;
    this.#set(item, 'cancelled');
    this.#keys.forget(item.key);
    item.abort();
    this.#next();
  }

  pauseAll() {
    this.items.filter(canPause).forEach((item) => this.pause(item));
  }

  resumeAll() {
    this.items.filter((item) => item.state === 'paused').forEach((item) => this.resume(item));
  }

  cancelAll() {
    this.items.filter((item) => item.isPending).forEach((item) => this.cancel(item));
  }

  /** Removes from the list what needs no more attention. */
  clear() {
    this.items = this.items.filter((item) => item.isPending);
    this.#changed(null);
  }

  /** Sends files that wait after a lost connection at once, because the server is back. */
  serverIsBack() {
    this.items.filter((item) => item.state === 'lost').forEach((item) => this.resume(item));
  }

  #next() {
    let free = AT_ONCE - this.items.filter((item) => item.isActive).length;
    for (const item of this.items) {
      if (free <= 0) return;
      if (item.state === 'waiting') {
        free -= 1;
        this.#send(item);
      }
    }
  }

  async #send(item) {
    item.key ??= this.#keys.interruptedKey(item) ?? newKey();
    this.#keys.keep(item);
    item.sent = 0;
    item.speed = new Speed();
    item.problem = null;
    this.#set(item, 'sending');
    const onProgress = (loaded) => {
      if (!item.isActive) return;
      item.sent = Math.min(loaded, item.size);
      item.speed.add(performance.now(), item.sent);
      this.#set(item, item.sent >= item.size ? 'storing' : 'sending');
    };
    const sending = sendFile(item.file, { query: item.options, key: item.key, onProgress });
    item.abort = sending.abort;
    try {
      const { columns, ...receipt } = await sending.done;
      item.receipt = { columns_count: columns?.length, ...receipt };
      item.sent = item.size;
      this.#keys.forget(item.key);
      this.#set(item, 'done');
    } catch (error) {
      // A pause or a cancellation has set the state already.
      if (item.isActive) this.#failed(item, error);
    }
    item.abort = () => {};
    this.#next();
  }

  #failed(item, error) {
    if (!(error instanceof Problem) || !error.isTemporary) {
      this.#refuse(item, error);
      return;
    }
    item.attempts += 1;
    if (item.sent > 0 && error.status === 0) item.broken += 1;
    if (item.broken >= BROKEN_MAX) {
      const fields = { hint: 'A proxy or the server may limit the size or the time of a request. Try again, or ask whoever runs it.' };
      this.#refuse(item, new Problem(0, `The connection broke ${item.broken} times while the file was sent.`, fields));
      return;
    }
    item.problem = error;
    this.#set(item, 'lost');
    // What keeps a file out may last, like a full disk: the file is not sent every second.
    const wait = Math.max((error.retryAfter ?? 0) * 1000, BACKOFF_MS[Math.min(item.attempts, BACKOFF_MS.length) - 1]);
    const timer = setTimeout(() => this.resume(item), wait);
    item.abort = () => clearTimeout(timer);
  }

  #refuse(item, problem) {
    item.problem = problem;
    this.#keys.forget(item.key);
    this.#set(item, 'refused');
  }

  #set(item, state) {
    const before = item.state;
    item.state = state;
    this.#changed(item, before !== state);
  }

  #changed(item, isNewState = true) {
    this.dispatchEvent(new CustomEvent('change', { detail: { item, isNewState } }));
  }
}
