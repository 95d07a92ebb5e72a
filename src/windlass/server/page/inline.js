/** Markdown within a block: emphasis, code, links. Raw HTML is text. See markdown.js for what to expect of the input. */

/**
 * @typedef {string
 *   | {kind: "em" | "strong" | "del", children: Inline[], depth: number}
 *   | {kind: "code", text: string}
 *   | {kind: "link", href: string, children: Inline[]}
 *   | {kind: "break"}} Inline
 * @typedef {{kind: "run", mark: string, count: number, opens: boolean, closes: boolean}} Run marks that may be emphasis
 */

const DEEPEST = 12;
const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const DESTINATION = /\([ \n]*(?:<([^<>\n]{1,2000})>|([^\s<>()]{1,2000}(?:\([^\s()]{0,500}\)[^\s<>()]{0,500}){0,4}))(?:[ \n]+(?:"[^"]{0,500}"|'[^']{0,500}'))?[ \n]*\)/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
const BARE_LINK = /https?:\/\/[^\s<>]{1,2000}/iy;

/**
 * @param {string} source
 * @returns {Inline[]}
 */
export function parseInline(source) {
  return new InlineParser(source, true).parse();
}

/**
 * @param {string} text
 * @returns {string | null} the address, if it is one that a link may have
 */
export function safeAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

class InlineParser {
  /** @type {(Inline | Run)[]} */
  #parts = [];
  #at = 0;
  #source;
  #links;
  #brackets;
  #ticks;

  /**
   * @param {string} source
   * @param {boolean} links whether there may be links; not in the text of one
   */
  constructor(source, links) {
    this.#source = source;
    this.#links = links;
    this.#brackets = links ? matchBrackets(source) : new Map();
    this.#ticks = tickRuns(source);
  }

  /** @returns {Inline[]} */
  parse() {
    const source = this.#source;
    while (this.#at < source.length) {
      SPECIAL.lastIndex = this.#at;
      const found = SPECIAL.exec(source)?.index ?? source.length;
      this.#take(source.slice(this.#at, found), found);
      if (found < source.length) this.#special(source[found]);
    }
    return resolveEmphasis(this.#parts);
  }

  /**
   * @param {Inline | Run} part
   * @param {number} end of its source
   */
  #take(part, end) {
    if (part !== "") this.#parts.push(part);
    this.#at = end;
  }

  /** @param {string} mark the character at this place */
  #special(mark) {
    if (mark === "\\") this.#escape();
    else if (mark === "`") this.#code();
    else if (mark === "\n") this.#take({ kind: "break" }, this.#at + 1);
    else if ("*_~".includes(mark)) this.#run(mark);
    else if (!(this.#links && this.#link(mark))) this.#take(mark, this.#at + 1);
  }

  #escape() {
    const next = this.#source[this.#at + 1] ?? "";
    if (next === "\n") this.#take({ kind: "break" }, this.#at + 2);
    else if (/[!-/:-@[-`{-~]/.test(next)) this.#take(next, this.#at + 2);
    else this.#take("\\", this.#at + 1);
  }

  #code() {
    const begin = this.#at;
    const length = runLength(this.#source, begin);
    const places = this.#ticks.get(length) ?? [];
    while (places.length > 0 && places[0] <= begin) places.shift();
    if (places.length === 0) return this.#take("`".repeat(length), begin + length);
    let text = this.#source.slice(begin + length, places[0]).replaceAll("\n", " ");
    if (text.startsWith(" ") && text.endsWith(" ") && text.trim() !== "") text = text.slice(1, -1);
    return this.#take({ kind: "code", text }, places[0] + length);
  }

  /** @param {string} mark */
  #run(mark) {
    const begin = this.#at;
    const count = runLength(this.#source, begin);
    const [before, after] = [this.#source[begin - 1] ?? " ", this.#source[begin + count] ?? " "];
    const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
    const [pointBefore, pointAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const left = !spaceAfter && (!pointAfter || spaceBefore || pointBefore);
    const right = !spaceBefore && (!pointBefore || spaceAfter || pointAfter);
    const loose = mark !== "_";
    const opens = left && (loose || !right || pointBefore);
    const closes = right && (loose || !left || pointAfter);
    if (mark === "~" && count !== 2) this.#take(mark.repeat(count), begin + count);
    else this.#take({ kind: "run", mark, count, opens, closes }, begin + count);
  }

  /**
   * @param {string} mark
   * @returns {boolean} whether a link begins here
   */
  #link(mark) {
    if (mark === "<") return this.#addressLink(matchAt(AUTOLINK, this.#source, this.#at)?.[1], 2);
    if (mark === "h") return this.#addressLink(trimAddress(matchAt(BARE_LINK, this.#source, this.#at)?.[0] ?? ""), 0);
    // Pictures would be requests to others, so they are links.
    const open = mark === "!" ? this.#at + 1 : this.#at;
    const close = this.#brackets.get(open);
    const destination = close === undefined ? null : matchAt(DESTINATION, this.#source, close + 1);
    const href = destination && safeAddress(destination[1] ?? destination[2]);
    if (!close || !destination || !href) return false;
    const children = new InlineParser(this.#source.slice(open + 1, close), false).parse();
    this.#take({ kind: "link", href, children: children.length > 0 ? children : [href] }, close + 1 + destination[0].length);
    return true;
  }

  /**
   * @param {string | undefined} address
   * @param {number} around how many characters stand around it
   */
  #addressLink(address, around) {
    const href = address && safeAddress(address);
    if (!href) return false;
    this.#take({ kind: "link", href, children: [address] }, this.#at + address.length + around);
    return true;
  }
}

/**
 * @param {RegExp} pattern a sticky one
 * @param {string} text
 * @param {number} at
 */
function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/**
 * @param {string} text
 * @param {number} at
 * @returns {number} how often the character there is repeated
 */
function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end++;
  return end - at;
}

/**
 * @param {string} source
 * @returns {Map<number, number>} where the bracket closes that opens there
 */
function matchBrackets(source) {
  const pairs = new Map();
  const open = [];
  for (const { 0: mark, index } of source.matchAll(/\\.|[[\]]/gs)) {
    if (mark === "[") open.push(index);
    else if (mark === "]" && open.length > 0) pairs.set(open.pop(), index);
  }
  return pairs;
}

/**
 * @param {string} source
 * @returns {Map<number, number[]>} by length, where runs of backticks are
 */
function tickRuns(source) {
  const runs = new Map();
  for (const { 0: run, index } of source.matchAll(/`+/g)) {
    if (!runs.has(run.length)) runs.set(run.length, []);
    runs.get(run.length).push(index);
  }
  return runs;
}

/**
 * @param {string} address as found in running text
 * @returns {string} without what rather belongs to the sentence
 */
function trimAddress(address) {
  let unopened = 0;
  for (const mark of address) unopened += mark === ")" ? 1 : mark === "(" ? -1 : 0;
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last === ")" && unopened-- <= 0) break;
    if (!").,;:!?'\"*_~]".includes(last)) break;
  }
  return address.slice(0, end);
}

/**
 * CommonMark's delimiter algorithm, without its rule about lengths that are multiples of three.
 * @param {(Inline | Run)[]} parts
 * @returns {Inline[]}
 */
function resolveEmphasis(parts) {
  /** @type {(Inline | Run)[]} */
  const out = [];
  /** @type {Record<string, number[]>} by mark, where in `out` the runs are that something may close */
  const openers = { "*": [], _: [], "~": [] };
  for (const part of parts) {
    if (typeof part === "string" || part.kind !== "run") {
      out.push(part);
      continue;
    }
    while (part.closes && part.count > 0 && openers[part.mark].length > 0) {
      if (!wrap(out, openers, part)) break;
    }
    if (part.count === 0) continue;
    if (part.opens) openers[part.mark].push(out.length);
    out.push(part);
  }
  return mergeText(out);
}

/**
 * Makes an element of everything after the nearest opening run.
 * @param {(Inline | Run)[]} out
 * @param {Record<string, number[]>} openers
 * @param {Run} closer
 * @returns {boolean} false where it would be nested too deep
 */
function wrap(out, openers, closer) {
  const place = /** @type {number} */ (openers[closer.mark].at(-1));
  const opener = /** @type {Run} */ (out[place]);
  const children = mergeText(out.splice(place + 1));
  const depth = 1 + children.reduce((most, child) => Math.max(most, depthOf(child)), 0);
  if (depth > DEEPEST) {
    for (const child of children) out.push(child);
    for (const places of Object.values(openers)) places.length = 0;
    return false;
  }
  const used = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
  out.push({ kind: closer.mark === "~" ? "del" : used === 2 ? "strong" : "em", children, depth });
  opener.count -= used;
  closer.count -= used;
  for (const places of Object.values(openers)) {
    while (places.length > 0 && places[places.length - 1] > place) places.pop();
  }
  if (opener.count === 0) {
    out.splice(place, 1);
    openers[closer.mark].pop();
  }
  return true;
}

/** @param {Inline} inline */
const depthOf = (inline) => (typeof inline === "object" && "depth" in inline ? inline.depth : 0);

/**
 * @param {(Inline | Run)[]} parts
 * @returns {Inline[]} with runs as text, and neighbouring texts as one
 */
function mergeText(parts) {
  /** @type {Inline[]} */
  const out = [];
  for (const part of parts) {
    const piece = typeof part === "object" && part.kind === "run" ? part.mark.repeat(part.count) : part;
    const last = out.at(-1);
    if (typeof piece === "string" && typeof last === "string") out[out.length - 1] = last + piece;
    else out.push(piece);
  }
  return out;
}
