// The room for memory: what lies where, now and as it was predicted.
import { html } from "./vendor/core.js";
import { running } from "./server.js";
import { Figure, Size, Speed, t } from "./words.js";

const PARTS = ["weights", "kv_cache", "compute", "overhead"];
const AMBER = 0.8;
const RED = 0.9;

// One tier's parts against its budget. `measured` is what /plan says of it, null where nobody measures; `used` is
// the part of the KV cache that holds tokens, `pricing` what the process that prices plans holds beside.
export function TierBar({ tier, measured = null, used = null, pricing = 0 }) {
  const { held_bytes: held = null, peak_bytes: peak = null } = measured ?? {};
  const whole = Math.max(tier.budget_bytes, tier.total_bytes);
  const share = (bytes) => `${(100 * bytes) / whole}%`;
  const parts = PARTS.map((name) => [name, tier[`${name}_bytes`]]).filter(([, bytes]) => bytes);
  const free = tier.budget_bytes - tier.total_bytes - pricing;
  const level = tier.total_bytes / tier.budget_bytes;
  const state = level > 1 ? "over" : level >= RED ? "red" : level >= AMBER ? "amber" : "";
  return html`
    <section class=${`tier ${state}`}>
      <h3><bdi>${tier.name === "ram" ? t("tier.ram") : tier.name}</bdi> <${Size} bytes=${tier.total_bytes} />
        ${" "}${t("of")} <${Size} bytes=${tier.budget_bytes} />
        ${state ? html` <strong class="state">${t(`tier.${state}`)}</strong>` : null}</h3>
      <div class="bar" aria-hidden="true">
        ${parts.map(([name, bytes]) => html`
          <span key=${name} class=${`part ${name}`} style=${{ inlineSize: share(bytes) }}>
            ${name === "kv_cache" && used ? html`<span class="used" style=${{ inlineSize: `${100 * used}%` }}></span>` : null}</span>`)}
        ${pricing ? html`<span class="part pricing" style=${{ inlineSize: share(pricing) }}></span>` : null}
        ${peak === null ? null : html`<span class="mark" style=${{ insetInlineStart: share(Math.min(peak, whole)) }}></span>`}
      </div>
      <dl class="legend">
        ${parts.map(([name, bytes]) => html`
          <div key=${name}><dt><span class=${`swatch ${name}`}></span>${t(`part.${name}`)}</dt>
            <dd><${Size} bytes=${bytes} />${name === "kv_cache" && used !== null ? html` <small><${Figure}>${Math.round(100 * used)} %<//> ${t("part.used")}</small>` : null}</dd></div>`)}
        ${pricing ? html`<div><dt><span class="swatch pricing"></span>${t("part.pricing")}</dt><dd><${Size} bytes=${pricing} /></dd></div>` : null}
        <div><dt><span class="swatch free"></span>${t(free < 0 ? "part.missing" : "part.free")}</dt>
          <dd><${Size} bytes=${Math.abs(free)} /></dd></div>
        ${held === null || measured.capacity_bytes ? null : html`<${Held} bytes=${held} />`}
        ${peak === null ? null : html`<div><dt><span class="swatch peak"></span>${t("measured.peak")}</dt><dd><${Size} bytes=${peak} /></dd></div>`}
        ${peak === null ? null : html`<div><dt>${t("measured.error")}</dt><dd><${Size} bytes=${tier.total_bytes - peak} /></dd></div>`}
      </dl>
      ${held === null || !measured.capacity_bytes ? null : html`<${Whole} ...${measured} />`}
    </section>
  `;
}

function Held({ bytes }) {
  return html`<div><dt><span class="swatch held"></span>${t("measured.held")}</dt><dd><${Size} bytes=${bytes} /></dd></div>`;
}

// All there is of a tier: what memfit holds, what other programs hold, and the rest.
function Whole({ held_bytes: held, others_bytes: others, capacity_bytes: capacity }) {
  const share = (bytes) => `${(100 * bytes) / capacity}%`;
  return html`
    <div class="bar thin" aria-hidden="true">
      <span class="part held" style=${{ inlineSize: share(held) }}></span>
      <span class="part others" style=${{ inlineSize: share(others) }}></span>
    </div>
    <dl class="legend">
      <${Held} bytes=${held} />
      <div><dt><span class="swatch others"></span>${t("part.others")}</dt><dd><${Size} bytes=${others} /></dd></div>
      <div><dt><span class="swatch free"></span>${t("part.nobody")}</dt><dd><${Size} bytes=${Math.max(0, capacity - others - held)} /></dd></div>
      <div><dt>${t("tier.capacity")}</dt><dd><${Size} bytes=${capacity} /></dd></div>
    </dl>
  `;
}

export function Rates({ predicted }) {
  const rates = [["prompt", predicted.prompt_tokens_per_second], ["generation", predicted.generation_tokens_per_second],
    ["together", predicted.together_tokens_per_second]];
  return html`
    <dl class="rates">
      ${rates.filter(([, rate]) => rate).map(([name, rate]) => html`
        <div key=${name}><dt>${t(`rate.${name}`)}</dt><dd><${Speed} rate=${rate} /></dd></div>`)}
    </dl>
  `;
}

export function Memory() {
  const plan = running.value;
  if (!plan) return html`<p class="empty">${t("loading")}</p>`;
  const measured = Object.fromEntries(plan.measured.tiers.map((one) => [one.name, one]));
  return html`
    <div class="room">
      <h2>${t("room.memory")}</h2>
      <p><bdi>${plan.model.name}</bdi> · <bdi dir="ltr">${plan.model.quantization}</bdi> · ${t("context")}${" "}
        <${Figure}>${plan.context}<//> · ${t("parallel")} <${Figure}>${plan.parallel}<//>
        ${plan.kv_type ? html` · ${t("kv-type")} <${Figure}>${plan.kv_type}<//>` : null}</p>
      ${plan.tiers.filter((tier) => tier.kind !== "disk").map((tier) => html`
        <${TierBar} key=${tier.name} tier=${tier} measured=${measured[tier.name]} used=${Math.min(1, plan.cells_in_use / plan.context)}
          pricing=${tier.name === "ram" ? plan.pricing_bytes : 0} />`)}
      <h3>${t("predicted")}</h3>
      <${Rates} predicted=${plan.predicted} />
      <dl class="rates">
        <div><dt>${t("running")}</dt><dd><${Figure}>${plan.running}<//></dd></div>
        <div><dt>${t("waiting")}</dt><dd><${Figure}>${plan.waiting}<//></dd></div>
        <div><dt>${t("cells")}</dt><dd><${Figure}>${plan.cells_in_use}<//></dd></div>
      </dl>
      <details><summary>${t("why")}</summary><ul dir="ltr" lang="en">${plan.why.map((one) => html`<li key=${one}>${one}</li>`)}</ul></details>
    </div>
  `;
}
