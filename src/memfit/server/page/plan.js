// The room where budget and workload are moved, and priced at each move.
import { computed, html, signal } from "./vendor/core.js";
import { Rates, TierBar } from "./memory.js";
import { askJson, running } from "./server.js";
import { Figure, sizeText, t } from "./words.js";

const MIB = 2 ** 20;
const MOST_CONTEXT = 131072;
const STEPS = 200; // of a size's slider
const PARALLEL = [1, 2, 4, 8, 16];
const KV_TYPES = ["f16", "q8_0", "q4_0"];

const moved = signal({}); // what differs from the running plan: ram, a GPU's name, context, parallel, kv_type
const priced = signal(null); // the latest answer
const problem = signal("");
const isPricing = signal(false);
const isApplying = signal(false);
let wanted = null; // what is to be priced once the running question is answered: the latest wins

// Where the budget has no room for the process that prices, each price takes seconds: one is asked for at the end
// of a slider's way.
const isPatient = computed(() => priced.value?.pricing_bytes === 0);

const starting = computed(() => {
  const plan = running.value;
  if (!plan) return null;
  const sizes = plan.tiers.filter((one) => one.kind !== "disk").map((one) => [one.name, one.budget_bytes]);
  return { ...Object.fromEntries(sizes), context: plan.context, parallel: plan.parallel, kv_type: plan.kv_type };
});

function body(values) {
  const { context, parallel, kv_type: kvType, ram, ...gpus } = values;
  const vram = Object.fromEntries(
    Object.entries(gpus).filter(([name]) => /^gpu\d+$/.test(name)).map(([name, size]) => [name.slice(3), size]),
  );
  const budget = { ram, ...(Object.keys(vram).length ? { vram } : {}) };
  return { budget, workload: { context, parallel, kv_type: kvType } };
}

async function price() {
  if (isPricing.value) return;
  isPricing.value = true;
  while (wanted) {
    const asked = body(wanted);
    wanted = null;
    try {
      priced.value = await askJson("plan", asked);
      problem.value = "";
    } catch (error) {
      problem.value = error.message;
    }
  }
  isPricing.value = false;
}

function move(name, value) {
  moved.value = { ...moved.value, [name]: value };
  if (!isPatient.value) release();
}

function release() {
  wanted = { ...starting.value, ...moved.value };
  price();
}

async function apply() {
  if (!confirm(t("apply.sure"))) return;
  isApplying.value = true;
  problem.value = "";
  try {
    running.value = await askJson("apply", body({ ...starting.value, ...moved.value }));
    moved.value = {};
    priced.value = null;
  } catch (error) {
    problem.value = error.message;
  }
  isApplying.value = false;
}

function contexts(most) {
  const found = [];
  for (let size = 256; size < most; size *= 2) found.push(size, size + size / 2);
  return [...found.filter((one) => one < most), most];
}

function nearest(values, value) {
  return values.reduce((best, one, index) => (Math.abs(one - value) < Math.abs(values[best] - value) ? index : best), 0);
}

function Slider({ label, shown, ...bounds }) {
  return html`
    <label class="slider"><span>${label}</span> <${Figure}>${shown}<//>
      <input type="range" ...${bounds} aria-label=${label} aria-valuetext=${shown}
        onChange=${() => isPatient.value && release()} /></label>
  `;
}

export function Plan() {
  const start = starting.value;
  if (!start) return html`<p class="empty">${t("loading")}</p>`;
  const values = { ...start, ...moved.value };
  const plan = running.value;
  const sizes = contexts(Math.max(MOST_CONTEXT, start.context));
  const result = priced.value ?? plan;
  const tiers = plan.tiers.filter((one) => one.kind !== "disk");
  return html`
    <div class="room">
      <h2>${t("room.plan")}</h2>
      <form class="sliders" onSubmit=${(event) => event.preventDefault()}>
        ${tiers.map(({ name, budget_bytes: now }) => {
          const most = 2 * now;
          return html`<${Slider} key=${name} label=${name === "ram" ? t("tier.ram") : name} shown=${sizeText(values[name])}
            min=${1} max=${STEPS} value=${Math.round((values[name] / most) * STEPS)}
            onInput=${(event) => move(name, Math.round((event.target.value / STEPS) * most / MIB) * MIB)} />`;
        })}
        <${Slider} label=${t("context")} shown=${values.context} min=${0} max=${sizes.length - 1}
          value=${nearest(sizes, values.context)} onInput=${(event) => move("context", sizes[event.target.value])} />
        <${Slider} label=${t("parallel")} shown=${values.parallel} min=${0} max=${PARALLEL.length - 1}
          value=${nearest(PARALLEL, values.parallel)} onInput=${(event) => move("parallel", PARALLEL[event.target.value])} />
        <label class="slider"><span>${t("kv-type")}</span>
          <select value=${values.kv_type} onChange=${(event) => { move("kv_type", event.target.value); release(); }}>
            ${KV_TYPES.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}
          </select></label>
      </form>
      <div aria-live="polite" aria-busy=${isPricing.value}>
        ${isPatient.value ? html`<p class="note">${t("plan.patient")}</p>` : null}
        ${problem.value ? html`<p class="error" role="alert" dir="auto">${problem.value}</p>` : null}
        ${result.fits === false ? html`<p class="error" role="alert">${tips(result)}</p>` : null}
        ${(result.tiers ?? []).filter((tier) => tier.kind !== "disk").map((tier) => html`<${TierBar} key=${tier.name} tier=${tier} />`)}
        <p class="row">
          <button class="primary" disabled=${!priced.value?.fits || isPricing.value || isApplying.value} onClick=${apply}>
            ${t("apply")}</button>
          ${isApplying.value ? html`<span role="status">${t("apply.running")}</span>` : null}
        </p>
        ${result.predicted ? html`<h3>${t("predicted")}</h3><${Rates} predicted=${result.predicted} />` : null}
      </div>
    </div>
  `;
}

// Which tier has no room, and whether weights or the context take it.
function tips(plan) {
  const over = (plan.tiers ?? []).find((tier) => tier.kind !== "disk" && tier.total_bytes > tier.budget_bytes);
  if (!over) return t("plan.no-fit");
  const cause = over.kv_cache_bytes + over.compute_bytes > over.weights_bytes ? "context" : "weights";
  const name = over.name === "ram" ? t("tier.ram") : over.name;
  return t(`plan.over-by-${cause}`, { tier: name, missing: sizeText(over.total_bytes - over.budget_bytes) });
}
