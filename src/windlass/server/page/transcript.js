/** The branch of a conversation that is shown, one element for each message. */

import { announce } from "./elements.js";
import { AnswerView, QuestionView } from "./messages.js";
import { branch, versions } from "./chats.js";

/**
 * @typedef {import("./chats.js").Chat} Chat
 * @typedef {import("./chats.js").Message} Message
 * @typedef {import("./messages.js").Actions} Actions
 */

export class Transcript {
  #root;
  #actions;
  /** @type {(AnswerView | QuestionView)[]} */
  #views = [];
  /** @type {Set<AnswerView | QuestionView>} */
  #changed = new Set();

  /**
   * @param {HTMLElement} root
   * @param {Actions} actions
   */
  constructor(root, actions) {
    this.#root = root;
    this.#actions = actions;
  }

  /** @param {Chat} chat its messages are shown; those that are shown already stay as they are */
  show(chat) {
    const messages = branch(chat);
    let same = 0;
    while (same < messages.length && this.#views[same]?.message === messages[same]) same++;
    for (const view of this.#views.splice(same)) view.element.remove();
    for (const message of messages.slice(same)) {
      const view = message.role === "user" ? new QuestionView(message, this.#actions) : new AnswerView(message, this.#actions);
      this.#views.push(view);
      this.#root.append(view.element);
    }
    for (const view of this.#views) {
      view.update();
      view.showVersions(versions(chat, view.message));
    }
  }

  /** @param {Message} message it changed; what is not shown does not matter */
  update(message) {
    const view = this.#views.find((candidate) => candidate.message === message);
    if (!view) return;
    if (this.#changed.size === 0) requestAnimationFrame(() => this.#draw());
    this.#changed.add(view);
  }

  /** Begins to edit the last question. */
  editLast() {
    const question = this.#views.findLast((view) => view instanceof QuestionView);
    if (question instanceof QuestionView) question.edit();
  }

  #draw() {
    for (const view of this.#changed) {
      view.update();
      if (view.message.state !== "open") announce(view.spoken());
    }
    this.#changed.clear();
  }
}
