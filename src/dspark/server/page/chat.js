/** The conversation: what was said, sending, stopping, starting anew. */

import { byId, make, setText } from "./dom.js";
import { Tally, inTokens, stateAfter } from "./page_logic.js";
import { addPieces } from "./tokens.js";

const NEAR_END = 40; // pixels from the end within which the log follows the answer
const KINDS = ["accepted", "drawn", "plain"];
const NUMBERS = { temperature: "temperature", max_tokens: "max-tokens", seed: "seed" };

export class Chat {
  #server;
  #history = [];
  #tallies = [];
  #abort = null; // of the answer on its way
  #log = byId("messages");
  #form = byId("composer");
  #prompt = byId("prompt");
  #send = byId("send");
  #stop = byId("stop");

  /** @param {import("./server.js").Server} server */
  constructor(server) {
    this.#server = server;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // While an input method composes, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#abort?.abort();
    });
    this.#stop.addEventListener("click", () => this.#abort?.abort());
    byId("new-chat").addEventListener("click", () => this.#restart());
  }

  #submit() {
    const text = this.#prompt.value.trim();
    if (!text || this.#abort) return;
    this.#prompt.value = "";
    this.#ask({ role: "user", content: text });
  }

  #restart() {
    this.#abort?.abort();
    this.#busy(null);
    this.#history = [];
    this.#tallies = [];
    this.#log.replaceChildren();
    this.#count();
    setText(byId("answer-status"), "");
    setText(byId("chat-error"), "");
    this.#prompt.focus();
  }

  /** Send a question with all that was said before, and show the answer as it comes. */
  async #ask(question) {
    const abort = new AbortController();
    const tally = new Tally();
    this.#tallies.push(tally);
    this.#busy(abort);
    setText(byId("chat-error"), "");
    setText(byId("answer-status"), "Answering…");
    const view = this.#addTurn(question.content);
    const start = performance.now();
    let failure = null;
    try {
      const body = { messages: this.#messages(question), ...numbers() };
      for await (const chunk of this.#server.chat(body, abort.signal)) {
        abort.signal.throwIfAborted();
        this.#follow(() => {
          addPieces(view.text, tally.add(chunk));
          setText(view.line, tally.line(seconds(start)));
        });
        this.#count();
      }
    } catch (error) {
      failure = error;
    }
    if (this.#abort !== abort) return; // a new chat has begun
    this.#busy(null);
    this.#finish(question, tally, failure, abort.signal.aborted);
    view.text.setAttribute("aria-busy", "false");
  }

  #messages(question) {
    const system = byId("system").value.trim();
    const first = system ? [{ role: "system", content: system }] : [];
    return [...first, ...this.#history, question];
  }

  /** Remember the turn where it has an answer, else give the question back; and say how it went. */
  #finish(question, tally, failure, stopped) {
    if (tally.text) {
      this.#history.push(question, { role: "assistant", content: tally.text });
    } else if (failure && !this.#prompt.value) {
      this.#prompt.value = question.content;
    }
    const how = stopped ? "Stopped" : failure ? "Answer failed" : "Answer finished";
    setText(byId("answer-status"), `${how} after ${inTokens(tally.tokens)}.`);
    if (failure && !stopped) {
      const away = stateAfter(failure) === "unreachable";
      setText(byId("chat-error"), away ? "The server is not reachable." : failure.message);
    }
  }

  #addTurn(questionText) {
    const asked = message("user", "You");
    asked.append(make("div", "text", questionText));
    const answer = message("answer", "Answer");
    const text = make("div", "text");
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "Answer; arrow keys move from token to token");
    text.setAttribute("aria-busy", "true");
    const line = make("p", "answer-stats");
    answer.append(text, line);
    this.#log.append(asked, answer);
    this.#log.scrollTop = this.#log.scrollHeight;
    return { text, line };
  }

  /** Keep the end of the log in view through a change, unless the reader has scrolled away. */
  #follow(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    change();
    if (atEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }

  #count() {
    for (const kind of KINDS) {
      const total = this.#tallies.reduce((sum, tally) => sum + tally.counts[kind], 0);
      setText(byId(`count-${kind}`), String(total));
    }
  }

  /** Either Send or Stop works; the focus goes over rather than getting lost. */
  #busy(abort) {
    this.#abort = abort;
    const [on, off] = abort ? [this.#stop, this.#send] : [this.#send, this.#stop];
    on.disabled = false;
    if (document.activeElement === off) on.focus();
    off.disabled = true;
  }
}

function message(kind, who) {
  const item = make("article", `message ${kind}`);
  item.append(make("h3", "who", who));
  return item;
}

/** The number fields that are filled in; the server has its own choice for the others. */
function numbers() {
  const filled = Object.entries(NUMBERS).filter(([, id]) => byId(id).value !== "");
  return Object.fromEntries(filled.map(([name, id]) => [name, Number(byId(id).value)]));
}

function seconds(start) {
  return (performance.now() - start) / 1000;
}
