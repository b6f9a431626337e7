// What is served: the base and its adapters; which of them judge each reply, who writes it, and what
// steers it.

import { get, post } from "./api.js";
import { $, browser, bus, button, changed, h, say, tab, tell } from "./dom.js";

const HUES = 8;
export const served = { base: "", size: 0, adapters: [], open: false };
const choices = browser.get("verdicts", {});    // name -> whether it follows each reply
const given = browser.get("arguments", {});     // name -> {argument: text}
const scales = tab.get("steering", {});         // name of a vector -> its scale
let writer = tab.get("writer", "");
const hues = new Map();

/** Which colour shows whose work: "base", or one of HUES. */
export function hue(name) {
  if (name === null) return "base";
  if (!hues.has(name)) hues.set(name, hues.size % HUES);
  return hues.get(name);
}

export const byName = (name) => served.adapters.find((each) => each.name === name);

const isVector = (each) => each.kind === "vector";
const writers = () => served.adapters.filter((each) => !isVector(each));

/** The adapter that writes replies; "" is the base. */
export const writtenBy = () => (writers().some((each) => each.name === writer) ? writer : "");

/** The vectors that act on replies, and their scales, as chat completions take them. */
export const steering = () => Object.fromEntries(
  served.adapters.filter((each) => isVector(each) && scales[each.name]).map(({ name }) => [name, scales[name]]));

const isChosen = (each) => each.intrinsic && (choices[each.name] ?? isUsual(each));
// those that cost little and whose answer says whether all is well
const KINDS = { alora: "aLoRA", lora: "LoRA", vector: "steering vector" };
const isUsual = (each) => each.kind === "alora" && !each.arguments.length && !!each.good;
const lacks = (each) => each.arguments.filter((name) => !given[each.name]?.[name]?.trim());

/** A call of an intrinsic, as chat completions take it; null while it lacks an argument. */
export function callOf(each) {
  if (lacks(each).length) return null;
  if (!each.arguments.length) return each.name;
  return { name: each.name, arguments: Object.fromEntries(each.arguments.map((name) => [name, given[each.name][name]])) };
}

/** The verdicts that follow each reply. */
export const verdicts = () => served.adapters.filter(isChosen).map(callOf).filter((call) => call !== null);

/** Asks the server what it serves. Raises ApiError. */
export async function refresh() {
  const [models, adapters] = await Promise.all([get("/v1/models"), get("/v1/adapters")]);
  const base = models.data.find((each) => each.parent === null);
  Object.assign(served, {
    base: base.id, size: base.max_model_len, adapters: adapters.data,
    open: adapters.loading === true, files: adapters.files ?? [],
  });
  served.adapters.forEach((each) => hue(each.name));
  draw();
  changed("served");
}

const OTHERS = "Others";
const GROUPS = [
  ["Judge the question", (each) => each.judges === "question"],
  ["Judge the answer", (each) => each.judges === "answer"],
  [OTHERS, (each) => !each.judges],
];

function draw() {
  $("writer").replaceChildren(
    h("option", { value: "", text: "the base" }),
    ...writers().map((each) => h("option", { value: each.name, text: each.name })),
  );
  $("writer").value = writtenBy();
  $("writer").parentElement.hidden = !writers().length;
  const groups = GROUPS.map(([title, holds]) => [title, served.adapters.filter(holds)]);
  const filled = groups.filter(([, group]) => group.length);
  $("adapter-list").replaceChildren(...filled.map(([title, group]) => h("li", {},
    (filled.length > 1 || title !== OTHERS) && h("h3", { text: title }),
    h("ul", {}, ...group.map(row)))));
  $("adapter-files").replaceChildren(...served.files.map((file) => h("option", { value: file })));
  $("add-adapter").hidden = !served.open;
  $("adapter-note").textContent = note();
}

function note() {
  const open = served.open ? "" : "Adapters can be loaded here if the server is started with --adapters-dir.";
  if (!served.adapters.length) return `None: start the server with --adapter NAME=FILE. ${open}`;
  return `Ticked ones judge each reply, in one batch, on the cells of the conversation. ${open}`;
}

function row(each) {
  const id = `verdict-${each.name}`;
  const kind = KINDS[each.kind] ?? each.kind;
  const about = [kind, `rank ${each.rank}`];
  if (each.generation > 1) about.push(`generation ${each.generation}`);
  if (isVector(each)) about.push("acts on replies");
  else if (!each.intrinsic && !each.contract_error) about.push("no contract");
  const name = [
    h("span", { class: "swatch", data: { hue: hue(each.name) }, "aria-hidden": "true" }),
    h("span", { class: "words-of" }, h("span", { text: each.name }), " ", h("span", { class: "about quiet", text: about.join(" · ") })),
  ];
  const box = h("input", {
    type: "checkbox", id, checked: isChosen(each),
    on: { change: () => { choices[each.name] = box.checked; browser.set("verdicts", choices); draw(); $(id).focus(); } },
  });
  return h("li", { class: "adapter", data: { adapter: each.name } },
    each.intrinsic
      ? h("label", { class: "name", for: id, title: "Ask after each reply" }, box, ...name)
      : h("span", { class: "name" }, h("span", { class: "no-box" }), ...name),
    h("span", { class: "acts" },
      each.intrinsic && button("Ask", () => askNow(each), { "aria-label": `Ask ${each.name} now`, title: "Ask now, about the conversation so far" }),
      served.open && button("×", () => unload(each.name), { class: "icon", "aria-label": `Unload ${each.name}` })),
    each.contract_error && h("span", { class: "more error", text: each.contract_error }),
    each.kind === "lora" && each.intrinsic && h("span", { class: "more quiet", text: "on from the first token: reads the conversation anew" }),
    ...(each.intrinsic ? each.arguments.map((name) => argument(each, name)) : []),
    isVector(each) && scale(each),
  );
}

function scale(each) {
  const id = `scale-${each.name}`;
  const input = h("input", {
    id, type: "number", min: -1000, max: 1000, step: "any", value: scales[each.name] ?? "", placeholder: "0, off",
    on: { input: () => {
      if (!input.value && input.checkValidity()) delete scales[each.name];
      else if (input.checkValidity()) scales[each.name] = input.valueAsNumber;
      tab.set("steering", scales);
    } },
  });
  return h("div", { class: "argument" }, h("label", { for: id, text: "Scale, from the next reply on" }), input);
}

function argument(each, name) {
  const id = `argument-${each.name}-${name}`;
  const input = h("input", {
    id, value: given[each.name]?.[name] ?? "", autocomplete: "off", placeholder: "needed to ask",
    on: { input: () => {
      (given[each.name] ??= {})[name] = input.value;
      browser.set("arguments", given);
    } },
  });
  return h("div", { class: "argument" }, h("label", { for: id, text: name.replaceAll("_", " ") }), input);
}

function askNow(each) {
  const missing = lacks(each);
  if (missing.length) return $(`argument-${each.name}-${missing[0]}`).focus();
  bus.dispatchEvent(new CustomEvent("ask", { detail: each }));
}

function fail(text) {
  tell($("adapter-error"), text);
}

async function unload(name) {
  fail(null);
  try {
    await post("/v1/unload_lora_adapter", { lora_name: name });
    say(`${name} is unloaded`);
  } catch (error) {
    fail(error.message);
  }
  await refresh().catch((error) => fail(error.message));
  ($("adapter-list").querySelector("button") ?? $("add-adapter")).focus();
}

async function load() {
  fail(null);
  const [name, path] = [$("adapter-name").value.trim(), $("adapter-path").value.trim()];
  const submit = $("adapter-form").querySelector("[type=submit]");
  submit.disabled = true;
  try {
    await post("/v1/load_lora_adapter", { lora_name: name, lora_path: path });
    say(`${name} is loaded`);
    $("adapter-form").reset();
    open(false);
    await refresh();
  } catch (error) {
    fail(error.message);
  } finally {
    submit.disabled = false;
  }
}

function open(shown) {
  $("adapter-form").hidden = !shown;
  $("add-adapter").setAttribute("aria-expanded", String(shown));
  (shown ? $("adapter-path") : $("add-adapter")).focus();
}

export function start() {
  $("writer").addEventListener("change", () => { writer = $("writer").value; tab.set("writer", writer); });
  $("add-adapter").addEventListener("click", () => open($("adapter-form").hidden));
  $("cancel-adapter").addEventListener("click", () => { fail(null); open(false); });
  $("adapter-form").addEventListener("submit", (event) => { event.preventDefault(); load(); });
  $("adapter-form").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); open(false); }
  });
  $("adapter-path").addEventListener("input", () => {
    const file = $("adapter-path").value.split("/").pop().replace(/\.gguf$/, "");
    if (!$("adapter-name").dataset.typed) $("adapter-name").value = file;
  });
  $("adapter-name").addEventListener("input", () => {
    $("adapter-name").dataset.typed = $("adapter-name").value ? "1" : "";
  });
  $("adapter-form").addEventListener("reset", () => { $("adapter-name").dataset.typed = ""; });
}
