/** Conversations, and how they are kept in the browser: one entry of localStorage each, so that windows do not overwrite
 * each other's. A conversation is a tree, because a message that is edited or an answer that is made again begins a branch.
 */

/**
 * @typedef {"open" | "done" | "stopped" | "cut" | "failed"} State "open" while the answer is coming
 * @typedef {{message: string, status: number, retryAfter: number | null}} Failure
 * @typedef {{id: string, name: string, arguments: string}} ToolCall
 * @typedef {{tokens: number | null, first: number, seconds: number}} Stats time to the first token, and from there to the last
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {State} state
 * @property {string} [reasoning]
 * @property {ToolCall[]} [toolCalls]
 * @property {string} [finish] why the model ended
 * @property {string} [model]
 * @property {Failure} [failure]
 * @property {Stats} [stats]
 *
 * @typedef {object} Chat
 * @property {string} id
 * @property {number} created milliseconds since 1970
 * @property {number} updated
 * @property {Message[]} messages in the order they were made
 * @property {string | null} leaf the last message of the branch that is shown
 */

const PREFIX = "windlass.chat.";
const LONGEST_TITLE = 60;

/** @returns {string} */
function freshId() {
  // crypto.randomUUID() is missing where the page comes over plain HTTP from another machine.
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Chat} */
export function newChat() {
  const now = Date.now();
  return { id: freshId(), created: now, updated: now, messages: [], leaf: null };
}

/**
 * Adds a message and shows its branch.
 * @param {Chat} chat
 * @param {string | null} parent
 * @param {Pick<Message, "role" | "content" | "state">} fields
 * @returns {Message}
 */
export function addMessage(chat, parent, fields) {
  const message = { id: freshId(), parent, ...fields };
  chat.messages.push(message);
  chat.leaf = message.id;
  chat.updated = Date.now();
  return message;
}

/**
 * Takes away a message that nothing follows, and shows the branch it was on.
 * @param {Chat} chat
 * @param {Message} message
 */
export function dropMessage(chat, message) {
  chat.messages = chat.messages.filter(({ id }) => id !== message.id);
  chat.leaf = message.parent;
}

/**
 * @param {Chat} chat
 * @param {string | null} [leaf]
 * @returns {Message[]} the branch that ends there, from its beginning
 */
export function branch(chat, leaf = chat.leaf) {
  const byId = new Map(chat.messages.map((message) => [message.id, message]));
  /** @type {Message[]} */
  const messages = [];
  for (let message = byId.get(leaf ?? ""); message; message = byId.get(message.parent ?? "")) {
    messages.push(message);
    byId.delete(message.id);
  }
  return messages.reverse();
}

/**
 * @param {Chat} chat
 * @param {Message} message
 * @returns {Message[]} the versions of it, itself included, oldest first
 */
export function versions(chat, message) {
  return chat.messages.filter(({ parent }) => parent === message.parent);
}

/**
 * Shows the branch through a message that goes on to the newest messages.
 * @param {Chat} chat
 * @param {Message} message
 */
export function showVersion(chat, message) {
  /** @type {Message | undefined} */
  let last = message;
  while (last) {
    chat.leaf = last.id;
    last = chat.messages.findLast(({ parent }) => parent === chat.leaf);
  }
}

/**
 * @param {Chat} chat
 * @returns {string}
 */
export function titleOf(chat) {
  const text = (branch(chat)[0]?.content ?? "").trim().split("\n")[0];
  return text.length > LONGEST_TITLE ? `${text.slice(0, LONGEST_TITLE).trimEnd()}…` : text || "New conversation";
}

/**
 * @param {Chat} chat
 * @returns {{name: string, text: string}} a JSON file of what is shown
 */
export function exportOf(chat) {
  const messages = branch(chat).map(({ role, content, reasoning, toolCalls, state, model }) => {
    const calls = toolCalls?.map(({ id, ...call }) => ({ id, type: "function", function: call }));
    return { role, content, reasoning_content: reasoning, tool_calls: calls, model, state };
  });
  const document = { title: titleOf(chat), created: new Date(chat.created).toISOString(), messages };
  const slug = titleOf(chat).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  return { name: `${slug || "conversation"}.json`, text: `${JSON.stringify(document, null, 2)}\n` };
}

/** @returns {Chat[]} those kept in this browser, newest first */
export function loadChats() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const chats = keys.map((key) => parseChat(localStorage.getItem(key) ?? "")).filter((chat) => chat !== null);
  return chats.sort((one, other) => other.updated - one.updated);
}

/**
 * @param {string} text
 * @returns {Chat | null} null for what this page did not write
 */
function parseChat(text) {
  try {
    /** @type {Chat} */
    const chat = JSON.parse(text);
    if (typeof chat.id !== "string" || !Array.isArray(chat.messages)) return null;
    for (const message of chat.messages) {
      // Its answer was coming when the page was closed.
      if (message.state === "open") message.state = "cut";
    }
    return chat;
  } catch {
    return null;
  }
}

/**
 * @param {Chat} chat
 * @returns {boolean} false where the browser has no room left for it
 */
export function saveChat(chat) {
  try {
    localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
    return true;
  } catch {
    return false;
  }
}

/** @param {Chat} chat */
export function removeChat(chat) {
  localStorage.removeItem(PREFIX + chat.id);
}

/**
 * @param {StorageEvent} event
 * @returns {boolean} whether another window changed a conversation
 */
export function concernsChats(event) {
  return event.key === null || event.key.startsWith(PREFIX);
}
