/** Requests to the server: model, statistics, answers; and the watch over the connection. */

import { HttpError, SseParser, backoff, stateAfter } from "./page_logic.js";

const KEY = "dspark-key";
const POLL_MS = 1000;
const TIMEOUT_MS = 5000;

export class Server {
  /** Name of the served model; null until `connect` has met a server that is ready. */
  model = null;
  #key = sessionStorage.getItem(KEY) ?? "";

  get hasKey() {
    return this.#key !== "";
  }

  /** Use this key from now on; it is kept until the tab closes. */
  setKey(key) {
    this.#key = key;
    sessionStorage.setItem(KEY, key);
  }

  /** Wait for a server that is ready, and learn its model's name. */
  async connect() {
    await this.#quick("/ready");
    const { data } = await (await this.#quick("/v1/models")).json();
    this.model = data[0].id;
  }

  /** Points of the last seconds, oldest first. */
  async stats() {
    return (await (await this.#quick("/stats")).json()).points;
  }

  /**
   * Chunks of an answer as they arrive.
   *
   * Throws HttpError when refused, Error when the answer fails on the way.
   */
  async *chat(body, signal) {
    if (!this.model) await this.connect();
    const request = {
      model: this.model,
      stream: true,
      stream_options: { include_usage: true },
      dspark_tokens: true,
      ...body,
    };
    const response = await this.#fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(request),
      signal,
    });
    yield* chunks(response.body.getReader());
  }

  #quick(path) {
    return this.#fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  }

  async #fetch(path, options) {
    const headers = { ...options.headers };
    if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (!response.ok) throw HttpError.from(response.status, await response.text());
    return response;
  }
}

async function* chunks(reader) {
  const parser = new SseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The connection closed before the answer was complete.");
      for (const data of parser.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already; nothing is lost then
  }
}

/** Asks for statistics once a second while the tab is visible, less often while that fails. */
export class Watch {
  #server;
  #onPoints;
  #onState;
  #failures = 0;
  #timer = 0;
  #asking = false;

  /**
   * @param {Server} server
   * @param {(points: object[]) => void} onPoints
   * @param {(state: string, message: string) => void} onState "ready", or what `stateAfter` says
   */
  constructor(server, onPoints, onState) {
    this.#server = server;
    this.#onPoints = onPoints;
    this.#onState = onState;
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** Ask at once and go on from there. */
  async now() {
    clearTimeout(this.#timer);
    if (document.hidden || this.#asking) return;
    this.#asking = true;
    try {
      if (!this.#server.model || this.#failures) await this.#server.connect();
      const points = await this.#server.stats();
      this.#failures = 0;
      this.#onState("ready", "");
      this.#onPoints(points);
    } catch (error) {
      this.#failures += 1;
      this.#onState(stateAfter(error), error.message);
    }
    this.#asking = false;
    this.#timer = setTimeout(() => this.now(), this.#failures ? backoff(this.#failures) : POLL_MS);
  }
}
