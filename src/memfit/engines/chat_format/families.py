"""Declared formats: families whose syntax a rendered example cannot show whole, and those most people run.

A row is found by what a template's source holds. Nothing here looks at a model's name.
"""

# ruff: noqa: RUF001 - DeepSeek writes its markers with these letters

from __future__ import annotations

from dataclasses import dataclass

from memfit.engines.chat_format.form import CallSyntax, ChatFormat, ReasoningSyntax

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One declared format."""

    holds: tuple[str, ...]  # the template's source holds all of these
    lacks: tuple[str, ...] = ()  # and none of these
    form: ChatFormat


_THINK = ReasoningSyntax(start="<think>", end="</think>")

_HERMES = CallSyntax(kind="json", section_start="<tool_call>", section_end="</tool_call>")
_QWEN_XML = CallSyntax(
    kind="tagged",
    section_start="<tool_call>",
    section_end="</tool_call>",
    start="<function=",
    name_end=">",
    end=("</function>",),
    key_start="<parameter=",
    key_end=">",
    value_end="</parameter>",
    padded=True,
)
_LLAMA_JSON = CallSyntax(
    kind="json", section_start="<|python_tag|>", arguments_key="parameters", separator=";", bare=True
)
_PYTHONIC = CallSyntax(
    kind="pythonic", section_start="<|python_start|>", section_end="<|python_end|>", bare=True
)
_MISTRAL_NAMED = CallSyntax(kind="named", start="[TOOL_CALLS]", name_end="[ARGS]", id_start="[CALL_ID]")
_MISTRAL_LIST = CallSyntax(kind="json", section_start="[TOOL_CALLS]", id_key="id", array=True)
_DEEPSEEK_V3 = CallSyntax(
    kind="named",
    section_start="<｜tool▁calls▁begin｜>",
    section_end="<｜tool▁calls▁end｜>",
    start="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    name_end="```json",
    end=("```", "<｜tool▁call▁end｜>"),
)
_DEEPSEEK_V31 = CallSyntax(
    kind="named",
    section_start="<｜tool▁calls▁begin｜>",
    section_end="<｜tool▁calls▁end｜>",
    start="<｜tool▁call▁begin｜>",
    name_end="<｜tool▁sep｜>",
    end=("<｜tool▁call▁end｜>",),
)
_GLM = CallSyntax(
    kind="tagged",
    start="<tool_call>",
    end=("</tool_call>",),
    key_start="<arg_key>",
    key_end="</arg_key>",
    value_start="<arg_value>",
    value_end="</arg_value>",
)
_KIMI_K2 = CallSyntax(
    kind="named",
    section_start="<|tool_calls_section_begin|>",
    section_end="<|tool_calls_section_end|>",
    start="<|tool_call_begin|>",
    name_end="<|tool_call_argument_begin|>",
    end=("<|tool_call_end|>",),
    numbered_names=True,
)
_KIMI_K3 = CallSyntax(
    kind="tagged",
    section_start="<|open|>tools<|sep|>",
    section_end="<|close|>tools<|sep|>",
    start='<|open|>call tool="',
    name_end='"',
    body_start="<|sep|>",
    end=("<|close|>call<|sep|>",),
    key_start='<|open|>argument key="',
    key_end='"',
    value_start="<|sep|>",
    value_end="<|close|>argument<|sep|>",
    call_attribute=' index="{index}"',
    text_attribute=' type="string"',
    json_attribute=' type="{type}"',
    entities=True,
)
_LFM = CallSyntax(kind="pythonic", section_start="<|tool_call_start|>", section_end="<|tool_call_end|>")
_LFM_JSON = CallSyntax(
    kind="json", section_start="<|tool_call_start|>", section_end="<|tool_call_end|>", array=True
)
_GRANITE = CallSyntax(kind="json", section_start="<|tool_call|>", array=True)
_COMMAND = CallSyntax(
    kind="json",
    section_start="<|START_ACTION|>",
    section_end="<|END_ACTION|>",
    name_key="tool_name",
    arguments_key="parameters",
    id_key="tool_call_id",
    array=True,
)
_HARMONY = CallSyntax(
    kind="harmony",
    start="<|start|>",
    name_end="<|channel|>",
    id_start="<|constrain|>",
    body_start="<|message|>",
    end=("<|call|>", "<|end|>", "<|return|>"),
)


def _invoke(space: str, section: str) -> CallSyntax:
    """DeepSeek's newer markup, which its versions spell a little differently."""
    mark = "｜DSML｜" + space
    return CallSyntax(
        kind="tagged",
        section_start=f"<{mark}{section}>",
        section_end=f"</{mark}{section}>",
        start=f'<{mark}invoke name="',
        name_end='"',
        body_start=">",
        end=(f"</{mark}invoke>",),
        key_start=f'<{mark}parameter name="',
        key_end='"',
        value_start=">",
        value_end=f"</{mark}parameter>",
        text_attribute=' string="true"',
        json_attribute=' string="false"',
    )


def _gemma(start: str, end: str, quote: str) -> CallSyntax:
    return CallSyntax(kind="braced", start=start + "call:", end=(end,), quote=quote)


def _form(
    *calls: CallSyntax, reasoning: ReasoningSyntax | None = None, dropped: tuple[str, ...] = ()
) -> ChatFormat:
    return ChatFormat(has_tools=True, reasoning=reasoning, calls=calls, dropped=dropped)


def _closing(*calls: CallSyntax) -> ReasoningSyntax:
    """Reasoning that the start of a call ends as well."""
    starts = tuple(one for syntax in calls for one in (syntax.section_start, syntax.start) if one)
    return ReasoningSyntax(start=_THINK.start, end=_THINK.end, closed_by=starts)


FAMILIES: dict[str, Family] = {
    "gpt-oss": Family(
        holds=("<|channel|>analysis", "<|message|>"),
        form=_form(
            _HARMONY, reasoning=ReasoningSyntax(start="<|channel|>analysis<|message|>", end="<|end|>")
        ),
    ),
    "kimi-k3": Family(
        holds=("<|open|>", "<|close|>", "<|sep|>"),
        form=_form(
            _KIMI_K3,
            reasoning=ReasoningSyntax(
                start="<|open|>think<|sep|>",
                end="<|close|>think<|sep|>",
                closed_by=("<|open|>response<|sep|>", "<|open|>tools<|sep|>"),
            ),
            dropped=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        ),
    ),
    "kimi-k2": Family(
        holds=("<|tool_call_argument_begin|>",),
        form=_form(_KIMI_K2, reasoning=_closing(_KIMI_K2)),
    ),
    "deepseek-v4.1": Family(holds=("｜DSML｜ calls",), form=_form(_invoke(" ", "calls"), reasoning=_THINK)),
    "deepseek-v4": Family(
        holds=("｜DSML｜", "tool_calls"),
        lacks=("function_calls",),
        form=_form(_invoke("", "tool_calls"), reasoning=_THINK),
    ),
    "deepseek-v3.2": Family(holds=("｜DSML｜",), form=_form(_invoke("", "function_calls"), reasoning=_THINK)),
    "deepseek-v3.1": Family(
        holds=("tool▁calls▁begin", "tool▁sep"),
        lacks=("```json",),
        form=_form(_DEEPSEEK_V31, _DEEPSEEK_V3, reasoning=_THINK),
    ),
    "deepseek-v3": Family(holds=("tool▁calls▁begin", "```json"), form=_form(_DEEPSEEK_V3, reasoning=_THINK)),
    "glm": Family(holds=("<arg_key>", "<arg_value>", "<tool_call>"), form=_form(_GLM, reasoning=_THINK)),
    "qwen-xml": Family(
        holds=("<function=", "<parameter=", "<tool_call>"),
        form=_form(_QWEN_XML, _HERMES, reasoning=_closing(_QWEN_XML)),
    ),
    "mistral-named": Family(
        holds=("[TOOL_CALLS]", "[ARGS]", "[THINK]"),
        form=_form(_MISTRAL_NAMED, _MISTRAL_LIST, reasoning=ReasoningSyntax(start="[THINK]", end="[/THINK]")),
    ),
    "mistral-named-think": Family(
        holds=("[TOOL_CALLS]", "[ARGS]"),
        form=_form(_MISTRAL_NAMED, _MISTRAL_LIST, reasoning=_THINK),
    ),
    "mistral-list": Family(holds=("[TOOL_CALLS]",), form=_form(_MISTRAL_LIST, _MISTRAL_NAMED)),
    "gemma-4": Family(
        holds=("<|tool_call>", '<|"|>'),
        form=_form(
            _gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
            reasoning=ReasoningSyntax(start="<|channel>thought", end="<channel|>"),
        ),
    ),
    "functiongemma": Family(
        holds=("<start_function_call>", "<escape>"),
        form=_form(_gemma("<start_function_call>", "<end_function_call>", "<escape>")),
    ),
    "llama-4": Family(holds=("<|python_start|>",), form=_form(_PYTHONIC)),
    "llama-3": Family(
        holds=("<|start_header_id|>", '"parameters": '),
        lacks=("<tool_call>", "<function="),
        form=_form(_LLAMA_JSON),
    ),
    "lfm-2-tools": Family(holds=("<|tool_list_start|>",), form=_form(_LFM, _LFM_JSON, reasoning=_THINK)),
    "lfm-2": Family(holds=("<|tool_call_start|>",), form=_form(_LFM, _LFM_JSON, reasoning=_THINK)),
    "granite-3": Family(
        holds=("<|tool_call|>", "<response>"),
        form=_form(_GRANITE, reasoning=_THINK, dropped=("<response>", "</response>")),
    ),
    "command-r7b": Family(
        holds=("<|START_ACTION|>", "<|START_RESPONSE|>"),
        form=_form(
            _COMMAND,
            reasoning=ReasoningSyntax(
                start="<|START_THINKING|>", end="<|END_THINKING|>", closed_by=("<|START_ACTION|>",)
            ),
            dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
    ),
    "hermes": Family(holds=("<tool_call>", "</tool_call>"), form=_form(_HERMES, reasoning=_THINK)),
}


def family_of(template: str) -> str | None:
    """The first family whose markers a template's source holds."""
    for name, family in FAMILIES.items():
        if all(one in template for one in family.holds) and not any(one in template for one in family.lacks):
            return name
    return None
