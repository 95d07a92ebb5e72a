/** One answer of the model, from the request to its end. */

import { ApiError, streamChat } from "./api.js";

/**
 * @typedef {import("./chats.js").Message} Message
 * @typedef {import("./chats.js").ToolCall} ToolCall
 */

/**
 * @param {string} system "" for none
 * @param {Message[]} messages
 * @returns {object[]} as the server takes them
 */
export function wireMessages(system, messages) {
  const conversation = messages.map(({ role, content, toolCalls }) => {
    if (!toolCalls) return { role, content };
    return { role, content, tool_calls: toolCalls.map(({ id, ...call }) => ({ id, type: "function", function: call })) };
  });
  return system ? [{ role: "system", content: system }, ...conversation] : conversation;
}

/**
 * Fills a message with the model's answer; never throws.
 * @param {Message} message
 * @param {object} request the body of the chat completion, without what makes it a stream
 * @param {AbortSignal} signal stops it, at the server too
 * @param {() => void} changed called after each change
 */
export async function fillAnswer(message, request, signal, changed) {
  const started = performance.now();
  /** @type {number | null} */
  let first = null;
  try {
    const streaming = { ...request, stream: true, stream_options: { include_usage: true } };
    for await (const chunk of streamChat(streaming, signal)) {
      if (take(message, chunk)) {
        const now = performance.now();
        first ??= now;
        message.stats = { tokens: null, first: (first - started) / 1000, seconds: (now - first) / 1000 };
      }
      if (chunk.usage && message.stats) message.stats.tokens = chunk.usage.completion_tokens;
      changed();
    }
    message.state = message.finish ? "done" : "cut";
  } catch (error) {
    if (signal.aborted) message.state = "stopped";
    else fail(message, error);
  }
  changed();
}

/**
 * @param {Message} message
 * @param {any} chunk a chat completion chunk
 * @returns {boolean} whether it brought anything of the answer
 */
function take(message, chunk) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  if (chunk.model) message.model = chunk.model;
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  if (delta.content) message.content += delta.content;
  for (const call of delta.tool_calls ?? []) takeToolCall((message.toolCalls ??= []), call);
  return Boolean(reasoning || delta.content || delta.tool_calls?.length);
}

/**
 * @param {ToolCall[]} calls
 * @param {any} delta
 */
function takeToolCall(calls, delta) {
  const call = (calls[delta.index] ??= { id: "", name: "", arguments: "" });
  call.id ||= delta.id ?? "";
  call.name += delta.function?.name ?? "";
  call.arguments += delta.function?.arguments ?? "";
}

/**
 * @param {Message} message
 * @param {unknown} error
 */
function fail(message, error) {
  if (!(error instanceof ApiError)) console.error(error);
  const { status, retryAfter } = error instanceof ApiError ? error : { status: 0, retryAfter: null };
  message.state = "failed";
  message.failure = { message: error instanceof Error ? error.message : String(error), status, retryAfter };
}
