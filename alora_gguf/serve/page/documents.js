// The documents of the conversation: pasted, from files, dropped.

import { $, button, changed, h, plural, say, tab, tell } from "./dom.js";

const MAX_BYTES = 12 << 20;  // of all: the server takes requests of 16 MiB, with the conversation
let documents = tab.get("documents", []);

/** As chat completions take them. */
export const forRequest = () => documents.map(({ text, title }, i) => ({
  text, doc_id: String(i + 1), ...(title && { title }),
}));

export const count = () => documents.length;

/** Adds documents: [{text, title?}]. */
export function add(added) {
  const size = [...documents, ...added].reduce((sum, each) => sum + each.text.length, 0);
  if (size > MAX_BYTES) {
    return fail(`The documents would have ${plural(size, "character")}; ${plural(MAX_BYTES, "character")} is the most.`);
  }
  documents = [...documents, ...added];
  after(`${plural(added.length, "document")} added`);
}

/** Adds files. What is not text is named, and the others are added. */
export async function addFiles(files) {
  fail(null);
  const found = [];
  const strange = [];
  for (const file of files) {
    try {
      if (file.size > MAX_BYTES) throw new RangeError();
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new TypeError();
      if (text.trim()) found.push({ text, title: file.name });
      else strange.push(`${file.name} is empty`);
    } catch (error) {
      strange.push(error instanceof RangeError
        ? `${file.name} has more than ${MAX_BYTES >> 20} MiB`
        : `${file.name} is not text in UTF-8`);
    }
  }
  if (found.length) add(found);
  if (strange.length) fail(`${strange.join("; ")}. Text files can be added.`);
}

function fail(text) {
  tell($("document-error"), text);
}

function after(text) {
  tab.set("documents", documents);
  draw();
  say(text);
  changed("documents");
}

function draw() {
  $("document-list").replaceChildren(...documents.map((each, i) => h("li", { class: "document" },
    h("details", {},
      h("summary", {},
        h("span", { class: "name", text: each.title || firstLine(each.text) }),
        h("span", { class: "quiet", text: plural(each.text.length, "character") })),
      h("div", { class: "whole", tabindex: "0", text: each.text })),
    button("×", () => remove(i), { class: "icon", "aria-label": `Remove ${each.title || firstLine(each.text)}` }),
  )));
  $("document-note").textContent = documents.length
    ? "They stand before the conversation: after a change all of it is read again."
    : "None. Replies and verdicts can be about texts that are added here.";
  $("views").querySelector("[data-view=documents]").textContent =
    documents.length ? `Documents ${documents.length}` : "Documents";
}

const firstLine = (text) => {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 70 ? `${line.slice(0, 69)}…` : line;
};

function remove(i) {
  documents = documents.filter((_, at) => at !== i);
  fail(null);
  after("Document removed");
  const left = $("document-list").querySelectorAll("button");
  (left[Math.min(i, left.length - 1)] ?? $("add-document")).focus();
}

function open(shown) {
  $("document-form").hidden = !shown;
  $("add-document").setAttribute("aria-expanded", String(shown));
  (shown ? $("document-text") : $("add-document")).focus();
}

export function start() {
  draw();
  $("add-document").addEventListener("click", () => open($("document-form").hidden));
  $("cancel-document").addEventListener("click", () => open(false));
  $("document-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("document-text").value;
    if (!text.trim()) return $("document-text").focus();
    fail(null);
    add([{ text }]);
    $("document-text").value = "";
    open(false);
  });
  $("document-form").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); open(false); }
  });
  $("choose-files").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", async () => {
    await addFiles([...$("files").files]);
    $("files").value = "";
    open(false);
  });
  startDrop();
}

function startDrop() {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const show = (shown) => { $("drop").hidden = !shown; };
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(true);
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) show(false); });
  document.addEventListener("drop", (event) => {
    show(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
}
