/** Puts the page together: chat, tokens, plots, and the connection they share. */

import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { Plots } from "./plots.js";
import { Server, Watch } from "./server.js";
import { Tooltip } from "./tokens.js";

const STATES = {
  ready: "connected",
  starting: "server not ready",
  key: "API key needed",
  failing: "server error",
  unreachable: "server not reachable, trying again",
};

const server = new Server();
const plots = new Plots();
const watch = new Watch(server, (points) => plots.show(points), showState);

function showState(state, message) {
  const detail = state === "failing" || state === "starting" ? `: ${message}` : "";
  const refused = state === "key" && server.hasKey;
  byId("connection").dataset.state = state;
  setText(byId("connection"), refused ? "API key not accepted" : STATES[state] + detail);
  byId("plots").classList.toggle("stale", state !== "ready");
  if (server.model) setText(byId("model-name"), server.model);
  const form = byId("key-form");
  const leaving = state !== "key" && form.contains(document.activeElement);
  form.hidden = state !== "key";
  if (leaving) byId("prompt").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  server.setKey(byId("api-key").value.trim());
  byId("api-key").value = "";
  watch.now();
});

new Chat(server);
new Tooltip(byId("token-tip"), byId("messages"));
watch.now();
