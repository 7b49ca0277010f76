// The room that shows who is answered, how fast, and what was answered last.
import { effect, html, signal, useEffect, useRef } from "./vendor/core.js";
import { askJson } from "./server.js";
import { Figure, language, speedText, t } from "./words.js";

const EVERY_MS = 1000;
const KEPT = 300; // points, of a second each

const activity = signal(null);
const speeds = signal([[], []]); // seconds since 1970, tokens a second
let last = null; // { at, tokens }

async function look() {
  if (document.hidden) return;
  const found = await askJson("activity").catch(() => null);
  if (!found) return;
  const now = { at: Date.now() / 1000, tokens: found.generated_tokens };
  if (last && now.at > last.at) {
    const [times, rates] = speeds.value;
    const rate = Math.max(0, now.tokens - last.tokens) / (now.at - last.at);
    speeds.value = [[...times, now.at].slice(-KEPT), [...rates, rate].slice(-KEPT)];
  }
  last = now;
  activity.value = found;
}

function Chart() {
  const box = useRef(null);
  useEffect(() => {
    const element = box.current;
    let chart = null;
    let stop = () => {};
    let isGone = false;
    const fit = new ResizeObserver(() => chart?.setSize({ width: element.clientWidth, height: 220 }));
    import("./vendor/extras.js").then(({ Plot }) => {
      if (isGone) return;
      const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      const axis = { stroke: () => colour("--dim"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false } };
      const clock = new Intl.DateTimeFormat(`${language.value}-u-nu-latn`, { timeStyle: "medium", hourCycle: "h23" });
      chart = new Plot({
        width: element.clientWidth,
        height: 220,
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_, __, most) => [0, Math.max(1, most * 1.1)] } },
        axes: [{ ...axis, space: 90, values: (_, ticks) => ticks.map((one) => clock.format(one * 1000)) }, { ...axis, size: 56, values: (_, ticks) => ticks.map(String) }],
        series: [{}, { stroke: () => colour("--accent"), width: 2, points: { show: false } }],
      }, speeds.value, element);
      fit.observe(element);
      stop = effect(() => chart.setData(speeds.value));
    });
    return () => {
      isGone = true;
      stop();
      fit.disconnect();
      chart?.destroy();
    };
  }, [language.value]);
  return html`<div class="chart" dir="ltr" ref=${box} role="img" aria-label=${t("activity.speeds")}></div>`;
}

function Recent({ answers }) {
  const clock = new Intl.DateTimeFormat(`${language.value}-u-nu-latn`, { timeStyle: "medium", hourCycle: "h23" });
  return html`
    <div class="wide" tabindex="0" role="region" aria-label=${t("activity.recent")}>
      <table>
        <thead><tr>${["ended", "prompt", "cached", "answer", "speed"].map((name) => html`<th key=${name} scope="col">${t(`activity.${name}`)}</th>`)}</tr></thead>
        <tbody>
          ${answers.map((one) => html`
            <tr key=${one.ended}>
              <td><${Figure}>${clock.format(one.ended * 1000)}<//></td>
              <td><${Figure}>${one.prompt_tokens}<//></td>
              <td><${Figure}>${one.cached_tokens}<//></td>
              <td><${Figure}>${one.completion_tokens}<//></td>
              <td>${one.generation_seconds ? html`<${Figure}>${speedText(one.completion_tokens / one.generation_seconds)}<//>` : "–"}</td>
            </tr>`)}
        </tbody>
      </table>
    </div>
  `;
}

export function Activity() {
  useEffect(() => {
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const found = activity.value;
  if (!found) return html`<p class="empty">${t("loading")}</p>`;
  return html`
    <div class="room">
      <h2>${t("room.activity")}</h2>
      <dl class="rates">
        <div><dt>${t("running")}</dt><dd><${Figure}>${found.running}<//></dd></div>
        <div><dt>${t("waiting")}</dt><dd><${Figure}>${found.waiting}<//></dd></div>
        <div><dt>${t("activity.generated")}</dt><dd><${Figure}>${found.generated_tokens}<//></dd></div>
        <div><dt>${t("activity.prompts")}</dt><dd><${Figure}>${found.prompt_tokens}<//></dd></div>
      </dl>
      <h3>${t("activity.speeds")}</h3>
      <${Chart} />
      <h3>${t("activity.recent")}</h3>
      ${found.recent.length ? html`<${Recent} answers=${found.recent} />` : html`<p class="empty">${t("activity.none")}</p>`}
    </div>
  `;
}
