"""A template's format: declared where its source holds a family's markers, else found from renderings."""

from __future__ import annotations

import re
from dataclasses import replace

from memfit.engines.chat_format.derive import find_calls, reads_back
from memfit.engines.chat_format.families import FAMILIES, family_of
from memfit.engines.chat_format.form import CallSyntax, ChatFormat, ReasoningSyntax
from memfit.engines.chat_format.probes import MARKER, NAMES, REASON, TOOLS, Probes, Render, between_markers

__all__ = ["analyse_template"]

_OPENER = re.compile(rf"((?:{MARKER.pattern})[a-z]*)\s*\Z")
_WORD = re.compile(r"[a-z]{4,}")
_SIDES = {"begin", "start"}
_WORDS_LIMIT = 80  # letters of words that open reasoning


def analyse_template(render: Render, template: str) -> ChatFormat:
    """The format of what a model with this template writes; a template that shows nothing: plain text."""
    probes = Probes(render)
    has_tools = _shows_tools(probes)
    name = family_of(template)
    declared = (
        ChatFormat() if name is None else replace(FAMILIES[name].form, family=name, has_tools=has_tools)
    )
    if probes.prompt() is None and probes.prompt(TOOLS) is None:
        return declared  # it renders nothing, and each of the probes may take its time for that
    shown = probes.called(1)
    if name is not None and (shown is None or reads_back(declared, shown, NAMES[:1])):
        return declared
    reasoning = _reasoning(probes, template)
    calls = find_calls(probes, reasoning)
    return ChatFormat(
        has_tools=has_tools,
        reasoning=reasoning,
        calls=() if calls is None else (calls,),
        dropped=_wrappers(probes, reasoning, calls),
    )


def _shows_tools(probes: Probes) -> bool:
    with_tools, without = probes.prompt(TOOLS), probes.prompt()
    return with_tools is not None and NAMES[0] in with_tools and NAMES[0] not in (without or "")


def _reasoning(probes: Probes, template: str) -> ReasoningSyntax | None:
    for text in probes.thoughts():
        before, _, after = text.partition(REASON)
        opener, closer = _OPENER.search(before), MARKER.match(after.lstrip())
        if closer is None:
            continue
        if opener is not None and _alike(opener[1], closer[0]):
            return ReasoningSyntax(start=opener[1], end=closer[0])
        start = between_markers(probes.prompt(TOOLS) or "", before, "")  # the prompt opens it, in words
        if 0 < len(start) < _WORDS_LIMIT:
            return ReasoningSyntax(start=start, end=closer[0])
    if "</think>" in template:  # it removes reasoning from what it renders
        return ReasoningSyntax(start="<think>", end="</think>")
    return None


def _alike(one: str, other: str) -> bool:
    """Whether two markers have a word in common, as the two ends of one thing do."""
    words = (set(_WORD.findall(marker.lower())) - _SIDES for marker in (one, other))
    return bool(set.intersection(*words))


def _wrappers(probes: Probes, reasoning: ReasoningSyntax | None, calls: CallSyntax | None) -> tuple[str, ...]:
    """The markers that a template puts around an answer's content."""
    plain, prompt = probes.plain(), probes.prompt(TOOLS)
    if plain is None or prompt is None:
        return ()
    known = set(ChatFormat(reasoning=reasoning, calls=() if calls is None else (calls,)).markers)
    openers = [one for one in MARKER.findall(between_markers(plain[0], prompt, "")) if one not in known]
    closer = MARKER.match(plain[1].lstrip())
    closers = [closer[0]] if closer and any(_alike(one, closer[0]) for one in openers) else []
    return (*openers, *closers)
