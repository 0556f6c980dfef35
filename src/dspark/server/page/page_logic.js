/**
 * What an answer stream says, without the page: events, tokens with their rounds, totals.
 *
 * A round drafts K slots, sends the first `verified` of them to the target and keeps the first
 * `accepted`; then the target adds one token of its own: the correction of the slot it rejected,
 * or a bonus token where it rejected none.
 */

const NO_DRAFT = "straight from the target, without a draft";

/** Server-sent events out of bytes that may be cut anywhere, inside a character too. */
export class SseParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  /**
   * @param {Uint8Array} bytes the next piece of the stream
   * @returns {string[]} the data of every event that this piece completes
   */
  push(bytes) {
    // A carriage return at the end may be half of a line end: it waits for the next piece.
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split(
      /\r\n|\n|\r(?!$)/,
    );
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "" && this.#data.length) {
        events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        this.#data.push(line.slice("data:".length).replace(/^ /, ""));
      }
    }
    return events;
  }
}

/** A request that the server answered with an error; its message is the server's own. */
export class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** The error of a response's status and body, which may be anything. */
  static from(status, body) {
    let message;
    try {
      message = JSON.parse(body).error.message;
    } catch {
      message = undefined; // not an error of this server; a proxy's page, for example
    }
    return new HttpError(status, message ?? `The server answered with HTTP status ${status}.`);
  }
}

/** State of the connection after a failed request: "key", "starting", "failing", "unreachable". */
export function stateAfter(error) {
  if (error instanceof HttpError) {
    return { 401: "key", 503: "starting" }[error.status] ?? "failing";
  }
  // What `fetch` throws where nothing answers, and what its time limit throws.
  return error.name === "TypeError" || error.name === "TimeoutError" ? "unreachable" : "failing";
}

/** Milliseconds until the next try after so many failures in a row: 1, 2, 4, 8, then 15 s. */
export function backoff(failures) {
  return Math.min(1000 * 2 ** (failures - 1), 15000);
}

/**
 * Every token of one round with what its tooltip says.
 *
 * @param {{text: string, kind: string}[]} tokens in order: accepted ones, then the target's own
 * @param {?{drafted: number, verified: number, accepted: number, confidence: ?number[]}} round
 * @param {number} number of the round in its answer, from 1
 * @returns {{text: string, kind: string, lines: string[]}[]}
 */
export function annotate(tokens, round, number) {
  return tokens.map(({ text, kind }, at) => {
    if (!round) return { text, kind, lines: [nameOf(kind, round), NO_DRAFT] };
    const place = `round ${number}, token ${at + 1} of ${tokens.length}`;
    return { text, kind, lines: [nameOf(kind, round), place, ...outcome(kind, round, at + 1)] };
  });
}

function nameOf(kind, round) {
  if (kind === "accepted") return "accepted draft token";
  if (kind === "plain") return "plain token";
  return round && round.accepted < round.verified ? "corrected token" : "bonus token";
}

/** How the round went, as far as it explains a token of this kind at this place (from 1). */
function outcome(kind, round, place) {
  const { drafted, verified, accepted } = round;
  if (kind === "accepted") return [slotLine(round, place, "accepted")];
  if (kind === "plain") return [drafted ? `none of ${drafted} slots was verified` : NO_DRAFT];
  const lines = [];
  if (accepted < verified) {
    lines.push(slotLine(round, accepted + 1, "rejected"));
    lines.push(...slotsLine(accepted + 2, verified, "verified, discarded with it"));
  } else {
    lines.push(...slotsLine(1, verified, "accepted"));
  }
  return [...lines, ...slotsLine(verified + 1, drafted, "not sent to the target")];
}

function slotLine(round, slot, what) {
  const confidence = round.confidence?.[slot - 1];
  const sure = Number.isFinite(confidence) ? `confidence ${confidence.toFixed(2)}, ` : "";
  return `slot ${slot}: ${sure}${what}`;
}

/** One line on the slots from `first` to `last`, none where there are no such slots. */
function slotsLine(first, last, what) {
  if (first > last) return [];
  return [`${first === last ? `slot ${first}` : `slots ${first} to ${last}`}: ${what}`];
}

/**
 * The notes that make up `content`; text that no token explains comes as a piece of kind "".
 *
 * The content is the answer: a stop string may cut it short of its tokens.
 */
export function fit(notes, content) {
  const pieces = [];
  let rest = content;
  for (const note of notes) {
    if (!rest.startsWith(note.text)) break;
    rest = rest.slice(note.text.length);
    if (note.text) pieces.push(note);
  }
  return rest ? [...pieces, { text: rest, kind: "", lines: [] }] : pieces;
}

/** Counts of one answer while it arrives. */
export class Tally {
  text = "";
  counts = { accepted: 0, drawn: 0, plain: 0 };
  #rounds = 0;
  #committed = 0;
  #sums = { drafted: 0, verified: 0, accepted: 0 };
  #usage = null;
  #finish = null;

  /**
   * @param {object} chunk one chat.completion.chunk
   * @returns {{text: string, kind: string, lines: string[]}[]} the pieces of text it adds
   */
  add(chunk) {
    const choice = chunk.choices?.[0];
    const content = choice?.delta?.content ?? "";
    const { tokens = [], round = null } = chunk.dspark ?? {};
    this.text += content;
    this.#finish = choice?.finish_reason ?? this.#finish;
    this.#usage = chunk.usage ?? this.#usage;
    for (const { kind } of tokens) this.counts[kind] += 1;
    if (round) {
      this.#rounds += 1;
      this.#committed += tokens.length;
      for (const name of Object.keys(this.#sums)) this.#sums[name] += round[name];
    }
    return fit(annotate(tokens, round, this.#rounds), content);
  }

  /** Tokens so far; the server's count once it is here. */
  get tokens() {
    const { accepted, drawn, plain } = this.counts;
    return this.#usage?.completion_tokens ?? accepted + drawn + plain;
  }

  /** The line under the answer. A stopped answer has no usage: its own counts stand in. */
  line(seconds) {
    const own = { ...this.#sums, accepted_length: this.#committed / this.#rounds };
    const spec = this.#usage?.speculative ?? own;
    const parts = [inTokens(this.tokens), `${rate(this.tokens, seconds)} tokens/s`];
    if (spec.drafted > 0) {
      if (Number.isFinite(spec.accepted_length)) {
        parts.push(`accepted length ${spec.accepted_length.toFixed(2)}`);
      }
      parts.push(
        `drafted ${spec.drafted}, verified ${spec.verified}, accepted ${spec.accepted}`,
      );
    }
    if (this.#finish === "length") parts.push("cut at the length limit");
    return parts.join(" · ");
  }
}

/** A count of tokens in words. */
export function inTokens(count) {
  return count === 1 ? "1 token" : `${count} tokens`;
}

function rate(tokens, seconds) {
  return seconds > 0 ? (tokens / seconds).toFixed(1) : "–";
}
