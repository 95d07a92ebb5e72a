/** Asks the server how it is, every few seconds while somebody looks at the page. */

import { queue, readiness } from "./api.js";

const EVERY_MS = 3000;

/**
 * @typedef {import("./api.js").Readiness} Readiness
 * @typedef {import("./api.js").Queue} Queue
 */

export class Watch {
  #onReadiness;
  #onQueue;
  #timer = 0;
  #asking = false;
  #metrics = true;

  /**
   * @param {(state: Readiness) => void} onReadiness
   * @param {(queue: Queue | null) => void} onQueue null where the server does not tell
   */
  constructor(onReadiness, onQueue) {
    this.#onReadiness = onReadiness;
    this.#onQueue = onQueue;
    document.addEventListener("visibilitychange", () => this.#ask());
  }

  /** Asks now, also for what was refused before: there may be another key. */
  start() {
    this.#metrics = true;
    void this.#ask();
  }

  async #ask() {
    clearTimeout(this.#timer);
    if (document.hidden || this.#asking) return;
    this.#asking = true;
    try {
      this.#onReadiness(await readiness());
      if (this.#metrics) this.#take(await queue());
    } finally {
      this.#asking = false;
      this.#timer = setTimeout(() => this.#ask(), EVERY_MS);
    }
  }

  /** @param {Queue | number} answer */
  #take(answer) {
    // Refused for good: there are no metrics, or not for this key.
    if (answer === 401 || answer === 403 || answer === 404) this.#metrics = false;
    this.#onQueue(typeof answer === "number" ? null : answer);
  }
}
