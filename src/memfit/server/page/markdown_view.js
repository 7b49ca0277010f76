// Draws an answer while it grows. Nodes are built from marked's tokens, never from HTML: what a model writes
// as HTML is shown as text, pictures as their description, links only where they lead to the web or to mail.
//
// Blocks that are settled are plain DOM that nothing touches again; the last one grows, so seldom that building it
// takes a twentieth of the time at most: layout and paint take as much again.
import { lexer } from "./vendor/core.js";

const LEAST_MS = 100;
const SHARE = 20;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

export class MarkdownView {
  constructor(element) {
    this._element = element;
    this._tail = ""; // the text of the last block
    this._last = []; // its nodes
    this._timer = 0;
    this._cost = 0;
    this._drawn = 0;
  }

  add(text) {
    this._tail += text;
    if (this._timer) return;
    const pause = Math.max(LEAST_MS, SHARE * this._cost) - (performance.now() - this._drawn);
    this._timer = setTimeout(() => this._draw(), Math.max(0, pause));
  }

  // The whole text is known: drawn once more, for links that were defined at its end.
  finish(text) {
    clearTimeout(this._timer);
    this._timer = 0;
    this._tail = "";
    this._last = [];
    this._element.replaceChildren(...blocks(lexer(text)));
    highlight(this._element);
  }

  _draw() {
    this._timer = 0;
    const began = performance.now();
    const tokens = lexer(this._tail);
    let settled = "";
    const kept = lastBlock(tokens);
    for (const token of tokens.slice(0, kept)) settled += token.raw;
    // A copy: a slice would keep the whole text alive.
    if (settled) this._tail = ` ${this._tail.slice(settled.length)}`.slice(1);
    const done = blocks(tokens.slice(0, kept));
    const last = blocks(tokens.slice(kept));
    this._last = grow(this._element, this._last, [...done, ...last]).slice(done.length);
    this._cost = performance.now() - began;
    this._drawn = performance.now();
  }
}

// Makes `old` children of an element into `wanted` ones, keeping what is the same: only what is new costs layout
// and paint. Returns the children that are there then.
function grow(parent, old, wanted) {
  const found = wanted.map((node, index) => {
    const there = old[index];
    if (!there) return parent.appendChild(node);
    if (there.isEqualNode(node)) return there;
    if (there.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE && node.data.startsWith(there.data)) {
      there.appendData(node.data.slice(there.data.length));
      return there;
    }
    if (there.nodeName === node.nodeName && there.cloneNode().isEqualNode(node.cloneNode())) {
      grow(there, [...there.childNodes], [...node.childNodes]);
      return there;
    }
    there.replaceWith(node);
    return node;
  });
  for (const node of old.slice(wanted.length)) node.remove();
  return found;
}

// Where the block begins that may still grow: the last that is more than space.
function lastBlock(tokens) {
  let index = tokens.length - 1;
  while (index > 0 && tokens[index].type === "space") index -= 1;
  return Math.max(0, index);
}

export function blocks(tokens) {
  return tokens.map(block).filter(Boolean);
}

// What a writer of Markdown means by `&lt;`; others stay as they are.
function decoded(text) {
  return text.replace(/&(#?\w{2,5});/g, (whole, name) => ENTITIES[name] ?? whole);
}

function make(name, children = [], attributes = {}) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function block(token) {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      // All below the message's own, and none skipped: where a text begins at its third level is its affair.
      return make("h3", inlines(token.tokens), { dir: "auto", class: `depth-${token.depth}` });
    case "code":
      return code(token);
    case "blockquote":
      return make("blockquote", blocks(token.tokens), { dir: "auto" });
    case "hr":
      return make("hr");
    case "list":
      return make(token.ordered ? "ol" : "ul", token.items.map(item), {
        dir: "auto",
        ...(token.ordered && token.start !== 1 ? { start: token.start } : {}),
      });
    case "table":
      return table(token);
    case "text":
      return make("p", token.tokens ? inlines(token.tokens) : [token.text], { dir: "auto" });
    case "paragraph":
      return make("p", inlines(token.tokens), { dir: "auto" });
    default: // HTML, which stays text
      return make("p", [token.raw], { dir: "auto" });
  }
}

function item(token) {
  const children = [];
  if (token.task) children.push(token.checked ? "☑ " : "☐ ");
  for (const inner of token.tokens) {
    // Of a tight list, text stands in the item itself.
    if (inner.type === "text") children.push(...(inner.tokens ? inlines(inner.tokens) : [inner.text]));
    else if (inner.type !== "checkbox") children.push(...blocks([inner]));
  }
  return make("li", children, { dir: "auto" });
}

function code(token) {
  const name = /^[\w+#-]{1,30}/.exec(token.lang ?? "")?.[0] ?? "";
  const inner = make("code", [token.text], name ? { "data-language": name } : {});
  return make("pre", [inner], { dir: "ltr", tabindex: "0" });
}

function table(token) {
  const row = (cells, name) => make("tr", cells.map((cell) => make(name, inlines(cell.tokens), { dir: "auto" })));
  const head = make("thead", [row(token.header, "th")]);
  const body = make("tbody", token.rows.map((cells) => row(cells, "td")));
  return make("div", [make("table", [head, body])], { class: "wide", tabindex: "0" });
}

function inlines(tokens) {
  return tokens.flatMap(inline);
}

function inline(token) {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return [make(token.type, inlines(token.tokens))];
    case "codespan":
      return [make("code", [token.text], { dir: "ltr" })];
    case "br":
      return [make("br")];
    case "link":
      if (!SAFE_LINK.test(token.href)) return inlines(token.tokens);
      return [
        make("a", inlines(token.tokens), { href: token.href, target: "_blank", rel: "noopener noreferrer" }),
      ];
    case "image":
      return [token.text || token.href];
    case "escape":
      return [token.text];
    case "text":
      return token.tokens ? inlines(token.tokens) : [decoded(token.text)];
    default:
      return [token.raw];
  }
}

// Colours the code of an answer that is complete.
async function highlight(element) {
  const found = element.querySelectorAll("code[data-language]");
  if (!found.length) return;
  const { hljs } = await import("./vendor/extras.js");
  for (const one of found) {
    if (!hljs.getLanguage(one.dataset.language)) continue;
    const { _emitter } = hljs.highlight(one.textContent, { language: one.dataset.language });
    one.replaceChildren(...coloured(_emitter.rootNode));
  }
}

function coloured(node) {
  return node.children.map((child) => {
    if (typeof child === "string") return child;
    const scope = (child.scope ?? "").split(".")[0];
    return make("span", coloured(child), scope ? { class: `code-${scope}` } : {});
  });
}
