// Speaks with the server. Where it wants a key, the page asks for it and keeps it for this tab.
import { signal } from "./vendor/core.js";

const KEY = "memfit-key";

export const wantsKey = signal(false);
export const isReachable = signal(true);

export class ServerError extends Error {
  constructor(message, status = 0, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

export function giveKey(key) {
  sessionStorage.setItem(KEY, key);
  wantsKey.value = false;
}

// A response that is well; `body` makes it a POST. Throws ServerError, or AbortError where `abort` fires.
export async function ask(path, body, abort) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
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
  if (response.status === 401) wantsKey.value = true;
  const said = await response.json().catch(() => null);
  throw new ServerError(messageOf(said) ?? response.statusText, response.status, said);
}

export async function askJson(path, body, abort) {
  return (await ask(path, body, abort)).json();
}

// What a stream of server-sent events says, in order.
export async function* askEvents(path, body, abort) {
  const response = await ask(path, body, abort);
  const reader = response.body.getReader(); // piping it through a stream that decodes costs twice as much
  const decoder = new TextDecoder();
  let unread = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (unread + decoder.decode(value, { stream: true })).split("\n");
    unread = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(messageOf(event), 0, event);
      yield event;
    }
  }
}

function messageOf(said) {
  return said?.error?.message ?? (typeof said?.error === "string" ? said.error : undefined);
}
