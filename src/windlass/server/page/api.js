/** The server's routes, as far as the page uses them. Paths are relative, so that a proxy may put the page anywhere. */

import { readEvents } from "./sse.js";

const KEY = "windlass.key";

/** A request that failed. `status` is 0 when there was no answer at all. */
export class ApiError extends Error {
  /**
   * @param {string} message for the user
   * @param {number} [status] HTTP status; 200 for an error in the middle of a stream
   * @param {number | null} [retryAfter] seconds that the server asks to wait
   */
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** @returns {string} the API key, or "" */
export function apiKey() {
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
}

/** @returns {boolean} whether the key outlives the browser's window */
export function keyIsKept() {
  return localStorage.getItem(KEY) !== null;
}

/**
 * @param {string} key "" to forget it
 * @param {boolean} keep past the end of this window's session
 */
export function setApiKey(key, keep) {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  if (key) (keep ? localStorage : sessionStorage).setItem(KEY, key);
}

/**
 * @param {string} path
 * @param {{body?: object, signal?: AbortSignal}} [options] a body makes it a POST
 * @returns {Promise<Response>} whatever the status
 */
async function send(path, { body, signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  try {
    return await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.");
  }
}

/**
 * @param {Response} response one that is not ok
 * @returns {Promise<ApiError>}
 */
async function errorOf(response) {
  const text = await response.text().catch(() => "");
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const retryAfter = Number.isFinite(seconds) ? Math.max(0, seconds) : null;
  return new ApiError(messageIn(text) ?? `The server answered with status ${response.status}.`, response.status, retryAfter);
}

/**
 * @param {string} text a body that should hold OpenAI's error envelope
 * @returns {string | null}
 */
function messageIn(text) {
  try {
    const message = JSON.parse(text)?.error?.message;
    return typeof message === "string" && message ? message : null;
  } catch {
    return null;
  }
}

/** @returns {Promise<string[]>} the names of the models; the first one is the server's default */
export async function listModels() {
  const response = await send("v1/models");
  if (!response.ok) throw await errorOf(response);
  /** @type {{data: {id: string}[]}} */
  const { data } = await response.json();
  return data.map(({ id }) => id);
}

/**
 * @param {object} request the body of a chat completion
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>} the chunks; it ends where the stream does, finished or not
 * @throws {ApiError} refused, or an error in the middle
 */
export async function* streamChat(request, signal) {
  const response = await send("v1/chat/completions", { body: request, signal });
  if (!response.ok) throw await errorOf(response);
  if (!response.body || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    throw new ApiError("The server answered with something that is not a stream of events.", response.status);
  }
  const events = readEvents(response.body);
  try {
    for await (const { data } of events) {
      if (data === "[DONE]") return;
      const chunk = parseChunk(data);
      if (chunk.error) throw new ApiError(chunk.error.message || "The server broke the answer off.", response.status);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError("The connection to the server broke.");
  }
}

/**
 * @param {string} data
 * @returns {any} an object
 */
function parseChunk(data) {
  try {
    const chunk = JSON.parse(data);
    if (typeof chunk === "object" && chunk !== null) return chunk;
  } catch {
    // Told below.
  }
  throw new ApiError("The server sent an event that is not a JSON object.", 200);
}

/** @typedef {"ready" | "down" | string} Readiness "ready", "down" when nothing answers, or the server's own word */

/** @returns {Promise<Readiness>} */
export async function readiness() {
  try {
    const response = await send("readyz");
    if (response.ok || response.status === 404) return "ready";
    const body = await response.json().catch(() => ({}));
    return String(body?.state ?? body?.status ?? "unavailable").toLowerCase();
  } catch {
    return "down";
  }
}

/** @typedef {{running: number, waiting: number}} Queue */

/** @returns {Promise<Queue | number>} the requests of all models, or the status of a refusal (0: nothing answered) */
export async function queue() {
  try {
    const response = await send("metrics");
    if (!response.ok) return response.status;
    const text = await response.text();
    return { running: gauge(text, "windlass_num_requests_running"), waiting: gauge(text, "windlass_num_requests_waiting") };
  } catch {
    return 0;
  }
}

/**
 * @param {string} text Prometheus' exposition format
 * @param {string} name
 * @returns {number} the sum of the samples of that name
 */
export function gauge(text, name) {
  let sum = 0;
  for (const line of text.split("\n")) {
    if (!line.startsWith(name) || !/[ {]/.test(line.charAt(name.length))) continue;
    sum += Number.parseFloat(line.slice(line.lastIndexOf("}") + 1).replace(name, "")) || 0;
  }
  return sum;
}
