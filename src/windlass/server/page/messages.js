/** How one message looks: a question, which can be edited, and an answer, which may still be coming. */

import { copyButton, fromTemplate, part } from "./elements.js";
import { MarkdownView } from "./markdown_view.js";

/**
 * @typedef {import("./chats.js").Message} Message
 * @typedef {object} Actions
 * @property {(message: Message) => void} again answers anew, beside this answer
 * @property {(message: Message, text: string) => void} edit asks anew, beside this question
 * @property {(message: Message) => void} show shows this version
 */

const SPOKEN = 2000;
const SHORTEST_S = 0.1;

/** What questions and answers have in common. */
class MessageView {
  #actions;

  /**
   * @param {string} template
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(template, message, actions) {
    this.element = fromTemplate(template);
    this.message = message;
    this.#actions = actions;
    part(this.element, "actions").prepend(copyButton("Copy message", () => this.message.content));
  }

  /** @param {Message[]} all the versions of this message; with more than one the user can choose */
  showVersions(all) {
    const here = all.indexOf(this.message);
    const chooser = part(this.element, "versions");
    chooser.hidden = all.length < 2;
    part(chooser, "count").textContent = `${here + 1}/${all.length}`;
    this.#leadTo("previous", all[here - 1]);
    this.#leadTo("next", all[here + 1]);
  }

  /**
   * @param {string} name of the button
   * @param {Message | undefined} version
   */
  #leadTo(name, version) {
    /** @type {HTMLButtonElement} */
    const button = part(this.element, name);
    button.disabled = !version;
    button.onclick = () => version && this.#actions.show(version);
  }
}

export class QuestionView extends MessageView {
  #edit;

  /**
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(message, actions) {
    super("question-template", message, actions);
    this.#edit = actions.edit;
    part(this.element, "text").textContent = message.content;
    part(this.element, "edit").addEventListener("click", () => this.edit());
    const form = part(this.element, "form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === this.#area) {
        event.preventDefault();
        this.#submit();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.#close();
      }
    });
    this.#area.addEventListener("input", () => fitHeight(this.#area));
    part(this.element, "cancel").addEventListener("click", () => this.#close());
  }

  /** A question does not change: an edited one is another message. */
  update() {}

  /** @returns {string} */
  spoken() {
    return this.message.content;
  }

  /** Shows the editor. */
  edit() {
    this.#area.value = this.message.content;
    this.element.classList.add("editing");
    fitHeight(this.#area);
    this.#area.focus();
    this.#area.setSelectionRange(this.#area.value.length, this.#area.value.length);
  }

  /** @returns {HTMLTextAreaElement} */
  get #area() {
    return part(this.element, "editor");
  }

  #close() {
    this.element.classList.remove("editing");
    part(this.element, "edit").focus();
  }

  #submit() {
    const text = this.#area.value.trim();
    if (text === "") return;
    this.#close();
    this.#edit(this.message, text);
  }
}

export class AnswerView extends MessageView {
  #content = new MarkdownView(part(this.element, "content"));
  #reasoning = new MarkdownView(part(this.element, "reasoning-text"));

  /**
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(message, actions) {
    super("answer-template", message, actions);
    for (const name of ["again", "retry"]) {
      part(this.element, name).addEventListener("click", () => actions.again(message));
    }
  }

  /** Shows the message as it is now. */
  update() {
    const { element, message } = this;
    element.dataset.state = message.state;
    element.setAttribute("aria-busy", String(message.state === "open"));
    part(element, "waiting").hidden = message.state !== "open" || hasBegun(message);
    part(element, "reasoning").hidden = !message.reasoning;
    this.#reasoning.update(message.reasoning ?? "");
    this.#content.update(message.content);
    showToolCalls(part(element, "tools"), message);
    showFailure(element, message);
    part(element, "notice").textContent = noticeOf(message);
    part(element, "stats").textContent = statsOf(message);
  }

  /** @returns {string} what a screen reader is told at the end */
  spoken() {
    const text = part(this.element, "content").textContent || this.message.content;
    return [text.slice(0, SPOKEN), noticeOf(this.message), this.message.failure?.message ?? ""].join(" ").trim();
  }
}

/** @param {Message} message */
const hasBegun = (message) => Boolean(message.content || message.reasoning || message.toolCalls);

/**
 * @param {HTMLElement} list
 * @param {Message} message
 */
function showToolCalls(list, message) {
  const calls = message.toolCalls ?? [];
  while (list.children.length < calls.length) list.append(fromTemplate("tool-template"));
  for (const [index, call] of calls.entries()) {
    const item = /** @type {HTMLElement} */ (list.children[index]);
    part(item, "name").textContent = call.name;
    part(item, "arguments").textContent = call.arguments;
  }
}

/**
 * @param {HTMLElement} element
 * @param {Message} message
 */
function showFailure(element, { state, failure }) {
  part(element, "failure").hidden = state !== "failed";
  if (!failure) return;
  part(element, "failure-message").textContent = failure.message;
  const wait = failure.retryAfter;
  part(element, "retry-after").textContent = wait === null ? "" : `The server asks to wait ${wait} s.`;
}

/**
 * @param {Message} message
 * @returns {string} how it ended, if not as usual
 */
function noticeOf({ state, finish }) {
  if (state === "stopped") return "Stopped.";
  if (state === "cut") return "Cut off: the answer did not come to its end.";
  if (state === "done" && finish === "length") return "The limit of tokens was reached.";
  return "";
}

/**
 * @param {Message} message
 * @returns {string}
 */
function statsOf({ state, stats }) {
  if (!stats || state === "open") return "";
  const { tokens, first, seconds } = stats;
  const shown = [];
  if (tokens !== null) {
    // The first token's time is the prompt's. But what comes nearly all at once says nothing about its own speed.
    const rate = seconds < SHORTEST_S ? tokens / (first + seconds) : (tokens - 1) / seconds;
    shown.push(tokens === 1 ? "1 token" : `${tokens} tokens`, `${rate.toFixed(1)} tokens/s`);
  }
  shown.push(`first after ${first.toFixed(2)} s`);
  return shown.join(" · ");
}

/**
 * Makes a text box as high as its text; the style sheet limits it.
 * @param {HTMLTextAreaElement} area
 */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}
