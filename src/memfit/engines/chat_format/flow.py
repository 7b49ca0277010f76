"""Text on its way out of a parser: white space waits for the words after it, beside a marker it goes."""

from __future__ import annotations

from memfit.engines.chat_format.parts import Part, ReasoningPart, TextPart

__all__ = ["Flow"]


class Flow:
    """Puts the pieces of text or of reasoning into `parts`."""

    def __init__(self, part: type[TextPart] | type[ReasoningPart], parts: list[Part]) -> None:
        self._part = part
        self._parts = parts
        self._waiting: list[str] = []
        self._fresh = False  # nothing came yet after a marker
        self.spoke = False  # any words came
        self.line_begins = True  # the line holds nothing but white space so far

    def push(self, text: str) -> None:
        words = text.rstrip()
        _, line_break, line = text.rpartition("\n")
        self.line_begins = not line.strip() and (self.line_begins or bool(line_break))
        if not words:
            self._waiting.append(text)
            return
        whole = "".join([*self._waiting, words])
        self._waiting = [text[len(words) :]]
        self._parts.append(self._part(whole.lstrip() if self._fresh else whole))
        self._fresh = False
        self.spoke = True

    def restart(self) -> None:
        """A marker was here: the white space on both sides of it goes."""
        self._waiting.clear()
        self._fresh = self.line_begins = True

    def rest(self) -> None:
        """The white space at the end, where no marker stands beside it."""
        if not self._fresh and (text := "".join(self._waiting)):
            self._parts.append(self._part(text))
        self._waiting.clear()
