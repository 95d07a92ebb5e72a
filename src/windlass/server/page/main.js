/** The page: its conversations, and what its buttons and keys do. */

import { apiKey, keyIsKept, listModels, setApiKey, ApiError } from "./api.js";
import { fillAnswer, wireMessages } from "./answer.js";
import {
  addMessage, branch, concernsChats, dropMessage, exportOf, loadChats, newChat, removeChat, saveChat, showVersion, titleOf,
} from "./chats.js";
import { announce, byId, fromTemplate, part, toast } from "./elements.js";
import { fitHeight } from "./messages.js";
import { EndKeeper } from "./scroll.js";
import { Settings } from "./settings.js";
import { Transcript } from "./transcript.js";
import { Watch } from "./watch.js";

/**
 * @typedef {import("./chats.js").Chat} Chat
 * @typedef {import("./chats.js").Message} Message
 */

const CURRENT = "windlass.current";
const MODEL = "windlass.model";
const THEME = "windlass.theme";
const SAVE_EVERY_MS = 2000;
const DEMO = "windlass-demo";
const NARROW = "(max-width: 52rem)"; // as in the style sheet

/** @type {Record<string, string>} */
const BANNERS = {
  loading: "The model is still loading. What you send now will have to be sent again.",
  draining: "The server is shutting down: it finishes open answers and takes nothing new.",
  terminating: "The server is shutting down.",
  failed: "The model’s engine has failed; the server has to be started again.",
  down: "The server cannot be reached. Trying again…",
};

class Page {
  #chats = loadChats();
  /** @type {Chat} */
  #chat = this.#chats.find(({ id }) => id === sessionStorage.getItem(CURRENT)) ?? newChat();
  /** @type {Map<string, AbortController>} by conversation, what stops its answer */
  #running = new Map();
  #ready = true;
  #leaving = false;
  #settings = new Settings();
  /** @type {HTMLTextAreaElement} */
  #text = byId("text");
  /** @type {HTMLSelectElement} */
  #models = byId("models");
  #end = new EndKeeper(byId("scroller"), byId("content"), byId("to-end"));
  #transcript = new Transcript(byId("transcript"), {
    again: (message) => this.#again(message),
    edit: (message, text) => this.#ask(message.parent, text),
    show: (message) => this.#showVersion(message),
  });
  #watch = new Watch(
    (state) => this.#showReadiness(state),
    (queue) => {
      byId("queue").textContent = queue ? `${queue.running} running · ${queue.waiting} waiting` : "";
    },
  );

  start() {
    this.#listen();
    this.#listenToKeys();
    this.#show();
    this.#watch.start();
    void this.#loadModels();
    this.#text.focus();
  }

  // Asking and answering

  #send() {
    const text = this.#text.value.trim();
    if (text === "" || this.#running.has(this.#chat.id)) return;
    this.#text.value = "";
    fitHeight(this.#text);
    this.#ask(this.#chat.leaf, text);
  }

  /**
   * @param {string | null} parent the message before
   * @param {string} text
   */
  #ask(parent, text) {
    this.#stop();
    const question = addMessage(this.#chat, parent, { role: "user", content: text, state: "done" });
    void this.#answer(this.#chat, question.id);
  }

  /** @param {Message} message an answer; one that failed at once makes room for the new one */
  #again(message) {
    this.#stop();
    const nothing = message.state === "failed" && !message.content && !message.reasoning;
    if (nothing && this.#chat.leaf === message.id) dropMessage(this.#chat, message);
    void this.#answer(this.#chat, message.parent);
  }

  /**
   * @param {Chat} chat
   * @param {string | null} parent the question
   */
  async #answer(chat, parent) {
    const request = {
      model: this.#models.value || undefined,
      messages: wireMessages(this.#settings.system, branch(chat, parent)),
      ...this.#settings.sampling(),
    };
    const message = addMessage(chat, parent, { role: "assistant", content: "", state: "open" });
    const controller = new AbortController();
    this.#running.set(chat.id, controller);
    if (!this.#chats.includes(chat)) this.#chats.unshift(chat);
    this.#show();
    this.#end.toEnd();
    announce("The answer is coming");
    const saving = setInterval(() => this.#save(chat), SAVE_EVERY_MS);
    await fillAnswer(message, request, controller.signal, () => this.#transcript.update(message));
    clearInterval(saving);
    if (this.#running.get(chat.id) === controller) this.#running.delete(chat.id);
    this.#save(chat);
    this.#showChats();
    this.#showSending();
    if (message.failure?.status === 401) this.#askForKey(message.failure.message);
  }

  #stop() {
    this.#running.get(this.#chat.id)?.abort();
    this.#running.delete(this.#chat.id);
  }

  /** @param {Message} message */
  #showVersion(message) {
    showVersion(this.#chat, message);
    this.#save(this.#chat);
    this.#transcript.show(this.#chat);
  }

  /** Keeps what has come so far. That the browser now breaks the connections must not look like the server's fault. */
  #leave() {
    for (const chat of this.#chats) if (this.#running.has(chat.id)) this.#save(chat);
    this.#leaving = true;
  }

  /** @param {Chat} chat one that was deleted meanwhile stays deleted */
  #save(chat) {
    if (this.#leaving || !this.#chats.includes(chat)) return;
    if (!saveChat(chat)) toast("This browser has no room left for conversations. Export and delete some.");
  }

  // Conversations

  /** @param {Chat} chat */
  #open(chat) {
    this.#chat = chat;
    this.#showMenu(false);
    this.#show();
    this.#end.toEnd();
    this.#text.focus();
  }

  /** @param {Chat} chat */
  #delete(chat) {
    this.#running.get(chat.id)?.abort();
    this.#chats = this.#chats.filter((other) => other !== chat);
    removeChat(chat);
    if (chat === this.#chat) this.#chat = newChat();
    this.#show();
    toast("The conversation was deleted.", { label: "Undo", run: () => this.#restore(chat) });
  }

  /** @param {Chat} chat */
  #restore(chat) {
    this.#chats = [chat, ...this.#chats].sort((one, other) => other.updated - one.updated);
    this.#save(chat);
    this.#open(chat);
  }

  #export() {
    const { name, text } = exportOf(this.#chat);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = name;
    link.click();
    // The download has begun when the click returns, but not every browser has opened the address by then.
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /** Takes over what another window did, but for conversations in use here. */
  #reload() {
    const inUse = this.#chats.filter((chat) => chat === this.#chat || this.#running.has(chat.id));
    const others = loadChats().filter(({ id }) => !inUse.some((chat) => chat.id === id));
    this.#chats = [...inUse, ...others].sort((one, other) => other.updated - one.updated);
    this.#showChats();
  }

  // What is seen

  #show() {
    sessionStorage.setItem(CURRENT, this.#chat.id);
    const empty = this.#chat.messages.length === 0;
    byId("welcome").hidden = !empty;
    byId("export").toggleAttribute("disabled", empty);
    keepFocus(() => {
      this.#transcript.show(this.#chat);
      this.#showChats();
    });
    this.#showSending();
  }

  #showChats() {
    document.title = this.#chat.messages.length > 0 ? `${titleOf(this.#chat)} · Windlass` : "Windlass";
    byId("chats").replaceChildren(...this.#chats.map((chat) => this.#chatItem(chat)));
  }

  /** @param {Chat} chat */
  #chatItem(chat) {
    const item = fromTemplate("chat-template");
    const open = part(item, "open");
    open.textContent = titleOf(chat);
    open.classList.toggle("running", this.#running.has(chat.id));
    if (chat === this.#chat) open.setAttribute("aria-current", "page");
    open.addEventListener("click", () => this.#open(chat));
    const remove = part(item, "delete");
    remove.setAttribute("aria-label", `Delete ${titleOf(chat)}`);
    remove.addEventListener("click", () => this.#delete(chat));
    return item;
  }

  #showSending() {
    const running = this.#running.has(this.#chat.id);
    document.body.classList.toggle("answering", running);
    keepFocus(() => {
      byId("send").hidden = running;
      byId("stop").hidden = !running;
    });
  }

  /** @param {import("./api.js").Readiness} state */
  #showReadiness(state) {
    const ready = state === "ready";
    if (ready && !this.#ready) void this.#loadModels();
    this.#ready = ready;
    const text = ready ? "" : BANNERS[state] ?? `The server is not ready (${state}).`;
    const banner = byId("banner");
    if (banner.textContent !== text) banner.textContent = text;
    banner.hidden = ready;
  }

  async #loadModels() {
    try {
      const names = await listModels();
      const wanted = this.#models.value || localStorage.getItem(MODEL) || "";
      this.#models.replaceChildren(...names.map((name) => new Option(name, name)));
      if (names.includes(wanted)) this.#models.value = wanted;
      byId("examples").hidden = this.#models.value !== DEMO;
    } catch (error) {
      // What is wrong with the server otherwise, the banner tells.
      if (error instanceof ApiError && error.status === 401) this.#askForKey(error.message);
    }
  }

  /** @param {string} reason the server's message, or "" */
  #askForKey(reason) {
    /** @type {HTMLDialogElement} */
    const dialog = byId("key-dialog");
    byId("key-reason").textContent = reason;
    /** @type {HTMLInputElement} */ (byId("key")).value = apiKey();
    /** @type {HTMLInputElement} */ (byId("key-keep")).checked = keyIsKept();
    if (!dialog.open) dialog.showModal();
  }

  #takeKey() {
    /** @type {HTMLInputElement} */
    const field = byId("key");
    setApiKey(field.value.trim(), /** @type {HTMLInputElement} */ (byId("key-keep")).checked);
    /** @type {HTMLDialogElement} */ (byId("key-dialog")).close();
    this.#watch.start();
    void this.#loadModels();
    const last = branch(this.#chat).at(-1);
    if (last?.failure?.status === 401) this.#again(last);
  }

  /** @param {boolean} open whether the conversations are shown where they have no room of their own */
  #showMenu(open) {
    if (open === document.body.classList.contains("menu")) return;
    document.body.classList.toggle("menu", open);
    byId("menu").setAttribute("aria-expanded", String(open));
    byId("main").inert = open;
    byId(open ? "new" : "menu").focus();
  }

  #nextTheme() {
    const themes = ["", "light", "dark"];
    const root = document.documentElement;
    const theme = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length];
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    if (theme) localStorage.setItem(THEME, theme);
    else localStorage.removeItem(THEME);
    announce(`Theme: ${theme || "as the system"}`);
  }

  // Buttons and keys

  #listen() {
    /** @type {Record<string, () => void>} */
    const buttons = {
      new: () => this.#open(newChat()),
      stop: () => this.#stop(),
      export: () => this.#export(),
      theme: () => this.#nextTheme(),
      menu: () => this.#showMenu(!document.body.classList.contains("menu")),
      backdrop: () => this.#showMenu(false),
      "settings-open": () => showDialog("settings"),
      "keys-open": () => showDialog("keys"),
      "key-open": () => this.#askForKey(""),
    };
    for (const [id, run] of Object.entries(buttons)) byId(id).addEventListener("click", run);
    for (const button of byId("examples").querySelectorAll("button")) {
      button.addEventListener("click", () => this.#ask(this.#chat.leaf, button.textContent ?? ""));
    }
    for (const dialog of document.querySelectorAll("dialog")) closeByBackdrop(dialog);
    onSubmit("composer", () => this.#send());
    onSubmit("key-form", () => this.#takeKey());
    this.#models.addEventListener("change", () => localStorage.setItem(MODEL, this.#models.value));
    this.#text.addEventListener("input", () => fitHeight(this.#text));
    matchMedia(NARROW).addEventListener("change", () => this.#showMenu(false));
    window.addEventListener("storage", (event) => concernsChats(event) && this.#reload());
    window.addEventListener("pagehide", () => this.#leave());
    window.addEventListener("pageshow", () => (this.#leaving = false));
  }

  #listenToKeys() {
    this.#text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      } else if (event.key === "ArrowUp" && this.#text.value === "") {
        event.preventDefault();
        this.#transcript.editLast();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.key === "Escape") {
        if (document.body.classList.contains("menu")) this.#showMenu(false);
        else this.#stop();
      } else if (!isTyping(event.target)) {
        if (event.key === "/") this.#text.focus();
        else if (event.key === "?") showDialog("keys");
        else return;
        event.preventDefault();
      }
    });
  }
}

/** @param {EventTarget | null} target */
const isTyping = (target) => target instanceof HTMLElement && target.matches("input, textarea, select");

/**
 * Does what may take the focused element away. Without this, the keyboard's place would be lost.
 * @param {() => void} run
 */
function keepFocus(run) {
  const focused = document.activeElement;
  run();
  if (focused && focused !== document.body && !focused.checkVisibility()) {
    byId(byId("stop").hidden ? "send" : "stop").focus();
  }
}

/** @param {string} id */
const showDialog = (id) => /** @type {HTMLDialogElement} */ (byId(id)).showModal();

/**
 * @param {string} id of a form, which goes nowhere
 * @param {() => void} run
 */
function onSubmit(id, run) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
}

/** @param {HTMLDialogElement} dialog closes by a click beside it, and by its buttons for that */
function closeByBackdrop(dialog) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  for (const button of dialog.querySelectorAll("[data-part=close]")) button.addEventListener("click", () => dialog.close());
}

new Page().start();
