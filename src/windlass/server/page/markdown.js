/**
 * Markdown, as models write it, made into plain objects: the blocks of CommonMark (spec.commonmark.org) and GitHub's
 * tables, without raw HTML, indented code, underlined headings and link references. The text is nobody's friend, so
 * every step takes time in proportion to its length, and nesting has a limit.
 */

import { parseInline } from "./inline.js";

/**
 * @typedef {import("./inline.js").Inline} Inline
 * @typedef {{kind: "paragraph", inline: Inline[]}} Paragraph
 * @typedef {{kind: "heading", level: number, inline: Inline[]}} Heading
 * @typedef {{kind: "code", language: string, text: string}} Code
 * @typedef {{kind: "rule"}} Rule
 * @typedef {{kind: "quote", blocks: Block[]}} Quote
 * @typedef {{kind: "list", ordered: boolean, start: number, tight: boolean, blocks: Block[]}} List its blocks are items
 * @typedef {{kind: "item", blocks: Block[]}} Item
 * @typedef {{kind: "table", align: string[], head: Inline[][], rows: Inline[][][]}} Table
 * @typedef {Paragraph | Heading | Code | Rule | Quote | List | Item | Table} Content
 * @typedef {Content & {raw: string, line: number}} Block `raw` is its source, `line` where in the given lines it begins
 */

const DEEPEST = 12;

const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/s;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/s;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^\|?:?-+:?(?:\|:?-+:?)*\|?$/; // without spaces

/**
 * @param {string} source
 * @returns {string[]} its lines, with leading tabs as spaces
 */
export function toLines(source) {
  return source.split("\n").map((line) => {
    const whole = line.endsWith("\r") ? line.slice(0, -1) : line;
    return whole.replace(/^[ \t]+/, (indent) => indent.replaceAll("\t", "    "));
  });
}

/**
 * @param {string[]} lines
 * @param {number} [depth] how many blocks these are in
 * @returns {Block[]}
 */
export function parseBlocks(lines, depth = 0) {
  /** @type {Block[]} */
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const [content, end] = parseBlock(lines, at, depth);
    blocks.push({ ...content, raw: lines.slice(at, end).join("\n"), line: at });
    at = end;
  }
  return blocks;
}

/**
 * @param {string[]} lines
 * @param {number} at a line that is not blank
 * @param {number} depth
 * @returns {[Content, number]} the block that begins there, and the line after it
 */
function parseBlock(lines, at, depth) {
  if (isFence(lines[at])) return parseCode(lines, at);
  if (RULE.test(lines[at])) return [{ kind: "rule" }, at + 1];
  const heading = HEADING.exec(lines[at]);
  if (heading) return [{ kind: "heading", level: heading[1].length, inline: parseInline(headingText(heading[2] ?? "")) }, at + 1];
  if (isTable(lines, at)) return parseTable(lines, at);
  if (depth < DEEPEST) {
    if (QUOTE.test(lines[at])) return parseQuote(lines, at, depth);
    if (ITEM.test(lines[at])) return parseList(lines, at, depth);
  }
  return parseParagraph(lines, at, depth);
}

/** @param {string} line */
const isBlank = (line) => line.trim() === "";

/** @param {string} line */
const indentOf = (line) => line.length - line.trimStart().length;

/** @param {string} line */
function isFence(line) {
  const match = FENCE.exec(line);
  return match !== null && !(match[2].startsWith("`") && match[3].includes("`"));
}

/**
 * @param {string[]} lines
 * @param {number} at
 */
function isTable(lines, at) {
  const delimiters = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !DELIMITERS.test(delimiters.replaceAll(" ", ""))) return false;
  return cellsOf(lines[at]).length === cellsOf(delimiters).length;
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {boolean} whether the line ends the paragraph before it
 */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (isBlank(line) || isFence(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  if (depth >= DEEPEST) return false;
  const item = ITEM.exec(line);
  return QUOTE.test(line) || (item !== null && item[3] !== "" && !/^(?!1[.)])\d/.test(item[2]));
}

/**
 * @param {string} text after the opening number signs
 * @returns {string} without the closing ones
 */
function headingText(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end--;
  if (end === 0) return "";
  return /[ \t]/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trimEnd() : trimmed;
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {[Paragraph, number]}
 */
function parseParagraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && !interrupts(lines, end, depth)) end++;
  const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return [{ kind: "paragraph", inline: parseInline(text) }, end];
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @returns {[Code, number]} a fence that is not closed reaches to the end
 */
function parseCode(lines, at) {
  const [, indent, fence, info] = /** @type {RegExpExecArray} */ (FENCE.exec(lines[at]));
  const closing = (/** @type {string} */ line) => {
    const text = line.trim();
    return indentOf(line) < 4 && text.length >= fence.length && text === fence[0].repeat(text.length);
  };
  let end = at + 1;
  while (end < lines.length && !closing(lines[end])) end++;
  const text = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indentOf(line), indent.length))).join("\n");
  return [{ kind: "code", language: info.trim().split(/\s/)[0], text }, Math.min(end + 1, lines.length)];
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {[Quote, number]}
 */
function parseQuote(lines, at, depth) {
  const inner = [];
  let end = at;
  for (; end < lines.length; end++) {
    const quoted = QUOTE.test(lines[end]);
    if (!quoted && (interrupts(lines, end, depth) || isBlank(inner[inner.length - 1]))) break;
    inner.push(lines[end].replace(QUOTE, ""));
  }
  return [{ kind: "quote", blocks: parseBlocks(inner, depth + 1) }, end];
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @param {number} depth
 * @returns {[List, number]}
 */
function parseList(lines, at, depth) {
  const mark = /** @type {RegExpExecArray} */ (ITEM.exec(lines[at]))[2];
  const kind = mark.slice(-1);
  /** @type {Block[]} */
  const items = [];
  let tight = true;
  let end = at;
  for (let next = at; next < lines.length; next = skipBlank(lines, end)) {
    const match = ITEM.exec(lines[next]);
    if (!match || match[2].slice(-1) !== kind || RULE.test(lines[next])) break;
    if (next > end) tight = false;
    const [inner, after] = itemLines(lines, next, match, depth);
    const blocks = parseBlocks(inner, depth + 1);
    if (blocks.some((block, index) => index > 0 && isBlank(inner[block.line - 1]))) tight = false;
    items.push({ kind: "item", blocks, raw: lines.slice(next, after).join("\n"), line: next });
    end = after;
  }
  return [{ kind: "list", ordered: mark.length > 1, start: Number.parseInt(mark, 10) || 0, tight, blocks: items }, end];
}

/**
 * @param {string[]} lines
 * @param {number} at the item's first line
 * @param {RegExpExecArray} match of ITEM
 * @param {number} depth
 * @returns {[string[], number]} what stands in the item, and the line after it
 */
function itemLines(lines, at, match, depth) {
  const width = match[1].length + match[2].length + (match[3].length > 4 ? 1 : match[3].length || 1);
  // Models indent by two what is in a numbered item, where the specification wants three or four.
  const least = Math.min(width, match[1].length + 2);
  const inner = [lines[at].slice(width)];
  let end = at + 1;
  while (end < lines.length) {
    const next = skipBlank(lines, end);
    const inside = next < lines.length && indentOf(lines[next]) >= least;
    const lazy = next === end && !isBlank(inner[inner.length - 1]) && !interrupts(lines, next, depth) && !ITEM.test(lines[next]);
    if (next === lines.length || !(inside || lazy)) break;
    while (end < next) inner.push(lines[end++].trim());
    inner.push(lines[end].slice(Math.min(indentOf(lines[end]), width)));
    end++;
  }
  return [inner, end];
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @returns {number} the first line from there that is not blank
 */
function skipBlank(lines, at) {
  while (at < lines.length && isBlank(lines[at])) at++;
  return at;
}

/**
 * @param {string[]} lines
 * @param {number} at
 * @returns {[Table, number]}
 */
function parseTable(lines, at) {
  const align = cellsOf(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
    return cell.startsWith(":") ? "left" : "";
  });
  /** @param {string} line */
  const row = (line) => {
    const cells = cellsOf(line);
    return align.map((_, column) => parseInline(cells[column] ?? ""));
  };
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && !isBlank(lines[end])) end++;
  return [{ kind: "table", align, head: row(lines[at]), rows: lines.slice(at + 2, end).map(row) }, end];
}

/**
 * @param {string} line
 * @returns {string[]} its cells, a pipe in a cell being written with a backslash
 */
function cellsOf(line) {
  const cells = [""];
  for (const [piece] of line.trim().matchAll(/\\.|\||[^\\|]+|\\/g)) {
    if (piece === "|") cells.push("");
    else cells[cells.length - 1] += piece === "\\|" ? "|" : piece;
  }
  if (cells[0].trim() === "") cells.shift();
  if (cells.length > 0 && cells[cells.length - 1].trim() === "") cells.pop();
  return cells.map((cell) => cell.trim());
}
