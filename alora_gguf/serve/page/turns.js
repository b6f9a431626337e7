// One turn as elements: its text, the badges of its verdicts, what it cost and what can be done.

import { badgesOf } from "./badges.js";
import { served } from "./adapters.js";
import { button, duration, h, plural } from "./dom.js";
import { markdown } from "./markdown.js";

const MARKS = { good: "✓", bad: "!", plain: "·" };
const WORDS = { good: "good: ", bad: "bad: ", plain: "" };
const ENDS = {
  stopped: "stopped",
  broken: "broke off",
  length: "cut off at the limit of tokens",
};

/** `actions` are [text, what it does]; `again` draws the turn again. */
export function drawTurn(turn, actions, again) {
  const isReply = turn.role === "assistant";
  const asked = [...(turn.verdicts ?? [])];
  const open = asked.find((each) => each.label === turn.open);
  const at = Object.entries(turn.steer ?? {}).map(([name, scale]) => ` + ${name} at ${scale}`);
  const by = `${turn.by ? `${served.base}:${turn.by}` : served.base}${at.join("")}`;
  return h("li", { class: `turn ${turn.role}` },
    h("p", { class: "who", text: isReply ? by || "Reply" : "You" }),
    turn.reasoning && h("details", { class: "reasoning" }, h("summary", { text: "Reasoning" }), h("div", { class: "text", text: turn.reasoning })),
    h("div", { class: "text" }, ...(isReply ? textOf(turn) : [h("p", { text: turn.content })])),
    (asked.length > 0 || turn.pending?.length > 0) && h("ul", { class: "badges", "aria-label": isReply ? "Verdicts on the reply" : "Verdicts on the question" },
      ...asked.map((each) => h("li", {}, badge(each, turn, again, isAlike(each, asked)))),
      ...(turn.pending ?? []).map((name) => h("li", { class: "asking", text: `asking ${name}…` }))),
    open && details(open),
    turn.failed && h("p", { class: "error", role: "alert", text: turn.failed }),
    turn.error && failure(turn.error),
    h("div", { class: "meta" },
      ...costs(turn).map((text) => h("span", { class: "quiet", text })),
      actions.length > 0 && h("span", { class: "todo" }, ...actions.map(([text, act]) => button(text, act, { class: "link", data: { act: text } })))),
  );
}

function textOf(turn) {
  if (turn.content) return markdown(turn.content);
  if (turn.reading) {
    const { processed, total } = turn.reading;
    return [h("p", { class: "quiet", text: `Reading: ${processed.toLocaleString("en")} of ${plural(total, "token")}` })];
  }
  return turn.ended ? [h("p", { class: "quiet", text: "(nothing)" })] : [h("p", { class: "waiting" }, h("span", { class: "unseen", text: "Waiting for the reply" }))];
}

function failure({ text, code, retryAfter }) {
  const hint = code === "busy" ? ` It may be free again in ${plural(retryAfter ?? 1, "second")}.`
    : code === "context_length_exceeded" ? " Begin a new conversation, or remove documents." : "";
  return h("p", { class: "error", role: "alert", text: `${text[0].toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? "" : "."}${hint}` });
}

function costs({ cost, ended }) {
  const said = ENDS[ended] ? [ENDS[ended]] : [];
  if (!cost) return said;
  said.push(`${plural(cost.written, "token")} in ${duration(cost.seconds)}`);
  said.push(`${cost.read.toLocaleString("en")} read, ${cost.reused.toLocaleString("en")} reused`);
  return said;
}

/** Whether another verdict answers the same fields: then only the name tells them apart. */
function isAlike(verdict, all) {
  const fields = (value) => JSON.stringify(value && typeof value === "object" ? Object.keys(value) : null);
  return all.some((each) => each !== verdict && fields(each.value) === fields(verdict.value));
}

function badge(verdict, turn, again, named) {
  const badges = verdict.error !== undefined
    ? [{ text: `${verdict.label}: no answer`, good: false }]
    : badgesOf(verdict.name, verdict.value, verdict.good, verdict.schema);
  const good = badges[0].good;
  const kind = good === null ? "plain" : good ? "good" : "bad";
  const isOpen = turn.open === verdict.label;
  const { reused, evaluated, total } = verdict.timings ?? {};
  return h("button", {
    type: "button", class: `badge ${kind}`, "aria-expanded": String(isOpen), title: verdict.label,
    data: { act: verdict.label },
    on: { click: () => { turn.open = isOpen ? undefined : verdict.label; again(); } },
  },
    h("span", { class: "mark", "aria-hidden": "true", text: MARKS[kind] }),
    h("span", { class: "unseen", text: WORDS[kind] }),
    h("span", { class: "word", text: `${named ? `${verdict.label}: ` : ""}${badges.map((each) => each.text).join(" · ")}` }),
    verdict.timings && h("span", { class: "cost", text: `${duration(total)} · ${evaluated} read, ${reused} reused` }),
  );
}

function details(verdict) {
  const { reused, evaluated, generated, first_token: first, total, reuse_note: note } = verdict.timings ?? {};
  const rows = [["Asked", `${verdict.label === verdict.name ? verdict.name : `${verdict.label} (${verdict.name})`}, ${verdict.kind === "lora" ? "a plain LoRA: it is on from the first token, so it reads the conversation itself" : "an aLoRA: it goes on from the cells of the base"}`]];
  if (verdict.error !== undefined) rows.push(["Error", verdict.error]);
  else rows.push(["Value", h("code", { text: JSON.stringify(verdict.value, null, 1) })]);
  if (verdict.text) rows.push(["Wrote", h("code", { text: verdict.text })]);
  if (verdict.timings) {
    rows.push(["Tokens", `${reused} reused, ${evaluated} read, ${generated} written`]);
    rows.push(["Time", first ? `${duration(total)}, the first token after ${duration(first)}` : duration(total)]);
  }
  if (note) rows.push(["Reuse", note]);
  return h("dl", { class: "details" }, ...rows.flatMap(([name, value]) => [h("dt", { text: name }), h("dd", {}, value)]));
}
