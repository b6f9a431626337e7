// The system prompt and how replies are sampled; this browser keeps them.

import { hasKey, setKey } from "./api.js";
import { $, browser, say, tell } from "./dom.js";

const NUMBERS = { temperature: "temperature", "max-tokens": "max_tokens", seed: "seed" };
const stored = browser.get("settings", {});

const save = () => browser.set("settings", stored);

export const system = () => (stored.system ?? "").trim();

/** A chat completion's fields. */
export function sampling() {
  const fields = Object.values(NUMBERS).filter((field) => typeof stored[field] === "number");
  return Object.fromEntries(fields.map((field) => [field, stored[field]]));
}

/** Sets what the user has not set. */
export function suggest(values) {
  for (const [name, value] of Object.entries(values)) stored[name] ??= value;
  save();
  fill();
}

function fill() {
  tell($("standing"), system() && `System prompt: ${system()}`);
  $("system").value = stored.system ?? "";
  for (const [id, field] of Object.entries(NUMBERS)) $(id).value = stored[field] ?? "";
  $("forget-key").hidden = !hasKey();
}

export function start() {
  fill();
  for (const id of ["open-settings", "standing"]) {
    $(id).addEventListener("click", () => { fill(); $("settings").showModal(); });
  }
  $("system").addEventListener("input", () => {
    stored.system = $("system").value;
    save();
    tell($("standing"), system() && `System prompt: ${system()}`);
  });
  for (const [id, field] of Object.entries(NUMBERS)) {
    $(id).addEventListener("input", () => {
      const number = $(id).valueAsNumber;
      if (Number.isNaN(number)) delete stored[field];
      else if ($(id).checkValidity()) stored[field] = number;
      save();
    });
  }
  $("reset-settings").addEventListener("click", () => {
    for (const name of Object.keys(stored)) delete stored[name];
    save();
    fill();
    say("Settings are reset");
  });
  $("forget-key").addEventListener("click", () => { setKey(null); fill(); say("The key is forgotten"); });
  $("settings").addEventListener("click", (event) => {
    if (event.target === $("settings")) $("settings").close();  // beside it
  });
}
