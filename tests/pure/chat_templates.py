"""Small chat templates, each in the syntax of a family: what it writes around reasoning and calls."""

from __future__ import annotations

__all__ = ["DERIVED", "TEMPLATES"]

_START = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% else %}<|bot|>"
_STOP = "<|stop|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
_TOOLS = "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>{% endif %}"
_TEXT = "{{ m.content or '' }}"
_EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
_DONE = "{% endfor %}"
_JSON = "{{ '{\"name\": ' ~ (f.name | tojson) ~ ', \"arguments\": ' ~ (f.arguments | tojson) ~ '}' }}"
_VALUE = "{{ v if v is string else v | tojson }}"
_PAIRS = "{% for k, v in f.arguments.items() %}"
_COMMA = "{{ ', ' if not loop.last else '' }}"


def _thought(start: str, end: str) -> str:
    return "{% if m.reasoning_content %}" + start + "{{ m.reasoning_content }}" + end + "{% endif %}"


_THINK = _thought("<think>\n", "\n</think>\n\n")


def _template(calls: str, *, before: str = _THINK + _TEXT, rest: str = "") -> str:
    return rest + _TOOLS + _START + before + calls + _STOP


def _section(start: str, call: str, end: str) -> str:
    return "{% if m.tool_calls %}" + start + _EACH + call + _DONE + end + "{% endif %}"


# By family as families.py names them.
TEMPLATES = {
    "hermes": _template(_EACH + "\n<tool_call>\n" + _JSON + "\n</tool_call>" + _DONE),
    "qwen-xml": _template(
        _EACH
        + "\n<tool_call>\n<function={{ f.name }}>\n"
        + _PAIRS
        + "<parameter={{ k }}>\n"
        + _VALUE
        + "\n</parameter>\n"
        + _DONE
        + "</function>\n</tool_call>"
        + _DONE
    ),
    "llama-3": _template(
        _EACH
        + '{{ \'{"name": "\' + f.name + \'", "parameters": \' }}{{ f.arguments | tojson }}{{ "}" }}\n'
        + _DONE,
        before=_TEXT + "\n",
        rest="{# <|start_header_id|> #}",
    ),
    "llama-4": _template(
        "{% if m.tool_calls %}\n<|python_start|>["
        + _EACH
        + "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v | tojson }}"
        + _COMMA
        + _DONE
        + ")"
        + _COMMA
        + _DONE
        + "]<|python_end|>{% endif %}",
        before=_TEXT,
    ),
    "mistral-list": _template(
        "{% if m.tool_calls %}[TOOL_CALLS][" + _EACH + _JSON + _COMMA + _DONE + "]{% endif %}", before=_TEXT
    ),
    "mistral-named": _template(
        _EACH + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}" + _DONE,
        before=_thought("[THINK]", "[/THINK]") + _TEXT,
    ),
    "gemma-4": _template(
        "{% macro braced(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}"
        "{% for k, w in v.items() %}{{ k }}:{{ braced(w) }}{{ ',' if not loop.last else '' }}"
        "{% endfor %}{{ '}' }}"
        "{% elif v is iterable %}[{% for w in v %}{{ braced(w) }}{{ ',' if not loop.last else '' }}"
        "{% endfor %}]{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
        + _EACH
        + "<|tool_call>call:{{ f.name }}{{ braced(f.arguments) }}<tool_call|>"
        + _DONE,
        before=_thought("<|channel>thought\n", "\n<channel|>") + _TEXT,
    ),
    "deepseek-v3": _template(
        _section(
            "<｜tool▁calls▁begin｜>",  # noqa: RUF001
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n{{ f.arguments | tojson }}"  # noqa: RUF001
            "\n```<｜tool▁call▁end｜>\n",  # noqa: RUF001
            "<｜tool▁calls▁end｜>",  # noqa: RUF001
        )
    ),
    "deepseek-v4": _template(
        _section(
            "\n\n<｜DSML｜tool_calls>\n",  # noqa: RUF001
            '<｜DSML｜invoke name="{{ f.name }}">\n'  # noqa: RUF001
            + _PAIRS
            + '<｜DSML｜parameter name="{{ k }}" string="{{ (v is string) | tojson }}">'  # noqa: RUF001
            + _VALUE
            + "</｜DSML｜parameter>\n"  # noqa: RUF001
            + _DONE
            + "</｜DSML｜invoke>\n",  # noqa: RUF001
            "</｜DSML｜tool_calls>",  # noqa: RUF001
        )
    ),
    "glm": _template(
        _EACH
        + "\n<tool_call>{{ f.name }}\n"
        + _PAIRS
        + "<arg_key>{{ k }}</arg_key>\n<arg_value>"
        + _VALUE
        + "</arg_value>\n"
        + _DONE
        + "</tool_call>"
        + _DONE
    ),
    "kimi-k2": _template(
        _section(
            "<|tool_calls_section_begin|>",
            "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
            "{{ f.arguments | tojson }}<|tool_call_end|>",
            "<|tool_calls_section_end|>",
        )
    ),
    "kimi-k3": _template(
        _section(
            "<|open|>tools<|sep|>",
            '<|open|>call tool="{{ f.name }}" index="{{ loop.index }}"<|sep|>'
            + _PAIRS
            + "<|open|>argument key=\"{{ k }}\" type=\"{{ 'string' if v is string else 'object' }}\"<|sep|>"
            + _VALUE
            + "<|close|>argument<|sep|>"
            + _DONE
            + "<|close|>call<|sep|>",
            "<|close|>tools<|sep|>",
        ),
        before=_thought("<|open|>think<|sep|>", "<|close|>think<|sep|>")
        + "<|open|>response<|sep|>"
        + _TEXT
        + "<|close|>response<|sep|>",
    ),
    "gpt-oss": _template(
        _EACH
        + "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>"
        + "{{ f.arguments | tojson }}<|call|>"
        + _DONE,
        before=_thought("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
        + "{% if m.content %}<|channel|>commentary<|message|>{{ m.content }}<|end|>{% endif %}",
    ),
}
# Syntaxes that no family has: they can only be found by comparing renderings.
DERIVED = {
    "json in marks": _template(_EACH + "<<call>>" + _JSON + "<</call>>" + _DONE),
    "array in a section": _template(
        "{% if m.tool_calls %}<acts>[" + _EACH + _JSON + _COMMA + _DONE + "]</acts>{% endif %}"
    ),
    "name as key": _template(
        "{% if m.tool_calls %}<do>["
        + _EACH
        + "{{ '{' }}{{ f.name | tojson }}: {{ f.arguments | tojson }}{{ '}' }}"
        + _COMMA
        + _DONE
        + "]</do>{% endif %}"
    ),
    "name in a tag": _template(_EACH + "<use={{ f.name }}>{{ f.arguments | tojson }}</use>" + _DONE),
    "named in a section": _template(
        _section("<|acts|>", "<|act|>{{ f.name }}<|with|>{{ f.arguments | tojson }}<|done|>", "<|no_more|>")
    ),
    "attributes": _template(
        _section(
            "\n<x:calls>\n",
            '<do name="{{ f.name }}">\n'
            + _PAIRS
            + '<with name="{{ k }}">'
            + _VALUE
            + "</with>\n"
            + _DONE
            + "</do>\n",
            "</x:calls>",
        )
    ),
    "tags, padded": _template(
        _EACH
        + "\n<my:call>\n<fn={{ f.name }}>\n"
        + _PAIRS
        + "<arg={{ k }}>\n"
        + _VALUE
        + "\n</arg>\n"
        + _DONE
        + "</fn>\n</my:call>"
        + _DONE
    ),
}
