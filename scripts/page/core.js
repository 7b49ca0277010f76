// What the page is drawn with, as one file: each library apart would be a request.
export { lexer } from "marked";
export { h, Fragment, render } from "preact";
export { useEffect, useLayoutEffect, useRef } from "preact/hooks";
export { batch, computed, effect, signal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import htm from "htm";
import { h } from "preact";
export const html = htm.bind(h);

import icons from "./icons.json"; // lucide's, written by vendor_page.py

// `mirrored` where it points along the line of reading.
export function Icon({ name, mirrored = false }) {
  return html`<svg class=${`icon${mirrored ? " mirrored" : ""}`} viewBox="0 0 24 24" aria-hidden="true">
    ${icons[name].map(([tag, shape]) => h(tag, shape))}</svg>`;
}
