/** The drawer with the system prompt and the sampling, kept in the browser. What is left empty is the model's own choice. */

import { byId } from "./elements.js";

const KEY = "windlass.settings";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

export class Settings {
  /** @type {HTMLFormElement} */
  #form = byId("settings-form");

  constructor() {
    const kept = readKept();
    for (const field of this.#fields()) field.value = kept[field.name] ?? "";
    this.#form.addEventListener("input", () => this.#keep());
    byId("settings-reset").addEventListener("click", () => {
      for (const field of this.#fields()) field.value = "";
      this.#keep();
    });
    this.#mark();
  }

  /** @returns {string} the system prompt, or "" */
  get system() {
    return this.#value("system").trim();
  }

  /** @returns {Record<string, number | string[]>} the fields of a request that were set, and are in range */
  sampling() {
    /** @type {Record<string, number | string[]>} */
    const fields = {};
    for (const name of NUMBERS) {
      const value = this.#value(name);
      if (value !== "") fields[name] = Number(value);
    }
    const stops = this.#value("stop").split("\n").filter((line) => line !== "");
    if (stops.length > 0) fields.stop = stops.map((line) => line.replaceAll("\\n", "\n"));
    return fields;
  }

  /** @param {string} name */
  #value(name) {
    const field = this.#fields().find((candidate) => candidate.name === name);
    return field?.validity.valid ? field.value : "";
  }

  /** @returns {(HTMLInputElement | HTMLTextAreaElement)[]} */
  #fields() {
    return [...this.#form.querySelectorAll("input, textarea")].map((field) => /** @type {HTMLInputElement} */ (field));
  }

  #keep() {
    const set = this.#fields().filter((field) => field.value !== "" && field.validity.valid);
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(set.map((field) => [field.name, field.value]))));
    this.#mark();
  }

  /** Shows on the button that something is set. */
  #mark() {
    byId("settings-open").classList.toggle("marked", this.#fields().some((field) => field.value !== ""));
  }
}

/** @returns {Record<string, string>} */
function readKept() {
  try {
    return Object(JSON.parse(localStorage.getItem(KEY) ?? "{}"));
  } catch {
    return {};
  }
}
