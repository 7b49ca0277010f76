// The room for the models that are here, and those of a repository on the hub: size, fit, speed and loss, downloads
// and deletions. Downloads and prices go on while another room is looked at.
import { html, Icon, signal, useEffect, useRef } from "./vendor/core.js";
import { TierBar } from "./memory.js";
import { ask, askJson, askLines, running } from "./server.js";
import { Figure, Size, Speed, sizeText, t } from "./words.js";

const SPEED_SECONDS = 5; // over which a download's speed is taken

const here = signal(null); // Ollama's list, the served one first
const listed = signal(null); // { name, quantizations, smaller_models } of a repository
const isListing = signal(false);
const problem = signal("");
const prices = signal({}); // by model: { state: "waits" | "running" | "known", plan, problem, conditions }
const downloads = signal({}); // by model: { state: "begins" | "comes" | "checks" | "stopped" | "failed", done, whole, … }
const news = signal(""); // what screen readers are told

let waiting = []; // models whose price is asked for
let pricing = null; // what ends the question that is asked now

async function look() {
  try {
    here.value = (await askJson("api/tags")).models;
  } catch (error) {
    problem.value = error.message;
  }
}

// What a price holds for: the running plan's budget and workload.
function conditions() {
  const plan = running.value;
  return plan && JSON.stringify([plan.context, plan.parallel, plan.kv_type, plan.tiers.map((one) => one.budget_bytes)]);
}

function setPrice(name, price) {
  prices.value = { ...prices.value, [name]: price };
}

// One at a time, in the order in which they are asked for.
async function price(names) {
  const added = names.filter((name) => !waiting.includes(name));
  waiting.push(...added);
  prices.value = { ...prices.value, ...Object.fromEntries(added.map((name) => [name, { state: "waits" }])) };
  if (pricing) return;
  while (waiting.length) {
    const [name] = waiting;
    const asked = conditions();
    pricing = new AbortController();
    setPrice(name, { state: "running" });
    try {
      setPrice(name, { state: "known", plan: await askJson("plan", { model: name }, pricing.signal), conditions: asked });
    } catch (error) {
      if (error.name === "AbortError") continue; // others may be asked for by now
      setPrice(name, { state: "known", problem: error.message, conditions: asked });
    }
    waiting.shift();
  }
  pricing = null;
}

function stopPricing() {
  waiting = [];
  prices.value = Object.fromEntries(Object.entries(prices.value).filter(([, one]) => one.state === "known"));
  pricing?.abort();
}

async function list(name) {
  stopPricing();
  isListing.value = true;
  problem.value = "";
  listed.value = null;
  try {
    listed.value = { name, ...(await askJson(`quantizations?model=${encodeURIComponent(name)}`)) };
  } catch (error) {
    problem.value = error.message;
  }
  isListing.value = false;
  price((listed.value?.quantizations ?? []).map((one) => one.model));
}

function setDownload(name, values) {
  const { [name]: known, ...others } = downloads.value;
  downloads.value = values ? { ...downloads.value, [name]: { ...known, ...values } } : others;
}

const isComing = (one) => one && !["stopped", "failed"].includes(one.state);

async function download(name) {
  if (!name || isComing(downloads.value[name])) return;
  const abort = new AbortController();
  setDownload(name, { state: "begins", done: 0, whole: 0, speed: 0, problem: "", abort });
  let samples = []; // [seconds, bytes]
  try {
    for await (const { status, total: whole, completed: done } of askLines("api/pull", { model: name }, abort.signal)) {
      if (whole) {
        const now = performance.now() / 1000;
        samples = [...samples.filter(([at]) => now - at < SPEED_SECONDS), [now, done]];
        const [[began, first]] = samples;
        setDownload(name, { state: "comes", done, whole, speed: now > began ? (done - first) / (now - began) : 0 });
      } else if (status.startsWith("verifying")) {
        setDownload(name, { state: "checks" });
      }
    }
    setDownload(name, null);
    news.value = t("pull.done", { name });
  } catch (error) {
    if (error.name === "AbortError") setDownload(name, { state: "stopped" });
    else setDownload(name, { state: "failed", problem: error.message });
  }
  await look();
}

async function remove(model) {
  if (!confirm(t("models.delete-sure", { name: model.name, size: sizeText(model.size) }))) return;
  problem.value = "";
  try {
    await ask("api/delete", { model: model.name }, undefined, "DELETE");
    news.value = t("models.deleted", { name: model.name });
  } catch (error) {
    problem.value = error.message;
  }
  await look();
}

export function Models() {
  useEffect(() => { look(); }, []);
  return html`
    <div class="room">
      <h2>${t("room.models")}</h2>
      <p class="hidden" role="status">${news.value}</p>
      ${problem.value ? html`<p class="error" role="alert" dir="auto">${problem.value}</p>` : null}
      <${Here} />
      <h3>${t("models.hub")}</h3>
      <${Search} />
      ${Object.keys(downloads.value).length ? html`<${Downloads} />` : null}
      <div aria-live="polite" aria-busy=${isListing.value}>
        ${isListing.value ? html`<p class="waiting">${t("models.listing")}</p>` : null}
        ${listed.value ? html`<${Repository} ...${listed.value} />` : null}
      </div>
    </div>
  `;
}

function Here() {
  if (!here.value) return html`<p class="empty">${t("loading")}</p>`;
  const [served, ...others] = here.value;
  return html`
    <h3>${t("models.here")}</h3>
    <ul class="models">
      <${Model} key="" model=${served} isServed />
      ${others.map((one) => html`<${Model} key=${one.name} model=${one} />`)}
    </ul>
    ${others.length ? html`<${Pricing} names=${others.map((one) => one.name)} />` : html`<p class="dim">${t("models.none")}</p>`}
  `;
}

function Model({ model, isServed = false }) {
  const { name, size, details } = model;
  const plan = isServed ? running.value : priceOf(name)?.plan;
  const facts = [details.parameter_size, details.quantization_level].filter((one) => one && one !== "0");
  return html`
    <li>
      <div class="about">
        <strong><bdi dir="ltr">${name}</bdi></strong> ${isServed ? html` <span class="served">${t("models.served")}</span>` : null}
        <p><${Size} bytes=${size} />${facts.map((one) => html` · <bdi key=${one} dir="ltr">${one}</bdi>`)}
          ${plan?.model?.loss ? html` · <small>${t("models.loss")}</small> <${Loss} loss=${plan.model.loss} />` : null}</p>
      </div>
      ${isServed ? null : html`
        <div class="row">
          <button class="quiet" title=${t("models.fit")} aria-label=${t("models.fit-of", { name })} onClick=${() => price([name])}>
            <${Icon} name="gauge" /></button>
          <button class="quiet" title=${t("delete")} aria-label=${t("models.delete", { name })} onClick=${() => remove(model)}>
            <${Icon} name="trash-2" /></button>
        </div>`}
      <div class="fit">
        <${Fit} price=${isServed && plan ? { state: "known", plan } : priceOf(name)} />
        ${plan?.predicted ? html`<p><${Rate} name="prompt" plan=${plan} /> · <${Rate} name="generation" plan=${plan} /></p>` : null}
        ${plan?.tiers && !isServed ? html`<details><summary>${t("models.where")}</summary>
          ${plan.tiers.filter((tier) => tier.kind !== "disk").map((tier) => html`<${TierBar} key=${tier.name} tier=${tier} />`)}</details>` : null}
      </div>
    </li>
  `;
}

function Rate({ name, plan }) {
  return html`<small>${t(`rate.${name}`)}</small> <${Speed} rate=${plan.predicted[`${name}_tokens_per_second`]} />`;
}

// As it is known for the running budget and workload.
function priceOf(name) {
  const found = prices.value[name];
  return found?.state === "known" && found.conditions !== conditions() ? undefined : found;
}

// Whether a model fits, and how much of the budget it takes.
function Fit({ price: found }) {
  if (!found) return null;
  if (found.state !== "known") return html`<p class="waiting">${t(`fit.${found.state}`)}</p>`;
  if (found.problem) return html`<p class="error" dir="auto">${found.problem}</p>`;
  const { fits, short_bytes: short, streamed_bytes_per_pass: streamed, tiers = [] } = found.plan;
  return html`
    <p class=${fits ? "fits" : "fits not"}>
      <span><${Icon} name=${fits ? "check" : "x"} /> ${fits ? t("fit.fits") : html`${t("fit.short")} <${Size} bytes=${short} />`}</span>
      ${tiers.filter((tier) => tier.kind !== "disk").map((tier) => html`
        <small key=${tier.name}><bdi>${tier.name === "ram" ? t("tier.ram") : tier.name}</bdi>${" "}
          <${Size} bytes=${tier.total_bytes} /> ${t("of")} <${Size} bytes=${tier.budget_bytes} /></small>`)}
      ${streamed ? html`<small>${t("fit.streams")} <${Size} bytes=${streamed} /></small>` : null}
    </p>
  `;
}

function Loss({ loss }) {
  const isMeasured = loss.basis === "measured";
  const figure = loss.mean_kl ? `${isMeasured ? "" : "≈ "}${loss.mean_kl.toPrecision(2)}` : "0";
  return html`<${Figure}>${figure}<//> <small>(${t(`loss.${loss.basis}`)})</small>`;
}

function Search() {
  const field = useRef(null);
  const name = () => field.current.value.trim();
  return html`
    <form class="search" onSubmit=${(event) => { event.preventDefault(); list(name()); }}>
      <label>${t("models.repository")}
        <input ref=${field} dir="ltr" required autocapitalize="off" autocomplete="off" spellcheck=${false} placeholder="hf.co/org/repo" /></label>
      <button class="primary" disabled=${isListing.value}>${t("models.compare")}</button>
      <button type="button" onClick=${(event) => event.target.form.reportValidity() && download(name())}>
        <${Icon} name="download" />${t("models.download")}</button>
    </form>
  `;
}

function Downloads() {
  return html`
    <ul class="models" aria-label=${t("models.downloads")}>
      ${Object.entries(downloads.value).map(([name, one]) => html`<${Download} key=${name} name=${name} ...${one} />`)}
    </ul>
  `;
}

function Download({ name, state, done, whole, speed, problem: said, abort }) {
  const comes = isComing({ state });
  return html`
    <li>
      <div class="about"><strong><bdi dir="ltr">${name}</bdi></strong></div>
      <div class="row">
        ${comes
          ? html`<button onClick=${() => abort.abort()}><${Icon} name="x" />${t("cancel")}</button>`
          : html`<button onClick=${() => download(name)}>${t("pull.go-on")}</button>
              <button class="quiet" aria-label=${t("pull.forget", { name })} title=${t("close")} onClick=${() => setDownload(name, null)}>
                <${Icon} name="x" /></button>`}
      </div>
      <div class="fit">
        ${comes || whole ? html`<progress aria-label=${t("pull.progress", { name })} max=${whole || 1} value=${whole ? done : undefined}></progress>` : null}
        <p>${whole ? html`<${Size} bytes=${done} /> ${t("of")} <${Size} bytes=${whole} />${" "}` : null}
          ${["comes", "failed"].includes(state) ? null : t(`pull.${state}`)}
          ${state === "comes" && speed ? html`<small><${Figure}>${sizeText(speed)}/s<//></small>` : null}</p>
        ${said ? html`<p class="error" role="alert" dir="auto">${said}</p>` : null}
      </div>
    </li>
  `;
}

// Asks the prices of all that have none, or stops it.
function Pricing({ names }) {
  const left = names.filter((name) => !priceOf(name));
  const isPricing = names.some((name) => ["waits", "running"].includes(prices.value[name]?.state));
  if (isPricing) return html`<p class="row"><button onClick=${stopPricing}><${Icon} name="circle-stop" />${t("stop")}</button></p>`;
  if (!left.length) return null;
  return html`<p class="row"><button onClick=${() => price(left)}><${Icon} name="gauge" />${t("models.fit-all")}</button></p>`;
}

function Repository({ name, quantizations, smaller_models: smaller }) {
  return html`
    <h4><bdi dir="ltr">${name}</bdi></h4>
    ${quantizations.length ? html`
      <div class="wide" tabindex="0" role="region" aria-label=${name}>
        <table class="quantizations">
          <thead><tr>
            ${["type", "size", "fit", "prompt", "generation", "loss"].map((one) => html`
              <th key=${one} scope="col">${["prompt", "generation"].includes(one) ? t(`rate.${one}`) : t(`models.${one}`)}</th>`)}
            <td></td></tr></thead>
          <tbody>${quantizations.map((one) => html`<${Quantization} key=${one.model} one=${one} />`)}</tbody>
        </table>
      </div>
      <${Pricing} names=${quantizations.map((one) => one.model)} />
      <p class="dim">${t("models.loss-unit")}</p>` : html`<p class="empty">${t("models.no-gguf")}</p>`}
    ${smaller.length ? html`<p>${t("models.smaller")}</p>
      <p class="row">${smaller.map((one) => html`<button key=${one} onClick=${() => list(one)}><bdi dir="ltr">${one}</bdi></button>`)}</p>` : null}
  `;
}

function Quantization({ one }) {
  const found = priceOf(one.model);
  const plan = found?.plan;
  const isHere = here.value?.some((model) => model.name === one.model);
  return html`
    <tr>
      <th scope="row"><bdi dir="ltr">${one.name}</bdi></th>
      <td><${Size} bytes=${one.size_bytes} /></td>
      <td><${Fit} price=${found} /></td>
      ${["prompt", "generation"].map((name) => html`
        <td key=${name}>${plan?.predicted ? html`<${Speed} rate=${plan.predicted[`${name}_tokens_per_second`]} />` : "–"}</td>`)}
      <td>${plan?.model?.loss ? html`<${Loss} loss=${plan.model.loss} />` : "–"}</td>
      <td>${isHere ? html`<span class="is-here"><${Icon} name="check" /> ${t("models.is-here")}</span>` : html`
        <button aria-label=${t("models.download-of", { name: one.name })} title=${t("models.download")}
          disabled=${isComing(downloads.value[one.model])} onClick=${() => download(one.model)}><${Icon} name="download" /></button>`}</td>
    </tr>
  `;
}
