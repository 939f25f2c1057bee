/**
 * Server-sent events by fetch. EventSource cannot send a header, which tokens need.
 */

const BACKOFF_MS = [500, 1000, 2000, 4000, 8000];
/** The server sends once a second. After this time without a byte, the connection counts as lost. */
const SILENCE_MAX_MS = 8000;

/** Parses an event stream piece by piece (HTML standard, section 9.2.6). */
export class EventParser {
  #rest = '';
  #name = '';
  #data = [];

  /** @returns {{event: string, data: string}[]} the events that are complete with this piece */
  feed(text) {
    const events = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      const event = this.#line(line);
      if (event) events.push(event);
    }
    return events;
  }

  #line(line) {
    if (line === '') {
      const event = this.#data.length > 0 ? { event: this.#name || 'message', data: this.#data.join('\n') } : null;
      this.#name = '';
      this.#data = [];
      return event;
    }
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') this.#name = value;
    if (field === 'data') this.#data.push(value);
    return null;
  }
}

/**
 * Watches a stream and connects again whenever it ends.
 * @param {(signal: AbortSignal) => Promise<Response>} open
 * @param {{onEvent: (event: {event: string, data: string}) => void, onState: (state: 'on'|'off', reason: Error|null) => void}} handlers
 * @returns {{stop: () => void, retry: () => void}}
 */
export function watch(open, { onEvent, onState }) {
  let stopped = false;
  let failures = 0;
  let wake = () => {};
  let reason = null;
  let controller = new AbortController();

  async function run() {
    while (!stopped) {
      controller = new AbortController();
      try {
        await read(await open(controller.signal), controller, (event) => {
          failures = 0;
          onState('on');
          onEvent(event);
        });
        reason = null;
      } catch (error) {
        // Whatever it is, it is tried again.
        reason = error;
      }
      if (stopped) return;
      onState('off', reason);
      const wait = BACKOFF_MS[Math.min(failures, BACKOFF_MS.length - 1)];
      failures += 1;
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, wait);
        wake = () => (clearTimeout(timer), resolve());
      });
    }
  }

  run();
  return {
    stop() {
      stopped = true;
      controller.abort();
      wake();
    },
    retry: () => wake(),
  };
}

async function read(response, controller, onEvent) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  let timer;
  const expectMore = () => {
    clearTimeout(timer);
    timer = setTimeout(() => controller.abort(), SILENCE_MAX_MS);
  };
  try {
    for (;;) {
      expectMore();
      const { done, value } = await reader.read();
      if (done) return;
      parser.feed(decoder.decode(value, { stream: true })).forEach(onEvent);
    }
  } finally {
    clearTimeout(timer);
  }
}
