// Run by test_page.py with node, beside a copy of the page's files.

import assert from "node:assert/strict";
import test from "node:test";

import {
  HttpError, SseParser, Tally, annotate, backoff, fit, stateAfter,
} from "./page_logic.js";
import { acceptance, inWords, runs, scale, short, summary, ticks, totals } from "./plot_logic.js";

// What the connection needs of a browser, before its module is loaded.
const stored = new Map();
globalThis.sessionStorage = {
  getItem: (key) => stored.get(key) ?? null,
  setItem: (key, value) => stored.set(key, value),
};
globalThis.document = { hidden: false, addEventListener: () => {} };
const { Server, Watch } = await import("./server.js");

const bytes = (text) => new TextEncoder().encode(text);
const round = (drafted, verified, accepted, confidence = []) => ({
  drafted, verified, accepted, confidence,
});
const token = (text, kind) => ({ text, kind });
const chunk = (content, dspark, more = {}) => ({
  choices: [{ index: 0, delta: { content }, finish_reason: null }],
  ...(dspark ? { dspark } : {}),
  ...more,
});

// ---- events ----

const STREAM = 'data: {"a":"é😀"}\n\n: note\r\ndata: two\r\ndata:lines\r\n\r\nevent: error\ndata: x\n\n';
const EVENTS = ['{"a":"é😀"}', "two\nlines", "x"];

test("a stream gives the same events wherever it is cut", () => {
  const all = bytes(STREAM);
  for (let cut = 0; cut <= all.length; cut += 1) {
    const parser = new SseParser();
    const found = [...parser.push(all.slice(0, cut)), ...parser.push(all.slice(cut))];
    assert.deepEqual(found, EVENTS, `cut at byte ${cut}`);
  }
});

test("a stream gives the same events byte by byte", () => {
  const parser = new SseParser();
  const found = [...bytes(STREAM)].flatMap((byte) => parser.push(new Uint8Array([byte])));
  assert.deepEqual(found, EVENTS);
});

test("an event without its empty line is not complete", () => {
  const parser = new SseParser();
  assert.deepEqual(parser.push(bytes("data: half\n")), []);
  assert.deepEqual(parser.push(bytes("\n")), ["half"]);
});

// ---- tokens and rounds ----

test("a corrected token names the rejected slot and those behind it", () => {
  const tokens = [token("a", "accepted"), token("b", "accepted"), token("c", "drawn")];
  const notes = annotate(tokens, round(7, 5, 2, [0.9, 0.714, 0.2, 0.1, 0.1, 0, 0]), 4);
  assert.deepEqual(notes.map((note) => note.lines), [
    ["accepted draft token", "round 4, token 1 of 3", "slot 1: confidence 0.90, accepted"],
    ["accepted draft token", "round 4, token 2 of 3", "slot 2: confidence 0.71, accepted"],
    [
      "corrected token",
      "round 4, token 3 of 3",
      "slot 3: confidence 0.20, rejected",
      "slots 4 to 5: verified, discarded with it",
      "slots 6 to 7: not sent to the target",
    ],
  ]);
  assert.deepEqual(notes.map(({ text, kind }) => ({ text, kind })), tokens);
});

test("a bonus token follows a round without rejection", () => {
  const [, bonus] = annotate(
    [token("a", "accepted"), token("b", "drawn")], round(2, 1, 1, [0.8, 0.3]), 1,
  );
  const expected = ["bonus token", "round 1, token 2 of 2", "slot 1: accepted"];
  assert.deepEqual(bonus.lines, [...expected, "slot 2: not sent to the target"]);
});

test("a drafter without confidences still tells outcomes", () => {
  const lines = (tokens, of) => annotate(tokens, of, 1)[0].lines.at(-1);
  assert.equal(lines([token("a", "accepted")], round(1, 1, 1)), "slot 1: accepted");
  const bare = { drafted: 1, verified: 1, accepted: 0, confidence: null };
  assert.equal(lines([token("a", "drawn")], bare), "slot 1: rejected");
});

test("a plain token says why no draft was tested", () => {
  const last = (of) => annotate([token("a", "plain")], of, 1)[0].lines.at(-1);
  assert.equal(last(null), "straight from the target, without a draft");
  assert.equal(last(round(0, 0, 0)), "straight from the target, without a draft");
  assert.equal(last(round(7, 0, 0)), "none of 7 slots was verified");
});

test("pieces always add up to the content", () => {
  const notes = annotate([token("ab", "accepted"), token("cd", "drawn")], round(1, 1, 1), 1);
  for (const content of ["", "ab", "abc", "abcd", "abcdef", "x", "b"]) {
    const pieces = fit(notes, content);
    assert.equal(pieces.map((piece) => piece.text).join(""), content);
  }
  assert.deepEqual(fit(notes, "abcdef").map((piece) => piece.kind), ["accepted", "drawn", ""]);
  assert.deepEqual(fit(notes, "abx").map((piece) => piece.kind), ["accepted", ""]);
});

test("a tally counts kinds and rounds, and prefers the server's totals", () => {
  const tally = new Tally();
  assert.deepEqual(tally.add(chunk("")), []); // the opening
  tally.add(chunk("A", { tokens: [token("A", "plain")], round: null }));
  tally.add(chunk("bc", {
    tokens: [token("b", "accepted"), token("c", "drawn")], round: round(4, 3, 1),
  }));
  tally.add(chunk("d", {
    tokens: [token("d", "accepted"), token("", "accepted")], round: round(4, 2, 2),
  }));
  assert.equal(tally.text, "Abcd");
  assert.deepEqual(tally.counts, { accepted: 3, drawn: 1, plain: 1 });
  const own = "5 tokens · 2.5 tokens/s · accepted length 2.00 · drafted 8, verified 5, accepted 3";
  assert.equal(tally.line(2), own);
  tally.add({ choices: [{ index: 0, delta: {}, finish_reason: "length" }], usage: null });
  const speculative = { drafted: 9, verified: 6, accepted: 4, accepted_length: 2.345 };
  tally.add({ choices: [], usage: { completion_tokens: 6, speculative } });
  assert.equal(
    tally.line(3),
    "6 tokens · 2.0 tokens/s · accepted length 2.35 · drafted 9, verified 6, accepted 4"
      + " · cut at the length limit",
  );
});

test("an answer without drafts has no line about them", () => {
  const tally = new Tally();
  tally.add(chunk("A", { tokens: [token("A", "plain")], round: null }));
  assert.equal(tally.line(0), "1 token · – tokens/s");
});

test("text of a server without the extension has no notes", () => {
  assert.deepEqual(new Tally().add(chunk("hi")), [{ text: "hi", kind: "", lines: [] }]);
});

// ---- scales and series ----

test("ticks start at 0, cover the most and are round", () => {
  assert.deepEqual(ticks(0, 3), [0, 0.5, 1]);
  assert.deepEqual(ticks(1, 4), [0, 0.5, 1]);
  assert.deepEqual(ticks(0.3, 3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(ticks(7, 3), [0, 5, 10]);
  assert.deepEqual(ticks(1000, 1), [0, 1000]);
  assert.deepEqual(ticks(1, 3, true), [0, 1]);
  assert.deepEqual(ticks(2, 3, true), [0, 1, 2]);
  for (let most = 0.013; most < 1e7; most *= 1.7) {
    const marks = ticks(most, 3);
    assert.ok(marks.at(-1) >= most && marks.at(-2) < most, `${most}: ${marks}`);
    assert.ok(marks.length <= 5, `${most}: ${marks}`);
  }
});

test("a scale maps both ends, also upside down", () => {
  const y = scale([0, 10], [100, 0]);
  assert.deepEqual([y(0), y(10), y(2.5)], [100, 0, 75]);
});

test("numbers are short", () => {
  const texts = [0, 0.126, 1, 12.34, 123.4, 9999, 12345, 2e6, null, NaN].map(short);
  assert.deepEqual(
    texts, ["0", "0.13", "1", "12.3", "123", "9999", "12.3k", "2M", "–", "–"],
  );
  assert.deepEqual([100, 10, 20.04].map(short), ["100", "10", "20"]);
});

const POINTS = [
  { t: 600, v: 9 },
  { t: 1000, v: 1, accept_by_position: [0.9, null], drafted: 4, verified: 3, accepted: 2 },
  { t: 1001, v: null, accept_by_position: [] },
  { t: 1002, v: 3, drafted: 1, verified: 1, accepted: 0 },
  { t: 1010, v: 2 },
];

test("runs are seconds before the last point, broken at long gaps, not longer than shown", () => {
  assert.deepEqual(runs(POINTS, "v"), [[[-10, 1], [-8, 3]], [[0, 2]]]);
  assert.deepEqual(runs([], "v"), []);
});

test("summaries leave out what is no number", () => {
  assert.deepEqual(summary(POINTS.slice(1, 4), "v"), { now: 3, mean: 2, lowest: 1, highest: 3 });
  assert.equal(summary(POINTS.slice(0, 3), "v").now, NaN);
  assert.equal(summary([], "v").highest, NaN);
  const words = inWords({ name: "load", unit: "requests" }, summary(POINTS.slice(1), "v"));
  assert.equal(words, "load: now 2 requests, lowest 1, highest 3.");
});

test("acceptance is that of the last point that has any", () => {
  assert.deepEqual(acceptance(POINTS), [0.9, NaN]);
  assert.deepEqual(acceptance([]), []);
  assert.deepEqual(totals(POINTS), { drafted: 5, verified: 4, accepted: 2 });
});

// ---- connection ----

test("waits double up to a limit", () => {
  assert.deepEqual([1, 2, 3, 4, 5, 50].map(backoff), [1000, 2000, 4000, 8000, 15000, 15000]);
});

test("errors tell the state of the connection", () => {
  const of = (status) => stateAfter(new HttpError(status, ""));
  assert.deepEqual([401, 503, 500].map(of), ["key", "starting", "failing"]);
  assert.equal(stateAfter(new TypeError("fetch failed")), "unreachable");
  assert.equal(stateAfter(new DOMException("", "TimeoutError")), "unreachable");
  assert.equal(stateAfter(new SyntaxError("no JSON")), "failing");
});

test("an error's message is the server's, whatever the body", () => {
  assert.equal(HttpError.from(400, '{"error":{"message":"no room"}}').message, "no room");
  assert.match(HttpError.from(502, "<html>").message, /502/);
  assert.match(HttpError.from(500, '{"error":null}').message, /500/);
});

/** A server that answers with these [status, body] by path; every request is noted. */
function stand(answers) {
  const asked = [];
  globalThis.fetch = async (path, options) => {
    asked.push({ path, ...options });
    if (!answers[path]) throw new TypeError("fetch failed");
    const [status, body] = answers[path];
    return new Response(typeof body === "string" ? body : JSON.stringify(body), { status });
  };
  return asked;
}

const READY = {
  "/ready": [200, {}],
  "/v1/models": [200, { data: [{ id: "tiny" }] }],
  "/stats": [200, { points: [{ t: 1 }] }],
};
const CHAT = "/v1/chat/completions";

async function read(server) {
  const found = [];
  for await (const each of server.chat({ messages: [], seed: 3 }, undefined)) found.push(each);
  return found;
}

test("a chat asks for tokens and usage, with the key, and ends at [DONE]", async () => {
  const server = new Server();
  server.setKey("secret");
  assert.deepEqual([...stored.values()], ["secret"]);
  const body = 'data: {"a":1}\n\ndata: [DONE]\n\ndata: {"a":2}\n\n';
  const asked = stand({ ...READY, [CHAT]: [200, body] });
  assert.deepEqual(await read(server), [{ a: 1 }]);
  const { headers, body: sent } = asked.at(-1);
  assert.equal(headers.Authorization, "Bearer secret");
  assert.deepEqual(JSON.parse(sent), {
    model: "tiny",
    stream: true,
    stream_options: { include_usage: true },
    dspark_tokens: true,
    messages: [],
    seed: 3,
  });
});

test("a chat that fails on the way, breaks off or is refused says so", async () => {
  const server = new Server();
  stand({ ...READY, [CHAT]: [200, 'event: error\ndata: {"error":{"message":"lost"}}\n\n'] });
  await assert.rejects(read(server), /lost/);
  stand({ ...READY, [CHAT]: [200, 'data: {"a":1}\n\n'] });
  await assert.rejects(read(server), /before the answer was complete/);
  stand({ ...READY, [CHAT]: [400, { error: { message: "too long" } }] });
  await assert.rejects(read(server), (error) => error.status === 400 && /too long/.test(error));
});

test("the watch backs off, asks for readiness again and recovers", async () => {
  const told = [];
  const waits = [];
  globalThis.setTimeout = (_, wait) => waits.push(wait);
  const server = new Server();
  const watch = new Watch(server, (points) => told.push(points), (state) => told.push(state));
  for (const down of [{}, {}, { "/ready": [503, {}] }]) {
    stand(down);
    await watch.now();
  }
  const asked = stand(READY);
  await watch.now();
  await watch.now();
  assert.deepEqual(waits, [1000, 2000, 4000, 1000, 1000]);
  const points = [{ t: 1 }];
  const failed = ["unreachable", "unreachable", "starting"];
  assert.deepEqual(told, [...failed, "ready", points, "ready", points]);
  assert.equal(server.model, "tiny");
  assert.deepEqual(
    asked.map(({ path }) => path), ["/ready", "/v1/models", "/stats", "/stats"],
  );
});

test("a hidden tab asks nothing", async () => {
  document.hidden = true;
  const asked = stand(READY);
  await new Watch(new Server(), () => {}, () => {}).now();
  document.hidden = false;
  assert.deepEqual(asked, []);
});
