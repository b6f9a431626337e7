// Elements, texts and what the browser keeps. Text is only ever set as text.

export const $ = (id) => document.getElementById(id);

/** An element: `props` are attributes, but `class`, `text`, `on` ({event: listener}) and `data`. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const button = (text, press, props = {}) =>
  h("button", { type: "button", ...props, on: { click: press } }, text);

/** Shows `text` in an element that is hidden without one. */
export function tell(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** Says something to those who listen to the page. */
export function say(text) {
  $("said").textContent = text;
}

/** A note across the page, of which there is one per `id`. */
export function notice(id, text, action = null) {
  document.getElementById(`notice-${id}`)?.remove();
  if (!text) return;
  const parts = [h("span", { text })];
  if (action) parts.push(button(action.text, () => { notice(id, null); action.press(); }));
  $("notices").append(h("div", { id: `notice-${id}`, class: "notice", role: "status" }, ...parts));
}

export const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** A value under a name in `storage`, which may be full or forbidden: then it lives with the page. */
function kept(storage) {
  return {
    get(name, otherwise) {
      try {
        const text = window[storage].getItem(`alora.${name}`);
        return text === null ? otherwise : JSON.parse(text);
      } catch {
        return otherwise;
      }
    },
    set(name, value) {
      try {
        if (value === null) window[storage].removeItem(`alora.${name}`);
        else window[storage].setItem(`alora.${name}`, JSON.stringify(value));
      } catch { /* nothing is kept */ }
    },
  };
}

export const browser = kept("localStorage");
export const tab = kept("sessionStorage");

/** What changed, for whoever shows it: "served", "documents", "turn". */
export const bus = new EventTarget();
export const changed = (what) => bus.dispatchEvent(new Event(what));
