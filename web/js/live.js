/** What the server does now, as its events say it once a second, and whether it can be reached. */

import { api } from './api.js';
import { watch } from './lib/events.js';

/** Seconds that the charts of the overview show. */
export const HISTORY = 120;
/** A page that nobody looks at stops watching after this time, so that others can. */
const HIDDEN_MAX_MS = 60000;

class Live extends EventTarget {
  /** The last event; null before the first. */
  stats = null;
  /** `connecting`, `on`, `off`, or `full`: too many pages watch the server. */
  state = 'connecting';
  /** Of the last seconds: time in s, bytes received a second, resident memory. */
  history = [];
  #watch = null;
  #hiddenTimer = 0;

  start() {
    this.#connect();
    document.addEventListener('visibilitychange', () => {
      clearTimeout(this.#hiddenTimer);
      if (document.hidden) this.#hiddenTimer = setTimeout(() => this.#disconnect(), HIDDEN_MAX_MS);
      else if (this.#watch) this.#watch.retry();
      else this.#connect();
    });
  }

  #connect() {
    this.#watch = watch(api.events, {
      onEvent: ({ event, data }) => event === 'stats' && this.#take(data),
      onState: (state, reason) => this.#become(state === 'off' && reason?.status === 429 ? 'full' : state),
    });
  }

  #disconnect() {
    this.#watch?.stop();
    this.#watch = null;
  }

  #take(data) {
    let stats;
    try {
      stats = JSON.parse(data);
    } catch {
      return;
    }
    this.stats = stats;
    this.history.push({ time: Date.parse(stats.time) / 1000, rate: stats.received_bytes_per_s, resident: stats.memory?.resident ?? null });
    if (this.history.length > HISTORY) this.history.shift();
    this.dispatchEvent(new Event('stats'));
  }

  #become(state) {
    const before = this.state;
    this.state = state;
    if (before === state) return;
    this.dispatchEvent(new Event('state'));
    if (state === 'on' && before !== 'connecting') this.dispatchEvent(new Event('back'));
  }

  /** Calls `listener` at each event until the signal ends, and at once if there was one. */
  onStats(listener, signal) {
    this.addEventListener('stats', () => listener(this.stats), { signal });
    if (this.stats) listener(this.stats);
  }

  /** Calls `listener` whenever the server can be reached again. */
  onBack(listener, signal) {
    this.addEventListener('back', listener, { signal });
  }
}

export const live = new Live();
