// Conversations, kept in this browser: each a tree of messages, of which one branch is shown.
import { signal } from "./vendor/core.js";

const DATABASE = "memfit";
const STORE = "conversations";
const FORMAT = "memfit-conversations-1";

export const conversations = signal([]); // the newest first
export const current = signal(null); // the one that is shown
export const areKept = signal(true); // false where this browser's storage is full or denied
const changes = new BroadcastChannel(DATABASE); // ids, to this browser's other tabs
let database = null;

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Until then it may still turn out that there is no room.
function committed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}

function store(mode) {
  return database.transaction(STORE, mode).objectStore(STORE);
}

export async function openConversations() {
  try {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    database = await finished(request);
    const found = await finished(store("readonly").getAll());
    conversations.value = found.sort((one, other) => other.changed - one.changed);
    changes.onmessage = ({ data: id }) => take(id);
  } catch {
    areKept.value = false;
  }
  current.value = conversations.value[0] ?? newConversation();
}

// Another tab has changed a conversation.
async function take(id) {
  const stored = await finished(store("readonly").get(id));
  if (stored) show(together(stored, newest({ id, messages: {} })));
  else drop(id);
}

// Messages are never taken away, so two tabs' changes of one conversation go together.
function together(stored, mine) {
  return { ...stored, leaf: mine.leaf ?? stored.leaf, messages: { ...mine.messages, ...stored.messages } };
}

export function newConversation() {
  return { id: crypto.randomUUID(), title: "", system: "", sampling: {}, messages: {}, leaf: null, changed: Date.now() };
}

// A conversation as it is now, where it may have been changed since.
export function newest(conversation) {
  if (current.value?.id === conversation.id) return current.value;
  return conversations.value.find((one) => one.id === conversation.id) ?? conversation;
}

function show(conversation) {
  const others = conversations.value.filter((one) => one.id !== conversation.id);
  conversations.value = Object.keys(conversation.messages).length ? [conversation, ...others] : others;
  if (current.value?.id === conversation.id) current.value = conversation;
}

// Shows a change, and keeps it once there is something to keep.
export async function keep(conversation) {
  const changed = { ...conversation, changed: Date.now() };
  show(changed);
  if (!Object.keys(changed.messages).length) return;
  try {
    const objects = store("readwrite");
    const stored = await finished(objects.get(changed.id));
    objects.put(whole(changed, stored));
    await committed(objects.transaction);
    areKept.value = true;
  } catch {
    areKept.value = false;
    return;
  }
  changes.postMessage(changed.id);
}

// What is stored: without an answer that is being written, with what other tabs have added.
function whole(conversation, stored) {
  const { messages, leaf } = conversation;
  const complete = Object.values(messages).filter((one) => !one.isUnfinished).map((one) => [one.id, one]);
  return {
    ...conversation,
    leaf: messages[leaf]?.isUnfinished ? messages[leaf].parent : leaf,
    messages: { ...stored?.messages, ...Object.fromEntries(complete) },
  };
}

export async function forget(id) {
  drop(id);
  try {
    const objects = store("readwrite");
    objects.delete(id);
    await committed(objects.transaction);
  } catch {
    areKept.value = false;
    return;
  }
  changes.postMessage(id);
}

function drop(id) {
  conversations.value = conversations.value.filter((one) => one.id !== id);
  if (current.value?.id === id) current.value = conversations.value[0] ?? newConversation();
}

// The messages that are shown, from the first to the leaf.
export function branch(conversation) {
  const found = [];
  for (let id = conversation.leaf; id; id = conversation.messages[id].parent) found.unshift(conversation.messages[id]);
  return found;
}

// A message's other versions, itself among them, in the order in which they were made.
export function versions(conversation, message) {
  return Object.values(conversation.messages).filter(
    (one) => one.parent === message.parent && one.role === message.role,
  );
}

export function withMessage(conversation, message) {
  const messages = { ...conversation.messages, [message.id]: message };
  return { ...conversation, messages, leaf: message.id };
}

// Another version of a message is shown, down to the newest that follows it.
export function withVersion(conversation, message) {
  let leaf = message.id;
  for (;;) {
    const next = Object.values(conversation.messages).findLast((one) => one.parent === leaf);
    if (!next) return { ...conversation, leaf };
    leaf = next.id;
  }
}

export function exported() {
  return JSON.stringify({ format: FORMAT, conversations: conversations.value }, null, 1);
}

// Throws SyntaxError where the text is none of ours; nothing is lost of those that are here.
export async function importText(text) {
  const read = JSON.parse(text);
  if (read?.format !== FORMAT || !Array.isArray(read.conversations) || !read.conversations.every(isConversation)) {
    throw new SyntaxError(FORMAT);
  }
  for (const one of read.conversations) {
    const isHere = conversations.value.some((other) => other.id === one.id);
    const { title, system, sampling = {}, messages: kept, leaf } = one;
    await keep({ id: isHere ? crypto.randomUUID() : one.id, title, system, sampling, messages: kept, leaf });
  }
}

function isConversation(one) {
  const messages = one?.messages;
  const isNamed = typeof one?.id === "string" && typeof one.title === "string" && typeof one.system === "string";
  if (!isNamed || typeof messages !== "object" || messages === null) return false;
  const isWhole = ({ id, parent, role, content }) =>
    messages[id]?.id === id &&
    (parent === null || Object.hasOwn(messages, parent)) &&
    (role === "user" || role === "assistant") &&
    typeof content === "string";
  const isLeaf = one.leaf === null || Object.hasOwn(messages, one.leaf);
  return isLeaf && Object.values(messages).every(isWhole) && Object.keys(messages).every((id) => hasStart(messages, id));
}

// Whether a message's parents come to an end.
function hasStart(messages, id) {
  let at = id;
  for (let steps = Object.keys(messages).length; at && steps >= 0; steps -= 1) at = messages[at].parent;
  return at === null;
}
