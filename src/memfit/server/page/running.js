// The running plan and what is held, asked again while somebody looks.
import { signal } from "./vendor/core.js";
import { askJson, wantsKey } from "./server.js";

const BUSY_MS = 1000;
const IDLE_MS = 3000;

export const running = signal(null);
let timer = 0;

export async function refresh() {
  clearTimeout(timer);
  if (document.hidden || wantsKey.value) return;
  try {
    running.value = await askJson("plan");
  } catch {
    // The banner of app.js says that nobody answers.
  }
  const isBusy = running.value?.running > 0 || running.value?.state !== "ready";
  timer = setTimeout(refresh, isBusy ? BUSY_MS : IDLE_MS);
}

document.addEventListener("visibilitychange", refresh);
