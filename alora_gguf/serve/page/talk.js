// The conversation: what is said, streamed replies, and the verdicts under each turn.

import { ApiError, events, post, send } from "./api.js";
import { byName, callOf, refresh, served, steering, verdicts, writtenBy } from "./adapters.js";
import * as cache from "./cache.js";
import * as documents from "./documents.js";
import { $, bus, notice, plural, say, tab } from "./dom.js";
import * as settings from "./settings.js";
import { drawTurn } from "./turns.js";

/** A turn: {role, content, reasoning?, by?, steer?, verdicts?, pending?, cost?, error?, ended?}. */
let turns = tab.get("turns", []);
let editing = false;
let abort = null;      // of the request under way
let leaving = false;   // the page ends, and what fails with it is no news
const shown = new Map(); // turn -> its element

export const isEmpty = () => turns.length === 0;

function save() {
  if (leaving) return;
  const begun = turns.filter((turn) => turn.role === "user" || turn.content || turn.ended);
  const kept = begun.map(({ pending, open, reading, ...turn }) => turn);
  tab.set("turns", kept);
}

// Drawing ---------------------------------------------------------------------------------------

const scroller = $("scroller");
const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
const toEnd = () => { scroller.scrollTop = scroller.scrollHeight; };

function draw() {
  const follow = isAtEnd();
  shown.clear();
  $("turns").replaceChildren(...turns.map((turn) => {
    const element = drawTurn(turn, actionsOf(turn), () => redraw(turn));
    shown.set(turn, element);
    return element;
  }));
  $("welcome").hidden = turns.length > 0;
  drawRoom();
  if (follow) toEnd();
}

/** Draws one turn again; what has the focus in it keeps it. */
function redraw(turn) {
  const old = shown.get(turn);
  if (!old) return;
  const follow = isAtEnd();
  const focused = old.contains(document.activeElement) ? document.activeElement.dataset.act : undefined;
  const element = drawTurn(turn, actionsOf(turn), () => redraw(turn));
  old.replaceWith(element);
  shown.set(turn, element);
  if (focused) element.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus();
  if (follow) toEnd();
}

function actionsOf(turn) {
  if (abort) return [];
  const i = turns.indexOf(turn);
  const lastUser = turns.findLastIndex((each) => each.role === "user");
  if (turn.role === "user") {
    const actions = [];
    if (i === turns.length - 1) actions.push(["Try again", () => { reply(); focusPrompt(); }]);
    if (i === lastUser) actions.push(["Edit", edit]);
    return actions;
  }
  const actions = [["Copy", () => copy(turn)]];
  if (i === turns.length - 1) actions.push(["Regenerate", regenerate]);
  return actions;
}

async function copy(turn) {
  try {
    await navigator.clipboard.writeText(turn.content);
    say("Copied");
  } catch {
    notice("copy", "The browser does not let this page copy; select the text instead.");
  }
}

function setBusy(controller) {
  abort = controller;
  $("stop").hidden = !controller;
  $("send").hidden = !!controller;
  $("turns").setAttribute("aria-busy", String(!!controller));
  cache.setBusy(!!controller);
}

/** Shows how much of the context the conversation fills, as far as the last reply said. */
function drawRoom() {
  if (!served.size) return;
  const filled = turns.findLast((turn) => turn.cost)?.cost.context ?? 0;
  $("room").textContent = filled ? `${filled.toLocaleString("en")} / ${served.size.toLocaleString("en")}` : "";
  $("room").title = "Tokens of the context that the conversation has";
  $("room").classList.toggle("full", filled > 0.9 * served.size);
}

// Requests --------------------------------------------------------------------------------------

function messagesOf(some) {
  const system = settings.system();
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...some.map(({ role, content }) => ({ role, content })),
  ];
}

/** What every request about the conversation has. */
function about(some) {
  const texts = documents.forRequest();
  return { messages: messagesOf(some), ...(texts.length && { documents: texts }) };
}

/** Asks for a reply to the turns there are. */
async function reply() {
  const asker = turns.at(-1);
  delete asker.error;
  save();  // what was asked is there after a reload, whatever becomes of the reply
  const by = writtenBy();
  const steer = steering();
  const asked = verdicts();
  const turn = { role: "assistant", content: "", by, steer, verdicts: [], pending: [] };
  const controller = new AbortController();
  setBusy(controller);
  const body = {
    ...about(turns), ...settings.sampling(), ...(by && { adapter: by }), ...(Object.keys(steer).length && { steer }),
    ...(asked.length && { verdicts: asked }), stream: true, stream_options: { include_usage: true }, return_progress: true,
  };
  turns.push(turn);
  draw();
  toEnd();
  try {
    const response = await send("/v1/chat/completions", { body, signal: controller.signal });
    for await (const event of events(response)) take(turn, asker, event, asked);
  } catch (error) {
    failed(turn, asker, error);
  }
  turn.pending = [];
  setBusy(null);
  save();
  draw();
  showCosts(turn, asker);
  announce(turn, asker);
}

function take(turn, asker, event, asked) {
  const read = event.prompt_progress;
  turn.reading = read && read.processed < read.total ? read : undefined;
  for (const choice of event.choices) {
    turn.content += choice.delta.content ?? "";
    turn.reasoning = (turn.reasoning ?? "") + (choice.delta.reasoning_content ?? "") || undefined;
    if (choice.finish_reason) {
      turn.ended = choice.finish_reason;
      turn.pending = asked.map((call) => call.name ?? call);
      if (asked.length) cache.look();
    }
  }
  for (const verdict of (event.usage ? null : event.alora?.verdicts) ?? []) {
    place(verdict, turn, asker);
    turn.pending = turn.pending.filter((name) => name !== verdict.name);
  }
  if (event.usage) {
    turn.cost = {
      reused: event.timings.cache_n, read: event.timings.prompt_n, written: event.timings.predicted_n,
      seconds: (event.timings.prompt_ms + event.timings.predicted_ms) / 1000,
      rate: event.timings.predicted_per_second, note: event.alora?.reuse_note ?? "", context: event.usage.total_tokens,
    };
  }
  later(turn);
}

const waiting = new Set();

/** Draws a turn with the next frame, however many pieces come until then. */
function later(turn) {
  if (!waiting.size) requestAnimationFrame(() => { waiting.forEach(redraw); waiting.clear(); });
  waiting.add(turn);
}

/** Puts a verdict under the turn that it judges, in place of an older one. */
function place(verdict, turn, asker) {
  const each = byName(verdict.name);
  const found = { ...verdict, kind: each?.kind, good: each?.good ?? null, schema: each?.response_format };
  const under = each?.judges === "question" ? asker : turn;
  under.verdicts = [...(under.verdicts ?? []).filter((other) => other.label !== verdict.label), found];
  if (under !== turn) later(under);
}

function failed(turn, asker, error) {
  if (error.name === "AbortError") {
    turn.ended ??= "stopped";  // or it was there, and verdicts were not
    if (!turn.content) turns.pop();
    return;
  }
  if (error.status === 404) refresh().catch(() => {});
  const said = { text: error.message, code: error.code, retryAfter: error.retryAfter };
  if (turn.content) {
    turn.error = said;
    turn.ended ??= "broken";
  } else {
    turns.pop();
    asker.error = said;
  }
  if (!(error instanceof ApiError)) console.error(error);
}

function showCosts(turn, asker) {
  if (!turn.cost) return;
  const all = [...(asker.verdicts ?? []), ...(turn.verdicts ?? [])].filter((each) => each.timings);
  cache.showCosts([
    { name: "reply", ...turn.cost },
    ...all.map((each) => costOf(each)),
  ]);
}

const costOf = ({ label, timings }) => ({
  name: label, reused: timings.reused, read: timings.evaluated, written: timings.generated,
  seconds: timings.total, note: timings.reuse_note,
});

function announce(turn, asker) {
  if (asker.error) return say(asker.error.text);
  const n = (turn.verdicts?.length ?? 0) + (asker.verdicts?.length ?? 0);
  if (turn.ended === "stopped") return say("Stopped");
  say(`${turn.content}${n ? ` ${plural(n, "verdict")} below.` : ""}`);
}

/** Asks one intrinsic about the conversation so far. */
async function askNow(each) {
  if (abort) return say("A reply is being written; ask when it is there");
  const role = each.judges === "question" ? "user" : each.judges === "answer" ? "assistant" : null;
  const i = turns.findLastIndex((turn) => role === null || turn.role === role);
  if (i < 0) return notice("ask", `${each.name} judges ${each.judges ? `a ${each.judges}` : "a conversation"}; say something first.`);
  notice("ask", null);
  document.querySelector("#views [data-view=talk]").click();
  const under = turns[i];
  under.pending = [...(under.pending ?? []), each.name];
  const controller = new AbortController();
  setBusy(controller);
  draw();
  try {
    const got = await post(
      "/v1/chat/completions",
      { ...about(turns.slice(0, i + 1)), intrinsics: [callOf(each)] },
      { signal: controller.signal },
    );
    const [verdict] = got.alora.intrinsics;
    place(verdict, under, under);
    under.open = verdict.label;
    delete under.failed;
    cache.showCosts([costOf(verdict)]);
    say(`${each.name} has answered`);
  } catch (error) {
    if (error.name !== "AbortError") under.failed = `${each.name}: ${error.message}`;
    if (error.status === 404) refresh().catch(() => {});
  }
  under.pending = [];
  setBusy(null);
  save();
  draw();
}

// What the user does ------------------------------------------------------------------------------

export function submit(text) {
  if (abort || !text.trim()) return;
  if (editing) {
    turns = turns.slice(0, turns.findLastIndex((turn) => turn.role === "user"));
    setEditing(false);
  }
  if (turns.at(-1)?.role === "user") turns.pop();  // one that failed
  turns.push({ role: "user", content: text });
  $("prompt").value = "";
  fit();
  reply();
}

function regenerate() {
  turns.pop();
  if (turns.at(-1)?.verdicts) delete turns.at(-1).verdicts;
  reply();
  focusPrompt();
}

function edit() {
  $("prompt").value = turns.findLast((turn) => turn.role === "user").content;
  setEditing(true);
  fit();
  $("prompt").focus();
}

function setEditing(value) {
  editing = value;
  $("editing").hidden = !value;
}

function renew() {
  abort?.abort();
  const old = turns;
  turns = [];
  setEditing(false);
  save();
  draw();
  cache.showCosts(null);
  focusPrompt();
  document.querySelector("#views [data-view=talk]").click();
  if (old.length) notice("new", "A new conversation has begun.", { text: "Back to the old one", press: () => { turns = old; save(); draw(); toEnd(); } });
}

/** Goes back to writing, unless that opens a keyboard over what there is to read. */
function focusPrompt() {
  if (!isTouch()) $("prompt").focus();
}

/** Makes the field as high as its text. */
function fit() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
  field.style.overflowY = field.scrollHeight > field.clientHeight + 1 ? "auto" : "hidden";
}

/** Whether Enter is a new line: where keys are on glass there is no other. */
const isTouch = () => window.matchMedia("(pointer: coarse)").matches;

export function start() {
  draw();
  toEnd();
  fit();
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); submit($("prompt").value); });
  $("prompt").addEventListener("input", fit);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouch()) return;
    event.preventDefault();
    submit($("prompt").value);
  });
  $("stop").addEventListener("click", () => { abort?.abort(); focusPrompt(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (abort) abort.abort();
    else if (editing) { setEditing(false); $("prompt").value = ""; fit(); }
  });
  $("cancel-edit").addEventListener("click", () => {
    setEditing(false);
    $("prompt").value = "";
    fit();
    $("prompt").focus();
  });
  $("new").addEventListener("click", renew);
  const [asker, turn] = turns.slice(-2);
  if (turn) showCosts(turn, asker);
  window.addEventListener("pagehide", () => {
    const last = turns.at(-1);
    if (abort && last.role === "assistant" && last.content) last.ended ??= "broken";
    save();
    leaving = true;
  });
  window.addEventListener("pageshow", () => { leaving = false; });
  bus.addEventListener("served", drawRoom);
  bus.addEventListener("ask", (event) => askNow(event.detail));
}
