/** The speed of a transfer over its last seconds. */

const WINDOW_MS = 4000;

export class Speed {
  #samples = [];

  /** @param {number} now in ms @param {number} bytes sent so far */
  add(now, bytes) {
    this.#samples.push({ now, bytes });
    while (this.#samples.length > 2 && now - this.#samples[1].now > WINDOW_MS) this.#samples.shift();
  }

  /** Null until two samples are far enough apart. */
  get bytesPerSecond() {
    const first = this.#samples[0];
    const last = this.#samples[this.#samples.length - 1];
    const ms = this.#samples.length < 2 ? 0 : last.now - first.now;
    return ms < 200 ? null : ((last.bytes - first.bytes) * 1000) / ms;
  }

  secondsLeft(bytesLeft) {
    const speed = this.bytesPerSecond;
    return speed > 0 ? bytesLeft / speed : Infinity;
  }
}
