/**
 * Server-sent events, read from a response's body
 * (https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
 */

/** @typedef {{type: string, data: string}} ServerEvent */

/** Makes events of text that may be cut anywhere. */
export class EventParser {
  #line = "";
  #type = "";
  /** @type {string[]} */
  #data = [];
  #afterReturn = false;

  /**
   * @param {string} text what came next
   * @returns {Generator<ServerEvent>} the events that it completes
   */
  *push(text) {
    // A line feed that the last piece's carriage return was cut from does not end another line.
    if (this.#afterReturn && text.startsWith("\n")) text = text.slice(1);
    else if (text === "") return;
    this.#afterReturn = text.endsWith("\r");
    const lines = (this.#line + text).split(/\r\n|\r|\n/);
    this.#line = lines[lines.length - 1];
    for (const line of lines.slice(0, -1)) {
      if (line !== "") this.#field(line);
      else if (this.#data.length > 0) yield this.#event();
    }
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    // Comments have an empty name; other fields mean nothing here.
  }

  /** @returns {ServerEvent} */
  #event() {
    const event = { type: this.#type || "message", data: this.#data.join("\n") };
    this.#type = "";
    this.#data = [];
    return event;
  }
}

/**
 * @param {ReadableStream<BufferSource>} body cancelled when the consumer stops early
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    // A stream that broke has said so from read() already.
    await reader.cancel().catch(() => {});
  }
}
