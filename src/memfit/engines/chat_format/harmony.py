"""Reads gpt-oss's answers: messages with a channel and a recipient in their headers.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

Reasoning is what goes to `analysis`; a message to `functions.NAME` is a call; everything else is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from memfit.engines.chat_format.calls import Call
from memfit.engines.chat_format.flow import Flow
from memfit.engines.chat_format.values import Tools, json_text, strict_object
from memfit.engines.chat_format.window import JSON, Steps, Window

__all__ = ["HarmonyReader"]

_HEADER = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")
_WORDS = re.compile(r"[\w.:=\- ]*")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
# Only what begins or ends a message for sure: an answer may talk about the other markers.
_BODY_ENDS = ("<|end|>", "<|return|>", "<|start|>assistant")
_RECIPIENT = re.compile(r"\bto=([\w.:\-]+)")
_NO_WORDS = re.compile(r"<\|\w+\|>|\bto=[\w.:\-]+|\b(?:assistant|analysis|commentary|final|json|code)\b")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


@dataclass
class HarmonyReader:
    """Reads one answer into two flows and a receiver of calls."""

    window: Window
    tools: Tools
    content: Flow
    reasoning: Flow
    give: Callable[[Call], None]
    fail: Callable[[str], None]  # what was held is text, for this reason
    parse_calls: bool

    def messages(self, in_reasoning: bool) -> Steps[None]:
        if in_reasoning:
            yield from self._body(self.reasoning)
        while not self.window.ended or self.window.at < len(self.window.text):
            header = yield from self._header()
            if header is None:
                yield from self._body(self.content)
                continue
            recipient, channel = _RECIPIENT.search(header), _CHANNEL.findall(header)
            if recipient is not None and self.parse_calls and self._is_tool(recipient[1]):
                yield from self._call(recipient[1].removeprefix("functions."))
                continue
            if stray := _stray(header):
                self.content.push(stray + " ")
            thinks = recipient is None and channel[-1:] == ["analysis"]
            flow = self.reasoning if thinks else self.content
            self.window.forget()
            if flow.spoke:
                flow.push("\n\n")
            yield from self._body(flow)

    def _is_tool(self, recipient: str) -> bool:
        return recipient.startswith("functions.") or recipient in self.tools

    def _header(self) -> Steps[str | None]:
        """A message's header, which stays held; None: the text is none."""
        window = self.window
        window.forget()
        while True:
            yield from window.run(_WORDS)
            marker = yield from window.literal(_HEADER)
            if marker == "<|message|>":
                return "".join(window.held)
            if marker is None:
                if "".join(window.held).strip():
                    named = any(one in _HEADER for one in window.held)
                    self.fail("a message's header") if named else self.content.push(window.forget())
                return None

    def _body(self, flow: Flow) -> Steps[None]:
        """Lets a message out, up to its end."""
        while True:
            text, _, done = self.window.passing(_BODY_ENDS)
            if text:
                flow.push(text)
            self.window.forget()
            if done:
                return
            yield

    def _call(self, name: str) -> Steps[None]:
        window = self.window
        yield from window.space()
        letter = yield from window.next()
        text = (yield from window.nested(JSON)) if letter == "{" else None
        value = None if text is None else strict_object(text)
        arguments = None if value is None else json_text(value)
        if arguments is None:
            self.fail(f"the arguments of {name}")
            yield from self._body(self.content)
            return
        self.give(Call(name, None, arguments))
        yield from window.space()
        yield from window.literal(_ENDS)


def _stray(header: str) -> str:
    """The words of a header that are no part of one."""
    return " ".join(_NO_WORDS.sub(" ", header).split())
