/** Keeps the end of a growing text in sight until the user scrolls away from it. */

const NEAR = 24;

export class EndKeeper {
  #scroller;
  #button;
  #following = true;
  #top = 0;
  #height = 0;

  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} content what grows in it
   * @param {HTMLElement} button leads back to the end; seen only away from it
   */
  constructor(scroller, content, button) {
    this.#scroller = scroller;
    this.#button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    const observer = new ResizeObserver(() => this.#resized());
    observer.observe(scroller);
    observer.observe(content);
  }

  /** Goes to the end and stays there. */
  toEnd() {
    this.#following = true;
    this.#resized();
  }

  #resized() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#remember();
  }

  #scrolled() {
    const { scrollTop, scrollHeight } = this.#scroller;
    const shrunk = scrollHeight < this.#height;
    if (scrollTop < this.#top - 1 && !shrunk) this.#following = false;
    else if (this.#isNearEnd()) this.#following = true;
    this.#remember();
  }

  #remember() {
    this.#top = this.#scroller.scrollTop;
    this.#height = this.#scroller.scrollHeight;
    this.#button.hidden = this.#following || this.#isNearEnd();
  }

  #isNearEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }
}
