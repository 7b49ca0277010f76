// Speaks with the server, and keeps what it tells of the running plan. The key it wants is asked for, and kept for this tab.
import { signal } from "./vendor/core.js";
import { forThisTab } from "./storage.js";

const KEY = "memfit-key";

export const wantsKey = signal(""); // or "asked", or "wrong" where it has refused one
export const isReachable = signal(true);
let given = forThisTab.read(KEY);

export class ServerError extends Error {
  constructor(message, status = 0, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

export function giveKey(key) {
  given = key;
  forThisTab.write(KEY, key);
  wantsKey.value = "";
}

// A response that is well; `body` makes it a POST, or another `method`. Throws ServerError, or AbortError where
// `abort` fires.
export async function ask(path, body, abort, method = "POST") {
  const key = given;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? {} : { method, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { headers, signal: abort, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    isReachable.value = false;
    throw new ServerError(error.message);
  }
  isReachable.value = true;
  if (response.ok) return response;
  // An answer to a question from before a key was given says nothing of that key.
  if (response.status === 401 && key === given) wantsKey.value = key ? "wrong" : "asked";
  const said = await response.json().catch(() => null);
  throw new ServerError(messageOf(said) ?? response.statusText, response.status, said);
}

export async function askJson(path, body, abort) {
  return (await ask(path, body, abort)).json();
}

// What a stream of server-sent events says, in order.
export async function* askEvents(path, body, abort) {
  for await (const line of linesOf(await ask(path, body, abort))) {
    if (!line.startsWith("data: ")) continue;
    const data = line.slice(6);
    if (data === "[DONE]") return;
    yield wellSaid(data);
  }
  throw new TypeError("the stream has no end");
}

// What a stream of lines of JSON says, in order.
export async function* askLines(path, body, abort) {
  for await (const line of linesOf(await ask(path, body, abort))) {
    if (line) yield wellSaid(line);
  }
}

async function* linesOf(response) {
  const reader = response.body.getReader(); // piping it through a stream that decodes costs twice as much
  const decoder = new TextDecoder();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (unread + decoder.decode(value, { stream: true })).split("\n");
    unread = lines.pop();
    yield* lines;
  }
}

function wellSaid(text) {
  const event = JSON.parse(text);
  if (event.error) throw new ServerError(messageOf(event), 0, event);
  return event;
}

function messageOf(said) {
  return said?.error?.message ?? (typeof said?.error === "string" ? said.error : undefined);
}

// -- the running plan and what is held, asked again while somebody looks

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
