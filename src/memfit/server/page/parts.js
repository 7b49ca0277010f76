// Small parts that several rooms show.
import { html } from "./vendor/core.js";

// `mirrored` where it points along the line of reading.
export function Icon({ name, mirrored = false }) {
  return html`<svg class=${`icon${mirrored ? " mirrored" : ""}`} aria-hidden="true"><use href=${`page/vendor/icons.svg#${name}`} /></svg>`;
}
