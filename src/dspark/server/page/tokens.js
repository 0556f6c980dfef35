/** Answer tokens as elements, and the tooltip that says how each came about. */

import { make } from "./dom.js";

const TOKEN = ".token";
const EDGE = 8; // pixels between the tooltip and the window's sides

/** What the tooltip of each token element says, line by line. */
const notes = new WeakMap();

/**
 * Append pieces of an answer. Only its first token is a tab stop: arrow keys reach the others.
 *
 * @param {HTMLElement} box the answer
 * @param {{text: string, kind: string, lines: string[]}[]} pieces kind "" is text without a note
 */
export function addPieces(box, pieces) {
  for (const { text, kind, lines } of pieces) {
    const span = make("span", kind && `token ${kind}`, text);
    if (kind) {
      notes.set(span, lines);
      span.tabIndex = box.querySelector(TOKEN) ? -1 : 0;
    }
    box.append(span);
  }
}

/** One tooltip for all tokens under `root`: on hover, and on keyboard focus. */
export class Tooltip {
  #tip;
  #root;
  #token = null;

  constructor(tip, root) {
    this.#tip = tip;
    this.#root = root;
    root.addEventListener("focusin", (event) => this.#focus(event.target.closest(TOKEN)));
    root.addEventListener("focusout", () => this.#show(null));
    root.addEventListener("keydown", (event) => this.#move(event));
    document.addEventListener("scroll", () => this.#place(), true); // of any box
    document.addEventListener("pointerover", (event) => this.#hover(event.target));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#show(null);
    });
  }

  /** The pointer may rest on the tooltip itself; elsewhere the focused token has its turn. */
  #hover(target) {
    if (this.#tip.contains(target)) return;
    this.#show(target.closest(TOKEN) ?? this.#root.querySelector(`${TOKEN}:focus`));
  }

  #focus(token) {
    if (!token) return;
    const stop = token.parentElement.querySelector(`${TOKEN}[tabindex="0"]`);
    if (stop) stop.tabIndex = -1;
    token.tabIndex = 0;
    this.#show(token);
  }

  #move(event) {
    const token = event.target.closest(TOKEN);
    if (!token) return;
    const all = [...token.parentElement.querySelectorAll(TOKEN)];
    const at = all.indexOf(token);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (!all[to]) return;
    event.preventDefault();
    all[to].focus();
  }

  #show(token) {
    if (token === this.#token) return;
    this.#token?.removeAttribute("aria-describedby");
    this.#token = token;
    this.#tip.hidden = !token;
    if (!token) return;
    this.#tip.replaceChildren(...notes.get(token).map((line) => make("p", "", line)));
    token.setAttribute("aria-describedby", this.#tip.id);
    this.#place();
  }

  /** Above the token, or below it where there is no room. */
  #place() {
    const area = this.#token?.getClientRects()[0];
    if (!area) return this.#show(null);
    const { offsetWidth: width, offsetHeight: height, style } = this.#tip;
    const left = Math.min(area.left, document.documentElement.clientWidth - width - EDGE);
    style.left = `${Math.max(EDGE, left)}px`;
    style.top = `${area.top >= height ? area.top - height : area.bottom}px`;
  }
}
