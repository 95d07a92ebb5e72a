/**
 * Markdown on the page, while it is being written. Everything is made of DOM nodes and text nodes, never of markup.
 */

import { copyButton } from "./elements.js";
import { parseBlocks, toLines } from "./markdown.js";

/**
 * @typedef {import("./markdown.js").Block} Block
 * @typedef {import("./markdown.js").Inline} Inline
 * @typedef {Block & {element: HTMLElement}} Shown
 */

/** A growing text. Blocks that can no longer change are let be; of the last one, only what changed is made anew. */
export class MarkdownView {
  #root;
  #settled = 0;
  /** @type {Shown[]} */
  #open = [];

  /** @param {HTMLElement} root empty, and nobody else's */
  constructor(root) {
    this.#root = root;
  }

  /** @param {string} source begins with what it was the last time */
  update(source) {
    const rest = source.slice(this.#settled);
    const lines = toLines(rest);
    const shown = patch(this.#root, this.#open, parseBlocks(lines));
    // The line being written may yet turn out to belong to the block before it; what a table is, its second line tells.
    const whole = shown.filter(({ kind, line }) => line + (kind === "table" ? 1 : 0) < lines.length - 1);
    const last = whole.length - 1;
    if (last > 0) {
      const before = rest.split("\n", whole[last].line);
      this.#settled += before.reduce((length, line) => length + line.length + 1, 0);
    }
    this.#open = shown.slice(Math.max(0, last));
  }
}

/**
 * Makes the elements of `old` those of `blocks`.
 * @param {HTMLElement} parent of the old elements, which are its last ones
 * @param {Shown[]} old
 * @param {Block[]} blocks
 * @returns {Shown[]}
 */
function patch(parent, old, blocks) {
  const shown = blocks.map((block, index) => {
    const before = old[index];
    const element = (before && kept(before, block)) ?? makeBlock(block);
    if (!before) parent.append(element);
    else if (element !== before.element) before.element.replaceWith(element);
    return Object.assign(block, { element });
  });
  for (const { element } of old.slice(blocks.length)) element.remove();
  return shown;
}

/**
 * @param {Shown} old
 * @param {Block} block
 * @returns {HTMLElement | null} the old element, showing the new block now, if that is possible
 */
function kept(old, block) {
  if (old.kind === block.kind && old.raw === block.raw) {
    if ("blocks" in old && "blocks" in block) block.blocks = old.blocks;
    return old.element;
  }
  if (old.kind === "code" && block.kind === "code" && old.language === block.language) {
    extendText(/** @type {Text} */ (old.element.querySelector("code")?.firstChild), block.text);
    return old.element;
  }
  if (old.kind === "list" && block.kind === "list" && old.ordered === block.ordered && old.start === block.start) {
    old.element.classList.toggle("tight", block.tight);
  } else if (!(old.kind === block.kind && (old.kind === "quote" || old.kind === "item"))) {
    return null;
  }
  if (!("blocks" in old && "blocks" in block)) return null;
  patch(old.element, /** @type {Shown[]} */ (old.blocks), block.blocks);
  return old.element;
}

/**
 * @param {Text} node
 * @param {string} text
 */
function extendText(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

/**
 * @param {Block} block
 * @returns {HTMLElement}
 */
function makeBlock(block) {
  switch (block.kind) {
    case "paragraph":
      return withInline(make("p"), block.inline);
    case "heading":
      // The page has headings of its own above these.
      return withInline(make(`h${Math.min(6, block.level + 2)}`, `level-${block.level}`), block.inline);
    case "code":
      return makeCode(block.language, block.text);
    case "rule":
      return make("hr");
    case "table":
      return makeTable(block);
    default:
      return makeContainer(block);
  }
}

/**
 * @param {import("./markdown.js").Quote | import("./markdown.js").List | import("./markdown.js").Item} block
 * @returns {HTMLElement}
 */
function makeContainer(block) {
  const element = make(block.kind === "quote" ? "blockquote" : block.kind === "item" ? "li" : block.ordered ? "ol" : "ul");
  if (block.kind === "list") element.classList.toggle("tight", block.tight);
  if (element instanceof HTMLOListElement && block.kind === "list") element.start = block.start;
  patch(element, [], block.blocks);
  return element;
}

/**
 * @param {string} language "" for none
 * @param {string} text
 * @returns {HTMLElement}
 */
function makeCode(language, text) {
  const figure = make("figure", "code");
  const caption = make("figcaption");
  const label = make("span");
  label.textContent = language || "text";
  const code = make("code");
  code.append(document.createTextNode(text));
  const pre = make("pre");
  pre.tabIndex = 0;
  pre.append(code);
  caption.append(label, copyButton("Copy code", () => code.textContent ?? ""));
  figure.append(caption, pre);
  return figure;
}

/**
 * @param {import("./markdown.js").Table} block
 * @returns {HTMLElement}
 */
function makeTable({ align, head, rows }) {
  const table = /** @type {HTMLTableElement} */ (make("table"));
  /**
   * @param {HTMLTableSectionElement} section
   * @param {string} tag
   * @param {Inline[][]} cells
   */
  const addRow = (section, tag, cells) => {
    const row = section.insertRow();
    row.append(...cells.map((cell, column) => withInline(make(tag, align[column] && `align-${align[column]}`), cell)));
  };
  addRow(table.createTHead(), "th", head);
  const body = table.createTBody();
  for (const cells of rows) addRow(body, "td", cells);
  const frame = make("div", "table");
  frame.tabIndex = 0;
  frame.append(table);
  return frame;
}

/**
 * @param {HTMLElement} element
 * @param {Inline[]} parts
 * @returns {HTMLElement} the element
 */
function withInline(element, parts) {
  for (const part of parts) element.append(makeInline(part));
  return element;
}

/**
 * @param {Inline} part
 * @returns {Node}
 */
function makeInline(part) {
  if (typeof part === "string") return document.createTextNode(part);
  if (part.kind === "break") return make("br");
  if (part.kind !== "link") {
    const element = make(part.kind);
    if (part.kind === "code") element.textContent = part.text;
    return part.kind === "code" ? element : withInline(element, part.children);
  }
  const link = /** @type {HTMLAnchorElement} */ (make("a"));
  link.href = part.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return withInline(link, part.children);
}

/**
 * @param {string} tag
 * @param {string} [className]
 * @returns {HTMLElement}
 */
function make(tag, className = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}
