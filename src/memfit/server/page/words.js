// The page's texts and how it writes sizes and speeds, in the language chosen by hand or by the browser.
import { html, signal } from "./vendor/core.js";
import { forGood } from "./storage.js";

const STORED = "memfit-language";
export const LANGUAGES = { en: "English", ar: "العربية" };
const RIGHT_TO_LEFT = new Set(["ar"]);
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const language = signal("en");
const texts = signal({});

export function preferredLanguage() {
  const stored = forGood.read(STORED);
  if (stored in LANGUAGES) return stored;
  return navigator.languages.map((one) => one.split("-")[0]).find((one) => one in LANGUAGES) ?? "en";
}

export async function useLanguage(code, { keep = false } = {}) {
  if (keep) forGood.write(STORED, code);
  const response = await fetch(`page/words/${code}.json`);
  texts.value = await response.json();
  language.value = code;
  document.documentElement.lang = code;
  document.documentElement.dir = RIGHT_TO_LEFT.has(code) ? "rtl" : "ltr";
}

// The text of a key, `{names}` in it replaced. A key that is missing shows itself.
export function t(key, values = {}) {
  const text = texts.value[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function sizeText(bytes) {
  let unit = 0;
  let size = bytes;
  while (Math.abs(size) >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit && Math.abs(size) < 100 ? size.toFixed(2) : Math.round(size)} ${UNITS[unit]}`;
}

export function speedText(speed) {
  return `${speed >= 100 ? Math.round(speed) : speed.toFixed(1)} tok/s`;
}

// Figures keep their order within Arabic text.
export function Figure({ children }) {
  return html`<bdi dir="ltr" class="figure">${children}</bdi>`;
}

export function Size({ bytes }) {
  return html`<${Figure}>${sizeText(bytes)}<//>`;
}

export function Speed({ rate }) {
  if (!rate) return "–";
  const range = `${Math.round(rate.low)}–${Math.round(rate.high)}`;
  return html`<${Figure}>${speedText(rate.value)}<//> <small><${Figure}>(${range})<//></small>`;
}
