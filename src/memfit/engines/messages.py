"""Messages in the form that a model's own chat template takes, with nothing said in them lost.

A template is a stranger's: some read contents only as parts, some know no system message, and some drop what
they do not know without a word. So the text that comes out is looked into. Both engines render through this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memfit.errors import MemfitError, UsageError

__all__ = ["render_messages", "require_tokens"]

_Messages = Sequence[Mapping[str, Any]]
# "/no_think", which templates of thinking models obey and take away.
_COMMAND = re.compile(r"(?<!\S)/[a-z_]+(?!\S)")


def render_messages(render: Callable[[_Messages], str], messages: _Messages) -> str:
    """The prompt that `render`, a template, makes of `messages`, whose contents are texts.

    Where they would get lost, contents become parts, and a system message the beginning of the first user's.

    Raises:
        UsageError: the template refuses these messages, or drops the last question or the system message.
        MemfitError: whatever `render` raises, about the messages as they were given.
    """
    needed = _needed(messages)
    merged = _merged(messages)
    first_error: MemfitError | None = None
    lost = ""
    for as_form in (list, _as_parts):
        for prepared in (messages, merged):
            if prepared is None:
                continue
            try:
                text = render(as_form(prepared))
            except MemfitError as error:
                if not lost:  # parts, which it does not take, say nothing of a text that it has dropped
                    first_error = first_error or error
                continue
            missing = [role for role, content in needed if not _holds(text, content)]
            if not missing:
                return text
            lost = lost or missing[0]
    if first_error is not None:
        raise first_error
    raise UsageError(f"the model's chat template drops the {lost} message; try --raw")


def require_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises UsageError where a prompt's token is not one of the vocabulary's."""
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise UsageError(
                f"the prompt has a token {token}, and the vocabulary has 0 to {vocabulary - 1}",
                field="prompt",
                got=token,
                needed=f"0 to {vocabulary - 1}",
            )


def _needed(messages: _Messages) -> list[tuple[str, str]]:
    """Roles and contents that must not get lost: the last question, and a system message at the beginning.
    What lies between templates may shorten."""
    found = [("user", one["content"]) for one in messages if one["role"] == "user"][-1:]
    if messages and messages[0]["role"] == "system":
        found.append(("system", messages[0]["content"]))
    return found


def _as_parts(messages: _Messages) -> list[Mapping[str, Any]]:
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]


def _merged(messages: _Messages) -> _Messages | None:
    """The system message before the first user's text; None where one of them is not there."""
    if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
        return None
    system, user, *rest = messages
    return [{**user, "content": f"{system['content'].strip()}\n\n{user['content']}"}, *rest]


def _holds(prompt: str, content: str) -> bool:
    """Whether a content is in a prompt: as it is, as JSON writes it, or but for spaces, signs, capitals and
    commands to the template."""
    wanted = content.strip()
    if wanted in prompt or json.dumps(wanted, ensure_ascii=False)[1:-1] in prompt:
        return True
    found = _letters(prompt)
    return _letters(wanted) in found or _letters(_COMMAND.sub("", wanted)) in found


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
