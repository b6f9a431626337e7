// The cache as a map: what the last request reused and read, and whose cells it holds.

import { get } from "./api.js";
import { byName, hue } from "./adapters.js";
import { $, bus, duration, h, plural, tell } from "./dom.js";

const MOST = 12;          // holders that are shown
const PERIOD = 4000;      // ms between looks while nothing happens
const BUSY_PERIOD = 1000; // ms, during a reply
let last = null;
let busy = false;
let timer = null;

const isShown = () => !document.hidden && $("cache").offsetParent !== null;

/** A bar of parts [{n, kind, hue?, text}], `of` cells long. What it shows is said in words beside it. */
function bar(parts, of) {
  const rest = of - parts.reduce((sum, each) => sum + each.n, 0);
  const shown = parts.filter((each) => each.n > 0).map((each) => {
    const part = h("span", { class: `part ${each.kind ?? ""}`, data: each.hue === undefined ? {} : { hue: each.hue }, title: each.text });
    part.style.flexGrow = each.n;
    return part;
  });
  const blank = h("span", { class: "blank" });
  blank.style.flexGrow = Math.max(0, rest);
  return h("div", { class: "bar", "aria-hidden": "true" }, ...shown, blank);
}

const key = (kind, text, data = {}) => h("span", { class: "key" }, h("span", { class: `swatch ${kind}`, data, "aria-hidden": "true" }), text);

// The last request --------------------------------------------------------------------------------

/** Shows what a request cost: [{name, who, reused, read, written, seconds, note}]. */
export function showCosts(costs) {
  last = costs;
  drawLast();
}

function drawLast() {
  if (!last?.length) return $("last").replaceChildren();
  const longest = Math.max(...last.map((each) => each.reused + each.read + each.written));
  const reused = last.reduce((sum, each) => sum + each.reused, 0);
  const read = last.reduce((sum, each) => sum + each.read, 0);
  const notes = new Map();  // why much was read -> by whom
  for (const each of last.filter((one) => one.note && one.read > one.reused)) {
    notes.set(each.note, [...(notes.get(each.note) ?? []), each.name]);
  }
  $("last").replaceChildren(
    h("h3", { text: "Last request" }),
    h("p", { class: "sum" }, h("strong", { text: plural(read, "token") }), " read, ",
      h("strong", { text: reused.toLocaleString("en") }), " reused",
      read + reused ? ` (${Math.round(100 * reused / (read + reused))}%)` : ""),
    h("ul", { class: "costs" }, ...last.map((each) => h("li", {},
      h("span", { class: "name", text: each.name }),
      bar([
        { n: each.reused, kind: "reused", text: `${each.reused} reused` },
        { n: each.read, kind: "read", text: `${each.read} read` },
        { n: each.written, kind: "written", text: `${each.written} written` },
      ], longest),
      h("span", { class: "quiet figures", "aria-hidden": "true", text: `${each.reused} + ${each.read} + ${each.written}` }),
      h("span", { class: "unseen", text: `: ${each.reused} reused, ${each.read} read, ${each.written} written, ${duration(each.seconds)}` }),
    ))),
    h("p", { class: "legend" }, key("reused", "reused"), key("read", "read"), key("written", "written")),
    ...[...notes].map(([note, names]) => h("p", { class: "quiet note", text: `${names.join(", ")}: ${note}.` })),
  );
}

// The map ----------------------------------------------------------------------------------------

function drawMap(report) {
  const longest = Math.max(1, ...report.holders.map((each) => each.cells));
  const whose = new Map();
  for (const holder of report.holders) {
    for (const span of holder.spans ?? []) whose.set(span.adapter, hue(span.adapter));
  }
  const unknown = report.holders.some((each) => each.spans === null);
  const holders = [...report.holders].sort((a, b) => b.cells - a.cells);
  $("map").replaceChildren(...[
    h("h3", { text: "Cells" }),
    h("p", { class: "sum" }, h("strong", { text: report.used.toLocaleString("en") }), ` of ${report.n_cells.toLocaleString("en")} used`,
      report.promised ? `, ${report.promised.toLocaleString("en")} promised` : "", `, ${report.free.toLocaleString("en")} free`),
    bar([
      { n: report.used, kind: "used", text: `${report.used} used` },
      { n: report.promised, kind: "promised", text: `${report.promised} promised to requests under way` },
    ], report.n_cells),
    report.promised > 0 && h("p", { class: "legend" }, key("used", "used"), key("promised", "promised"), key("free", "free")),
    ...(holders.length ? [h("h3", { text: "Whose they are" })] : []),
    h("ul", { class: "holders" }, ...holders.slice(0, MOST).map((each) => holderRow(each, longest))),
    ...(holders.length > MOST ? [h("p", { class: "quiet note", text: `and ${plural(holders.length - MOST, "smaller one")}` })] : []),
    h("p", { class: "legend" },
      ...[...whose].sort((a, b) => (a[0] === null ? -1 : b[0] === null ? 1 : 0)).map(([name, colour]) => key("", nameOf(name), { hue: colour })),
      unknown && key("changing", "being written"),
      report.holders.some((each) => each.alone < each.cells) && key("shared", "shared")),
  ].filter(Boolean));
}

const nameOf = (name) => (name === null ? "base" : byName(name) ? name : `unloaded ${name.slice(0, 8)}`);
const KINDS = { session: "open conversation", closed: "kept for the next turn", call: "call under way" };

function holderRow(holder, longest) {
  const spans = holder.spans ?? [];
  const parts = holder.spans === null
    ? [{ n: holder.cells, kind: "changing", text: `${holder.cells} cells, being written` }]
    : spans.map((span) => ({ n: span.end - span.begin, hue: hue(span.adapter), text: `${nameOf(span.adapter)}: ${span.begin} to ${span.end}` }));
  const shared = holder.cells - holder.alone;
  const scale = (span) => (span.adapter === null || span.scale === 1 ? "" : ` at ${span.scale}`);
  const words = holder.spans === null
    ? "being written"
    : spans.map((span) => `${nameOf(span.adapter)}${scale(span)} ${(span.end - span.begin).toLocaleString("en")}`).join(" · ");
  const under = bar([{ n: shared, kind: "shared", text: `${shared} shared` }], longest);
  under.classList.add("thin");
  return h("li", { title: holder.why },
    h("span", { class: "name", text: KINDS[holder.kind] ?? holder.kind }),
    h("span", { class: "quiet figures", text: plural(holder.cells, "cell") }),
    bar(parts, longest),
    shared > 0 && under,
    h("span", { class: "quiet words", text: [words, shared > 0 && `${shared.toLocaleString("en")} shared`, holder.promised > 0 && `${holder.promised.toLocaleString("en")} promised`].filter(Boolean).join(" · ") }),
  );
}

/** Asks the server and shows what it says, if the map can be seen. */
export async function look() {
  clearTimeout(timer);
  if (isShown()) {
    try {
      drawMap(await get("/v1/cache", { asks: false }));
      tell($("cache-error"), null);
    } catch (error) {
      tell($("cache-error"), error.message);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(look, busy ? BUSY_PERIOD : PERIOD);
}

export function setBusy(value) {
  busy = value;
  look();
}

/** Begins when it is known what is served: whose name has which colour. */
export function start() {
  document.addEventListener("visibilitychange", () => { if (isShown()) look(); });
  bus.addEventListener("served", look);
}
