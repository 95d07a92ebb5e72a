/** Small things that every part of the page uses: elements by name, templates, copying, what is told in passing. */

/**
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element #${id}`);
  return /** @type {T} */ (element);
}

/**
 * @param {string} id of a template with one element in it
 * @returns {HTMLElement} a copy of that element
 */
export function fromTemplate(id) {
  const { content } = /** @type {HTMLTemplateElement} */ (byId(id));
  return /** @type {HTMLElement} */ (document.importNode(content, true).firstElementChild);
}

/**
 * @template {HTMLElement} [T=HTMLElement]
 * @param {HTMLElement} root
 * @param {string} name the part's data-part attribute
 * @returns {T}
 */
export function part(root, name) {
  const element = root.querySelector(`[data-part="${name}"]`);
  if (!element) throw new Error(`no part ${name}`);
  return /** @type {T} */ (element);
}

/**
 * Has screen readers say something.
 * @param {string} text
 */
export function announce(text) {
  byId("announcer").textContent = text;
}

/**
 * @param {string} label
 * @param {() => string} text what it copies when pressed
 * @returns {HTMLElement}
 */
export function copyButton(label, text) {
  const button = fromTemplate("copy-template");
  button.title = label;
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    const copied = await copyText(text());
    announce(copied ? "Copied" : "The browser did not let the text be copied");
    button.classList.toggle("copied", copied);
    setTimeout(() => button.classList.remove("copied"), 1500);
  });
  return button;
}

/**
 * @param {string} text
 * @returns {Promise<boolean>} whether it is on the clipboard now
 */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no navigator.clipboard.
    return copyBySelection(text);
  }
}

/** @param {string} text */
function copyBySelection(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return copied;
}

let toastTimer = 0;

/**
 * Tells something at the bottom of the page for a while.
 * @param {string} text
 * @param {{label: string, run: () => void}} [action]
 */
export function toast(text, action) {
  const box = byId("toast");
  const button = byId("toast-action");
  byId("toast-text").textContent = text;
  button.hidden = !action;
  button.textContent = action?.label ?? "";
  button.onclick = () => {
    box.hidden = true;
    action?.run();
  };
  box.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (box.hidden = true), 8000);
}
