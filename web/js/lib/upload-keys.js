/**
 * Idempotency keys of files on their way. They are kept over a reload of the page: when the same file is dropped again, it is
 * sent with the same key, and is not added twice if it had arrived.
 */

const STORED_AS = 'tally.uploads';
const KEPT_MAX = 500;

/** A random key. `crypto.randomUUID` exists on HTTPS and localhost alone. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

const describe = ({ name, file, options, key }) => ({
  name, size: file.size, modified: file.lastModified, options: JSON.stringify(options), key,
});

export class KeptKeys {
  #storage;
  #kept = [];
  interrupted = [];

  /** @param {Storage|undefined} storage of the browser's tab */
  constructor(storage) {
    this.#storage = storage;
    try {
      this.interrupted = JSON.parse(storage?.getItem(STORED_AS) ?? '[]');
    } catch {
      this.interrupted = [];
    }
  }

  /** The key under which a file was sent before the reload, once. */
  interruptedKey(item) {
    const wanted = describe(item);
    const isSame = (old) => ['name', 'size', 'modified', 'options'].every((field) => old[field] === wanted[field]);
    const found = this.interrupted.find(isSame);
    if (!found) return null;
    this.interrupted = this.interrupted.filter((old) => old !== found);
    return found.key;
  }

  keep(item) {
    this.forget(item.key);
    if (this.#kept.length < KEPT_MAX) this.#kept.push(describe(item));
    this.#store();
  }

  forget(key) {
    this.#kept = this.#kept.filter((old) => old.key !== key);
    this.#store();
  }

  forgetInterrupted() {
    this.interrupted = [];
    this.#store();
  }

  #store() {
    try {
      this.#storage?.setItem(STORED_AS, JSON.stringify([...this.interrupted, ...this.#kept]));
    } catch {
      // Without storage, a reload forgets the keys.
    }
  }
}
