// The page's frame: rooms, language, light or dark, and the key where the server wants one.
import { html, Icon, render, signal, useEffect, useRef } from "./vendor/core.js";
import { Chat } from "./chat.js";
import { openConversations } from "./conversations.js";
import { giveKey, isReachable, refresh, running, wantsKey } from "./server.js";
import { forGood } from "./storage.js";
import { LANGUAGES, language, preferredLanguage, t, useLanguage } from "./words.js";

const ROOMS = {
  chat: { icon: "message-square", open: async () => Chat },
  models: { icon: "package", open: async () => (await import("./models.js")).Models },
  memory: { icon: "memory-stick", open: async () => (await import("./memory.js")).Memory },
  plan: { icon: "gauge", open: async () => (await import("./plan.js")).Plan },
  activity: { icon: "activity", open: async () => (await import("./activity.js")).Activity },
};
const THEME = "memfit-theme";
// In the document: as a file it would be asked for at every change of room.
const ICON = document.querySelector("link[rel=icon]").href;

const room = signal("chat");
const Room = signal(null);
const theme = signal(forGood.read(THEME) ?? "");

async function enter() {
  const name = location.hash.slice(1);
  const known = name in ROOMS ? name : "chat";
  const opened = await ROOMS[known].open();
  room.value = known;
  Room.value = opened;
  document.title = `${t(`room.${known}`)} · memfit`;
}

function isDark() {
  return theme.value ? theme.value === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function useTheme(name) {
  theme.value = name;
  forGood.write(THEME, name);
  document.documentElement.dataset.theme = name;
}

function Frame() {
  const Chosen = Room.value;
  return html`
    <header>
      <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.querySelector("main").focus(); }}>${t("skip")}</a>
      <h1><img src=${ICON} alt="" width="24" height="24" /> memfit</h1>
      <nav aria-label=${t("rooms")}>
        ${Object.entries(ROOMS).map(([name, { icon }]) => html`
          <a key=${name} href=${`#${name}`} aria-current=${room.value === name ? "page" : undefined}>
            <${Icon} name=${icon} /><span>${t(`room.${name}`)}</span></a>`)}
      </nav>
      <div class="choices">
        <select aria-label=${t("language")} value=${language.value}
          onChange=${(event) => useLanguage(event.target.value, { keep: true })}>
          ${Object.entries(LANGUAGES).map(([code, name]) => html`<option key=${code} value=${code} lang=${code}>${name}</option>`)}
        </select>
        <button class="quiet" aria-label=${t(isDark() ? "light" : "dark")} title=${t(isDark() ? "light" : "dark")}
          onClick=${() => useTheme(isDark() ? "light" : "dark")}><${Icon} name=${isDark() ? "sun" : "moon"} /></button>
      </div>
    </header>
    ${isReachable.value ? null : html`<p class="banner" role="alert">${t("unreachable")}</p>`}
    ${running.value && running.value.state !== "ready" ? html`<p class="banner" role="status">${t(`state.${running.value.state}`)}</p>` : null}
    ${wantsKey.value ? html`<${KeyDialog} />` : null}
    <main id="main" tabindex="-1">${Chosen ? html`<${Chosen} />` : null}</main>
  `;
}

function KeyDialog() {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  const send = (event) => {
    event.preventDefault();
    giveKey(new FormData(event.target).get("key"));
    refresh();
  };
  return html`
    <dialog ref=${dialog} aria-labelledby="key-title" onCancel=${(event) => event.preventDefault()}>
      <form onSubmit=${send}>
        <h2 id="key-title">${t("key.title")}</h2>
        ${wantsKey.value === "wrong" ? html`<p class="error" role="alert">${t("key.wrong")}</p>` : null}
        <label>${t("key.label")} <input name="key" type="password" dir="ltr" required autocomplete="off" /></label>
        <button class="primary">${t("key.send")}</button>
      </form>
    </dialog>
  `;
}

async function start() {
  if (theme.value) document.documentElement.dataset.theme = theme.value;
  await Promise.all([useLanguage(preferredLanguage()), openConversations(), enter()]);
  document.title = `${t(`room.${room.value}`)} · memfit`;
  addEventListener("hashchange", enter);
  render(html`<${Frame} />`, document.getElementById("app"));
  refresh();
}

start();
