// What a verdict says in a word or two, and whether that is good; as cli/verdicts.py has it.

const SURE = 0.5;
const LONGEST = 60;
const WORDS = {
  answerability: ["answerable", "not answerable"],
  answerable: ["answerable", "not answerable"],
  faithful: ["faithful", "not faithful"],
  grounded: ["grounded", "not grounded"],
  jailbreak: ["jailbreak attempt", "no jailbreak attempt"],
  requirements_satisfied: ["requirement met", "requirement not met"],
};
const YES_NO = { yes: true, true: true, no: false, false: false };

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isNumber = (value) => typeof value === "number" || typeof value === "boolean";

function yesOrNo(value) {
  if (typeof value !== "string") return value;
  const found = YES_NO[value.trim().toLowerCase()];
  return found === undefined ? value : found;
}

/** What is within objects that hold nothing but an object. */
function unnested(value) {
  while (isObject(value) && Object.keys(value).length === 1) {
    const [inner] = Object.values(value);
    if (!isObject(inner) || !Object.keys(inner).length) break;
    value = inner;
  }
  return value;
}

/** The badges of a value: [{text, good: true | false | null}]. `schema` tells integers. */
export function badgesOf(name, value, good = null, schema = null) {
  if (!isObject(value) || !Object.keys(value).length) {
    value = yesOrNo(value);
    return [badge(name, value, isGood(value, good), schema?.type === "integer")];
  }
  const held = unnested(value);
  const around = held === value ? "" : `${Object.keys(value)[0]} `;
  const fields = Object.entries(held).map(([field, inner]) => ({
    label: around + field,
    value: yesOrNo(inner),
    isText: typeof inner === "string",
    isInteger: schema?.properties?.[field]?.type === "integer",
  }));
  const numbers = fields.filter((field) => isNumber(field.value));
  const plain = numbers.filter((field) => !field.isText);
  const shown = plain.length ? plain : numbers.length ? numbers : fields;
  return shown.map((field, i) => badge(
    field.label, field.value, i === 0 && numbers.length ? isGood(field.value, good) : null,
    field.isInteger,
  ));
}

function isGood(number, good) {
  if (!good || !isNumber(number)) return null;
  return (Number(number) >= SURE) === (good === "high");
}

function badge(field, value, good, isInteger) {
  const label = field.replaceAll("_", " ");
  const percent = (share) => `${Math.round(share * 100)}%`;
  if (typeof value === "boolean") {
    const words = WORDS[field] ?? [`${label} yes`, `${label} no`];
    return { text: words[value ? 0 : 1], good };
  }
  if (typeof value === "number") {
    if (isInteger || value < 0 || value > 1) return { text: `${label} ${Number(value.toPrecision(6))}`, good };
    if (!WORDS[field]) return { text: `${label} ${percent(value)}`, good };
    return { text: `${WORDS[field][value < SURE ? 1 : 0]} ${percent(Math.max(value, 1 - value))}`, good };
  }
  if (typeof value === "string") {
    const text = value.trim().split(/\s+/).join(" ");
    const short = text.length <= LONGEST ? text : `${text.slice(0, LONGEST - 1)}…`;
    return { text: text ? `${label} "${short}"` : `${label} is empty`, good: null };
  }
  if (value === null) return { text: `${label}: none`, good: null };
  const n = Array.isArray(value) ? value.length : Object.keys(value).length;
  return { text: `${label}: ${n} ${Array.isArray(value) ? "item" : "field"}${n === 1 ? "" : "s"}`, good: null };
}
