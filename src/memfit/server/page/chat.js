// The room for conversations.
import { batch, computed, html, Icon, signal, useEffect, useLayoutEffect, useRef } from "./vendor/core.js";
import {
  areKept, branch, conversations, current, exported, forget, importText, keep, newConversation, newest, versions,
  withMessage, withVersion,
} from "./conversations.js";
import { MarkdownView } from "./markdown_view.js";
import { askEvents, running, ServerError } from "./server.js";
import { Figure, speedText, t } from "./words.js";

const TITLE_LENGTH = 60;
const NEAR_END_PIXELS = 80;
const SPEED_MS = 500; // between two speeds that are shown
const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_p: { min: 0, max: 1, step: 0.01 },
  max_tokens: { min: 1, max: 131072, step: 1 },
  seed: { min: 0, max: 4294967295, step: 1 },
};

// The answer that is written at this moment: its parts are signals, so that nothing else is drawn anew.
const writing = signal(null); // { id, conversation, abort }
const speed = signal(0);
const failure = signal("");
const editing = signal(null); // a message's id
const shown = computed(() => (current.value ? branch(current.value) : []));

export function Chat() {
  return html`
    <div class="chat">
      <${List} />
      <section class="talk" aria-label=${t("chat.talk")}>
        <${Settings} />
        <${Messages} />
        <${Composer} />
      </section>
    </div>
  `;
}

function List() {
  const pick = (one) => { if (!writing.value) current.value = one; };
  return html`
    <aside class="list" aria-label=${t("chat.conversations")}>
      <button class="primary" onClick=${() => pick(newConversation())}><${Icon} name="plus" />${t("chat.new")}</button>
      <ul>
        ${conversations.value.map((one) => html`
          <li key=${one.id} class=${one.id === current.value?.id ? "chosen" : ""}>
            <button class="title" dir="auto" aria-current=${one.id === current.value?.id} onClick=${() => pick(one)}>
              ${one.title || t("chat.untitled")}
            </button>
            <button class="quiet" aria-label=${t("chat.delete", { title: one.title })} title=${t("delete")}
              disabled=${Boolean(writing.value) && one.id === current.value?.id}
              onClick=${() => confirm(t("chat.delete-sure")) && forget(one.id)}><${Icon} name="trash-2" /></button>
          </li>`)}
      </ul>
      ${areKept.value ? null : html`<p class="error" role="alert">${t("chat.unkept")}</p>`}
      <div class="row">
        <button onClick=${saveFile} disabled=${!conversations.value.length}>
          <${Icon} name="download" />${t("export")}
        </button>
        <label class="button"><${Icon} name="upload" />${t("import")}
          <input type="file" accept="application/json,.json" class="hidden" onChange=${readFile} />
        </label>
      </div>
    </aside>
  `;
}

function saveFile() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  link.download = "memfit-conversations.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function readFile(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    await importText(await file.text());
    failure.value = "";
  } catch {
    failure.value = t("chat.no-import", { name: file.name });
  }
}

function Settings() {
  const conversation = current.value;
  if (!conversation) return null;
  const setSampling = (name, text) => {
    const { [name]: _, ...others } = conversation.sampling;
    keep({ ...conversation, sampling: text === "" ? others : { ...others, [name]: Number(text) } });
  };
  return html`
    <details class="settings">
      <summary>${t("chat.settings")}</summary>
      <label>${t("chat.system")}
        <textarea dir="auto" rows="2" value=${conversation.system}
          onChange=${(event) => keep({ ...conversation, system: event.target.value })}></textarea>
      </label>
      <div class="fields">
        ${Object.entries(SAMPLING).map(([name, bounds]) => html`
          <label key=${name}>${t(`sampling.${name}`)}
            <input type="number" dir="ltr" ...${bounds} placeholder=${t("sampling.default")}
              value=${conversation.sampling[name] ?? ""} onChange=${(event) => setSampling(name, event.target.value)} />
          </label>`)}
      </div>
    </details>
  `;
}

function Messages() {
  const box = useRef(null);
  const isAtEnd = useRef(true);
  useLayoutEffect(() => {
    if (isAtEnd.current) box.current.scrollTop = box.current.scrollHeight;
  });
  useEffect(() => {
    const element = box.current;
    const observer = new ResizeObserver(() => {
      if (isAtEnd.current) element.scrollTop = element.scrollHeight;
    });
    observer.observe(element.firstElementChild);
    return () => observer.disconnect();
  }, []);
  const look = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    isAtEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_END_PIXELS;
  };
  return html`
    <div class="messages" ref=${box} onScroll=${look} tabindex="0" role="log" aria-label=${t("chat.talk")}
      aria-busy=${Boolean(writing.value)}>
      <div>
        ${shown.value.length
          ? shown.value.map((message) => html`<${Message} key=${message.id} message=${message} />`)
          : html`<p class="empty">${t("chat.empty", { model: running.value?.model.name ?? "" })}</p>`}
      </div>
    </div>
  `;
}

function Message({ message }) {
  const isWriting = writing.value?.id === message.id;
  const name = t(`role.${message.role}`);
  return html`
    <article class=${`message ${message.role}`} aria-label=${name}>
      <h2>${name}</h2>
      ${message.role === "user"
        ? editing.value === message.id
          ? html`<${Edit} message=${message} />`
          : html`<p class="said" dir="auto">${message.content}</p>`
        : html`<${Answer} message=${message} isWriting=${isWriting} />`}
      ${message.error ? html`<p class="error" role="alert">${message.error}</p>` : null}
      ${isWriting ? null : html`<${Tools} message=${message} />`}
    </article>
  `;
}

function Answer({ message, isWriting }) {
  const element = useRef(null);
  const thought = useRef(null);
  const views = useRef(null);
  useLayoutEffect(() => {
    views.current ??= { content: new MarkdownView(element.current), reasoning: new MarkdownView(thought.current) };
    const { content, reasoning } = views.current;
    if (isWriting) {
      writing.value.show = (kind, text) => views.current[kind].add(text);
      return;
    }
    content.finish(message.content);
    reasoning.finish(message.reasoning ?? "");
  }, [isWriting, message.content, message.reasoning]);
  return html`
    <details class="reasoning" hidden=${!message.reasoning && !(isWriting && writing.value.thinks.value)}>
      <summary>${t("chat.reasoning")}</summary>
      <div ref=${thought}></div>
    </details>
    <div class="markdown" ref=${element}></div>
    ${isWriting && !writing.value.hasBegun.value ? html`<p class="waiting">${t("chat.waiting")}</p>` : null}
  `;
}

function Edit({ message }) {
  const text = useRef(null);
  useEffect(() => text.current.focus(), []);
  const send = () => {
    editing.value = null;
    say(text.current.value, message.parent);
  };
  return html`
    <textarea dir="auto" rows="4" ref=${text} aria-label=${t("edit")}>${message.content}</textarea>
    <div class="row">
      <button class="primary" onClick=${send}>${t("send")}</button>
      <button onClick=${() => { editing.value = null; }}>${t("cancel")}</button>
    </div>
  `;
}

function Tools({ message }) {
  const conversation = current.value;
  const all = versions(conversation, message);
  const at = all.findIndex((one) => one.id === message.id);
  const show = (index) => keep(withVersion(conversation, all[index]));
  const isBusy = Boolean(writing.value);
  return html`
    <div class="tools">
      ${all.length > 1 ? html`
        <span class="versions">
          <button class="quiet" disabled=${isBusy || at === 0} aria-label=${t("chat.earlier")} onClick=${() => show(at - 1)}>
            <${Icon} name="chevron-left" mirrored />
          </button>
          <${Figure}>${at + 1} / ${all.length}<//>
          <button class="quiet" disabled=${isBusy || at === all.length - 1} aria-label=${t("chat.later")}
            onClick=${() => show(at + 1)}><${Icon} name="chevron-right" mirrored /></button>
        </span>` : null}
      <button class="quiet" aria-label=${t("copy")} title=${t("copy")}
        onClick=${() => navigator.clipboard.writeText(message.content)}><${Icon} name="copy" /></button>
      ${message.role === "user"
        ? html`<button class="quiet" disabled=${isBusy} aria-label=${t("edit")} title=${t("edit")}
            onClick=${() => { editing.value = message.id; }}><${Icon} name="pencil" /></button>`
        : html`<button class="quiet" disabled=${isBusy} aria-label=${t("chat.again")} title=${t("chat.again")}
            onClick=${() => answer(message.parent)}><${Icon} name="refresh-cw" mirrored /></button>`}
      ${message.stats ? html`<small class="stats"><${Stats} ...${message.stats} /></small>` : null}
    </div>
  `;
}

function Stats({ speed: measured, context, limit }) {
  return html`${measured ? html`<${Figure}>${speedText(measured)}<//> · ` : null}${t("chat.context")} <${Figure}>${context}${limit ? ` / ${limit}` : ""}<//>`;
}

function Composer() {
  const box = useRef(null);
  const isBusy = Boolean(writing.value);
  const send = () => {
    const text = box.current.value.trim();
    if (!text || writing.value) return;
    box.current.value = "";
    say(text, current.value.leaf);
  };
  const press = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return html`
    <form class="composer" onSubmit=${(event) => { event.preventDefault(); send(); }}>
      ${failure.value ? html`<p class="error" role="alert">${failure.value}</p>` : null}
      <textarea ref=${box} dir="auto" rows="2" placeholder=${t("chat.say")} aria-label=${t("chat.say")}
        onKeyDown=${press}></textarea>
      ${isBusy
        ? html`<button type="button" class="stop" onClick=${() => writing.value.abort.abort()}>
            <${Icon} name="circle-stop" />${t("stop")}</button>`
        : html`<button class="primary"><${Icon} name="send-horizontal" mirrored />${t("send")}</button>`}
      ${isBusy && speed.value ? html`<small class="speed"><${Figure}>${speedText(speed.value)}<//></small>` : null}
    </form>
  `;
}

// Adds what the user says after a message, and has it answered.
async function say(text, parent) {
  const message = { id: crypto.randomUUID(), parent, role: "user", content: text };
  const conversation = current.value;
  const title = conversation.title || text.slice(0, 10 * TITLE_LENGTH).replace(/\s+/g, " ").slice(0, TITLE_LENGTH);
  await keep(withMessage({ ...conversation, title }, message));
  await answer(message.id);
}

// Writes an answer after a message: a version of its own, whatever others there are.
async function answer(parent) {
  const message = { id: crypto.randomUUID(), parent, role: "assistant", content: "", reasoning: "" };
  let conversation = current.value;
  const asked = branch({ ...conversation, leaf: parent }).map(({ role, content }) => ({ role, content }));
  if (conversation.system) asked.unshift({ role: "system", content: conversation.system });
  const abort = new AbortController();
  batch(() => {
    failure.value = "";
    speed.value = 0;
    writing.value = { id: message.id, abort, hasBegun: signal(false), thinks: signal(false), show: () => {} };
    conversation = withMessage(conversation, { ...message, isUnfinished: true });
    current.value = conversation;
  });
  const body = { messages: asked, stream: true, timings_per_token: true, ...conversation.sampling };
  const done = { ...message };
  let began = 0;
  let told = 0;
  let pieces = 0;
  try {
    for await (const event of askEvents("v1/chat/completions", body, abort.signal)) {
      const delta = event.choices[0]?.delta ?? {};
      for (const [kind, text] of [["reasoning", delta.reasoning_content], ["content", delta.content]]) {
        if (!text) continue;
        told ||= began ||= performance.now();
        writing.value.hasBegun.value = true;
        pieces += 1;
        done[kind] += text;
        if (kind === "reasoning") writing.value.thinks.value = true;
        writing.value.show(kind, text);
        const now = performance.now();
        if (now < told + SPEED_MS) continue;
        told = now;
        speed.value = (1000 * pieces) / (now - began); // a busy server sends several tokens as one piece
      }
      if (event.usage) {
        done.stats = {
          speed: event.timings.predicted_per_second,
          context: event.usage.total_tokens,
          limit: running.value?.context,
        };
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") done.error = error instanceof ServerError ? error.message : t("chat.broken");
  }
  writing.value = null;
  await keep(withMessage(newest(conversation), done));
}
