// Requests to the server, the key they bear, and the events it streams.

import { $, tab } from "./dom.js";

/** What the server answered instead: `status` 0 where nothing answered. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

let key = tab.get("key", null);
let asking = null;

export const hasKey = () => key !== null;

export function setKey(value) {
  key = value;
  tab.set("key", value);
}

/** Asks for the key, once for however many requests want it; resolves to whether there is one. */
function askKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-text").textContent = wrong
      ? "This server does not take that key."
      : "This server asks for a key.";
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      const given = $("key").value.trim();
      $("key").value = "";
      if (dialog.returnValue !== "ok" || !given) return resolve(false);
      setKey(given);
      resolve(true);
    }, { once: true });
    $("cancel-key").onclick = () => dialog.close();
    dialog.showModal();
  });
  return asking;
}

/** A response with a good status. Raises ApiError, and AbortError where `signal` says so. */
export async function send(path, { body, signal, asks = true } = {}) {
  const used = key;
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(used && { Authorization: `Bearer ${used}` }) };
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, cache: "no-store",
      body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401 && asks) {
    if (key !== used || await askKey(used !== null)) return send(path, { body, signal, asks });
  }
  throw await errorOf(response);
}

async function errorOf(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch { /* no JSON: the status says it */ }
  const text = said.message ?? `The server answered ${response.status}.`;
  const retry = Number(response.headers.get("retry-after")) || null;
  return new ApiError(text, response.status, said.code ?? null, retry);
}

export const get = async (path, options) => (await send(path, options)).json();
export const post = async (path, body, options) => (await send(path, { ...options, body })).json();

/** /health, whatever its status: {status} with "ready", "loading", "draining" or "gone". */
export async function health() {
  try {
    return await (await fetch("/health", { cache: "no-store" })).json();
  } catch {
    return { status: "gone" };
  }
}

/** The JSON of each event of a stream. Raises ApiError for one that is an error, or if it breaks. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError("The reply broke off: the server closed the connection.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.message, 500, event.error.code);
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The reply broke off: the connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
