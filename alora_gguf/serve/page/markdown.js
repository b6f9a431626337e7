// The part of Markdown that models write, as elements: code, lists, headings, emphasis. No links and
// no pictures: a reply must not make the page ask elsewhere.

import { h } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const ITEM = /^ {0,6}(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const SPAN = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![\w*])/g;

const LONGEST = 100_000;  // characters that are worth formatting: it is done again for each piece

export function markdown(text) {
  if (text.length > LONGEST) return [h("pre", { tabindex: "0", text })];
  const blocks = [];
  const lines = text.split("\n");
  let paragraph = [];
  const close = () => {
    if (paragraph.length) blocks.push(h("p", {}, ...spans(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const fence = FENCE.exec(lines[i]);
    if (fence) {
      close();
      const code = [];
      while (++i < lines.length && !lines[i].trimStart().startsWith(fence[1])) code.push(lines[i]);
      blocks.push(h("pre", { tabindex: "0" }, h("code", { text: code.join("\n") })));
      continue;
    }
    const heading = HEADING.exec(lines[i]);
    if (heading) {
      close();
      blocks.push(h("p", { class: "heading" }, ...spans(heading[2])));
      continue;
    }
    if (ITEM.test(lines[i])) {
      close();
      i = list(lines, i, blocks);
      continue;
    }
    if (lines[i].trim()) paragraph.push(lines[i]);
    else close();
  }
  close();
  return blocks;
}

/** Appends the list that begins at line i; returns its last line. */
function list(lines, i, blocks) {
  const first = ITEM.exec(lines[i]);
  const ordered = first[1] !== undefined;
  const items = h(ordered ? "ol" : "ul", ordered && first[1] !== "1" ? { start: first[1] } : {});
  for (; i < lines.length; i++) {
    const item = ITEM.exec(lines[i]);
    if (!item || (item[1] !== undefined) !== ordered) break;
    items.append(h("li", {}, ...spans(item[2])));
  }
  blocks.push(items);
  return i - 1;
}

function spans(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(SPAN)) {
    parts.push(text.slice(end, found.index));
    end = found.index + found[0].length;
    if (found[2] !== undefined) parts.push(h("code", { text: found[2] }));
    else if (found[3] !== undefined) parts.push(h("strong", { text: found[3] }));
    else parts.push(h("em", { text: found[4] }));
  }
  parts.push(text.slice(end));
  return parts;
}
