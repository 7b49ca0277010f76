"""Tools in words, for models whose chat template shows none: in a system message, in Hermes' notation.

Many models have seen that notation in training. Calls and results of earlier turns are spelled as texts, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memfit.engines.chat_format.families import FAMILIES
from memfit.engines.chat_format.form import ChatFormat

__all__ = ["spell_tools", "with_spelled_calls"]

_SAID = """\
You may call functions to answer. These are the functions, as JSON:
{tools}
To call one, write nothing but a JSON object with its name and its arguments between these tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>
What it returns is then told to you. Where no function helps, answer in words."""


def with_spelled_calls(form: ChatFormat) -> ChatFormat:
    """The format of a model whose tools are spelled: what it is told to write, it is read by, and what it may
    know from its training."""
    return form if form.has_tools else replace(form, calls=(*FAMILIES["hermes"].form.calls, *form.calls))


def spell_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages with `tools`, calls and results as texts."""
    spelled = [_spelled(one) for one in messages]
    if not tools:
        return spelled
    shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    said = _SAID.format(tools=shown)
    if spelled and spelled[0]["role"] == "system":
        return [{**spelled[0], "content": f"{spelled[0]['content']}\n\n{said}"}, *spelled[1:]]
    return [{"role": "system", "content": said}, *spelled]


def _spelled(message: Mapping[str, Any]) -> dict[str, Any]:
    role, text = message["role"], message["content"]
    if role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    calls = [_call(one["function"]) for one in message.get("tool_calls", ())]
    return {"role": role, "content": "\n".join([text, *calls] if text else calls) if calls else text}


def _call(function: Mapping[str, Any]) -> str:
    named = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(named, ensure_ascii=False)}\n</tool_call>"
