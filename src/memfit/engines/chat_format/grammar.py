"""A grammar that forces calls in a format's own syntax, so that what comes out is read as calls again.

Arguments follow the tool's schema where they are JSON. In tags, names, tags and JSON values do; text is free.
In Python's and Gemma's notations names and notation do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.engines.chat_format.form import CallSyntax, ChatFormat
from memfit.engines.chat_format.lark import SPACE, Rules, literal, one_of
from memfit.engines.chat_format.values import Tools
from memfit.errors import UsageError

__all__ = ["call_grammar"]

_ID = "/[a-zA-Z0-9]{9}/"  # Mistral's
_PYTHON_TEXT = r"""/'([^'\\\n]|\\.)*'|"([^"\\\n]|\\.)*"/"""
_NUMBER = r"/-?[0-9]+(\.[0-9]+)?/"


def call_grammar(
    form: ChatFormat,
    tools: Sequence[Mapping[str, Any]],
    *,
    choice: str,
    parallel: bool,
    in_reasoning: bool = False,
    special_tokens: Collection[str] = (),
) -> str:
    """A Lark grammar in llguidance's dialect, of an answer that is calls and nothing else, after reasoning.

    `choice` is "required" or a function's name. `special_tokens` names the markers that are control tokens of
    the vocabulary; a mapping name → id serves any name, a collection only those in angle brackets.

    Raises:
        UsageError: the format has no syntax for calls, or there is no such tool.
    """
    if not form.calls:
        raise UsageError("this model's chat template shows no syntax for calls of tools", field="tool_choice")
    known = Tools(tools)
    chosen = [name for name in known.names if choice in ("required", name)]
    if not chosen:
        raise UsageError(f"there is no tool to call ({choice})", field="tool_choice", got=choice)
    syntax = form.calls[0]
    rules = Rules(special_tokens)
    writer = _Writer(syntax, rules, known)
    calls = [rules.rule("call", _CALLS[syntax.kind](writer, name, known.parameters(name))) for name in chosen]
    body = _section(syntax, rules, one_of(calls), parallel)
    return rules.text(f"{_reasoning(form, rules, in_reasoning)} {body}".strip())


def _reasoning(form: ChatFormat, rules: Rules, in_reasoning: bool) -> str:
    """What may, or has to, be thought before the call."""
    if form.reasoning is None:
        return ""
    rest = f"{rules.up_to(form.reasoning.end)} {SPACE}"
    if form.calls[0].kind == "harmony":
        rest += f' {rules.marker("<|start|>")} "assistant"'
    thought = rules.rule("thought", rest)
    if in_reasoning:
        return thought
    return f"({rules.marker(form.reasoning.start)} {thought})?"


def _section(syntax: CallSyntax, rules: Rules, call: str, parallel: bool) -> str:
    """One call or several, with what stands around them."""
    opener, closer = rules.marker(syntax.section_start), rules.marker(syntax.section_end)
    if syntax.bare:  # as the template writes it: without markers
        opener = closer = ""
    if syntax.kind == "pythonic":
        opener, closer = f'{opener} "["', f'"]" {closer}'
    elif syntax.array:
        opener, closer = f'{opener} {SPACE} "[" {SPACE}', f'{SPACE} "]" {SPACE} {closer}'
    between = _between(syntax)
    calls = f"{call} ({between} {call})*" if parallel and between is not None else call
    if not syntax.section_start and syntax.kind != "pythonic" and not syntax.array:
        return calls
    section = rules.rule("section", f"{opener} {SPACE} {calls} {SPACE} {closer}")
    again = parallel and syntax.kind in ("json", "tagged") and not syntax.array and syntax.section_end
    return f"{section} ({SPACE} {section})*" if again else section


def _between(syntax: CallSyntax) -> str | None:
    """What separates two calls; None: each has a section of its own."""
    if syntax.array or syntax.kind == "pythonic":
        return f'"," {SPACE}'
    if syntax.kind == "harmony":
        return None
    if syntax.kind == "json" and not syntax.start:
        return f"({literal(syntax.separator)} {SPACE} | SPACE)" if syntax.separator else None
    return SPACE


@dataclass(frozen=True)
class _Writer:
    """What every kind's rule is written with."""

    syntax: CallSyntax
    rules: Rules
    tools: Tools

    def ends(self) -> str:
        return " ".join(f"{SPACE} {self.rules.marker(marker)}" for marker in self.syntax.end)


def _json(writer: _Writer, name: str, parameters: Mapping[str, Any]) -> str:
    syntax, rules = writer.syntax, writer.rules
    arguments = rules.schema(parameters)
    if not syntax.name_key:
        value = f"{literal('{')} {literal(literal(name) + ': ')} {arguments} {literal('}')}"
    else:
        head = f"{{{literal(syntax.name_key)}: {literal(name)}, {literal(syntax.arguments_key)}: "
        value = f"{literal(head)} {arguments} {literal('}')}"
        if syntax.function_key:
            head = f'{{"type": "function", {literal(syntax.function_key)}: '
            value = f"{literal(head)} {value} {literal('}')}"
    start = f"{rules.marker(syntax.start)} {SPACE}" if syntax.start else ""
    return f"{start} {value} {writer.ends()}".strip()


def _named(writer: _Writer, name: str, parameters: Mapping[str, Any]) -> str:
    syntax, rules = writer.syntax, writer.rules
    written = literal(f"functions.{name}:") + " /[0-9]{1,3}/" if syntax.numbered_names else literal(name)
    number = f"({rules.marker(syntax.id_start)} {_ID})?" if syntax.id_start else ""
    return (
        f"{rules.marker(syntax.start)} {written} {number} {SPACE} {rules.marker(syntax.name_end)} {SPACE} "
        f"{rules.schema(parameters)} {writer.ends()}"
    )


def _harmony(writer: _Writer, name: str, parameters: Mapping[str, Any]) -> str:
    marker = writer.rules.marker
    channel, message = marker("<|channel|>"), marker("<|message|>")
    to = literal(f" to=functions.{name}")
    head = f'({to} {channel} "commentary" | {channel} "commentary" {to})'
    kind = f'(" "? {marker("<|constrain|>")} "json" | " json")?'
    return f"{head} {kind} {message} {writer.rules.schema(parameters)}"


def _tagged(writer: _Writer, name: str, parameters: Mapping[str, Any]) -> str:
    syntax, rules = writer.syntax, writer.rules
    head = [rules.marker(syntax.start), literal(name), rules.marker(syntax.name_end)]
    if syntax.body_start:
        before, index, after = syntax.call_attribute.partition("{index}")
        head += [literal(before), "/[0-9]{1,3}/", literal(after)] if index else []
        head.append(rules.marker(syntax.body_start))
    required = parameters.get("required")
    arguments = []
    for key, schema in writer.tools.properties(name).items():
        rule = rules.rule("argument", _argument(writer, name, key, schema, parameters))
        wanted = isinstance(required, list) and key in required
        arguments.append(f"{SPACE} {rule}" if wanted else f"({SPACE} {rule})?")
    return " ".join([*head, *arguments, writer.ends()])


def _argument(writer: _Writer, name: str, key: str, schema: Any, parameters: Mapping[str, Any]) -> str:
    syntax, rules = writer.syntax, writer.rules
    types = writer.tools.types(name, key)
    is_text = not types or "string" in types
    attribute = syntax.text_attribute if is_text else syntax.json_attribute
    attribute = attribute.replace("{type}", next(iter(sorted(types)), "string"))
    head = [rules.marker(syntax.key_start), literal(key), rules.marker(syntax.key_end)]
    if syntax.value_start:
        head += [literal(attribute)] if attribute else [SPACE]
        head.append(rules.marker(syntax.value_start))
    edge = "\n" if syntax.padded else ""
    head += [literal(edge)] if edge else []
    if is_text:
        return " ".join([*head, rules.up_to(syntax.value_end, before=edge)])
    definitions = {at: parameters[at] for at in ("$defs", "definitions") if at in parameters}
    value = rules.schema({**definitions, **schema})
    return " ".join([*head, value, literal(edge) if edge else "", rules.marker(syntax.value_end)])


def _pythonic(writer: _Writer, name: str, parameters: Mapping[str, Any]) -> str:
    value = _python_value(writer.rules)
    keys = [literal(f"{key}=") for key in writer.tools.properties(name)]
    return _listed(writer, literal(f"{name}("), keys, value, literal(")"))


def _listed(writer: _Writer, start: str, keys: list[str], value: str, end: str) -> str:
    if not keys:
        return f"{start} {end}"
    pair = writer.rules.rule("pair", f"{one_of(keys)} {value}")
    return f'{start} ({pair} ("," {SPACE} {pair})*)? {end}'


def _python_value(rules: Rules) -> str:
    scalar = f'{_PYTHON_TEXT} | {_NUMBER} | "True" | "False" | "None"'
    return _values(rules, scalar, f'{_PYTHON_TEXT} ":" {SPACE}')


def _values(rules: Rules, scalar: str, key: str) -> str:
    """A rule of nested values: it names itself, so it cannot be made in one step."""
    name = rules.rule("value", f"{scalar} | list_of_values | object_of_values")
    rules.define("list_of_values", f'"[" ({name} ("," {SPACE} {name})*)? "]"')
    rules.define("object_of_values", f'"{{" ({key} {name} ("," {SPACE} {key} {name})*)? "}}"')
    return name


def _braced(writer: _Writer, name: str, parameters: Mapping[str, Any]) -> str:
    syntax, rules = writer.syntax, writer.rules
    text = f"{rules.marker(syntax.quote)} {rules.up_to(syntax.quote)}"
    value = _values(
        rules, f'{text} | {_NUMBER} | "true" | "false" | "null"', '/[A-Za-z_][A-Za-z0-9_ \\-]*/ ":"'
    )
    keys = [literal(f"{key}:") for key in writer.tools.properties(name)]
    start = f"{rules.marker(syntax.start)} {literal(name + '{')}"
    return f"{_listed(writer, start, keys, value, literal('}'))} {writer.ends()}"


_CALLS: dict[str, Callable[[_Writer, str, Mapping[str, Any]], str]] = {
    "json": _json,
    "named": _named,
    "tagged": _tagged,
    "pythonic": _pythonic,
    "braced": _braced,
    "harmony": _harmony,
}
