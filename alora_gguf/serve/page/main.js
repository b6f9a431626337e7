// Begins: the parts of the page, the state of the server, and what to see first.

import * as adapters from "./adapters.js";
import { get, health } from "./api.js";
import * as cache from "./cache.js";
import * as documents from "./documents.js";
import { $, bus, button, h, notice } from "./dom.js";
import * as settings from "./settings.js";
import * as talk from "./talk.js";

const SOON = 700;    // ms until a server that is not ready is asked again
const CALM = 10000;  // ms, one that is
const STATES = {
  loading: "loading the model…",
  draining: "about to end",
  gone: "no answer",
};
let state = null;

/** Follows the server: what it serves is asked for whenever it becomes ready. */
async function watch() {
  const { status } = document.hidden && state === "ready" ? { status: "ready" } : await health();
  if (status !== state) {
    state = status;
    $("send").disabled = status !== "ready";
    $("state").textContent = STATES[status] ?? status;
    notice("server", status === "gone" ? "The server does not answer. Is it still running?"
      : status === "draining" ? "The server is about to end: it answers what has begun, and takes nothing new." : null);
    if (status === "ready") await begin();
  }
  setTimeout(watch, state === "ready" ? CALM : SOON);
}

async function begin() {
  try {
    await adapters.refresh();
  } catch (error) {
    $("state").textContent = "not connected";
    return notice("server", error.message, { text: "Try again", press: begin });
  }
  const example = talk.isEmpty() ? await get("/page/example.json").catch(() => ({})) : {};
  welcome(example);
}

function head() {
  const { base, size, adapters: all } = adapters.served;
  $("model").textContent = base;
  document.title = `${base} · alora-gguf`;
  $("state").textContent = `${size.toLocaleString("en")} tokens of context, ${all.length} adapter${all.length === 1 ? "" : "s"}`;
}

function welcome({ documents: texts, questions, settings: suggested }) {
  const tries = (questions ?? []).map((text) => button(text, () => {
    if (texts && !documents.count()) documents.add(texts.map((each) => ({ text: each })));
    if (suggested) settings.suggest(suggested);
    talk.submit(text);
    $("prompt").focus();
  }));
  $("welcome").replaceChildren(
    h("p", { class: "lead", text: adapters.served.base }),
    h("p", { class: "quiet", text: adapters.verdicts().length
      ? "Write a message below. The adapters that are ticked judge each reply, and read next to nothing for it: the conversation is in the cache already."
      : "Write a message below." }),
    ...(tries.length ? [h("p", { class: "quiet", text: "Questions about the documents of the demo:" }), h("div", { class: "tries" }, ...tries)] : []),
  );
}

function startViews() {
  const buttons = [...$("views").querySelectorAll("button")];
  for (const each of buttons) {
    each.addEventListener("click", () => {
      document.body.dataset.view = each.dataset.view;
      buttons.forEach((other) => other.removeAttribute("aria-current"));
      each.setAttribute("aria-current", "true");
      if (each.dataset.view === "cache") cache.look();
    });
  }
}

/** Adapters may have come and gone while nobody looked. */
function startAgain() {
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && state === "ready") adapters.refresh().catch(() => {});
  });
}

startViews();
startAgain();
settings.start();
documents.start();
adapters.start();
talk.start();
bus.addEventListener("served", head);
cache.start();
watch();
