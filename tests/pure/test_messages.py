"""Nothing that is said gets lost in a chat template: parts, system messages, templates that drop things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from memfit.engines.llamacpp.template import render_chat
from memfit.engines.messages import render_messages
from memfit.errors import ModelError, UsageError

_SYSTEM = {"role": "system", "content": " Be brief. "}
_ASKED = {"role": "user", "content": ' What is "4 <é>\n+ 4"? '}
_TALK = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "<think>so</think>Hello"},
    _ASKED,
)


def _render(template: str, *messages: Mapping[str, Any]) -> str:
    seen: list[Sequence[Mapping[str, Any]]] = []

    def render(form: Sequence[Mapping[str, Any]]) -> str:
        seen.append(form)
        return render_chat(template, form, {"bos_token": "<s>"})

    return render_messages(render, messages)


_PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}[assistant]"
_PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text | trim }}{% endif %}{% endfor %}{% endfor %}[assistant]"
)
_FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text | trim }}{% endfor %}[assistant]"
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}[{{ m.role }}]"
    "{{ m.content | trim }}{% endfor %}[assistant]"
)
_DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content | trim }}{% endif %}"
    "{% endfor %}[assistant]"
)
_QUESTION = 'What is "4 <é>\n+ 4"?'


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (_PLAIN, f"[system]Be brief.[user]{_QUESTION}[assistant]"),
        (_PARTS, f"[system]Be brief.[user]{_QUESTION}[assistant]"),
        (_FIRST_PART, f"[system]Be brief.[user]{_QUESTION}[assistant]"),
        (_NO_SYSTEM, f"[user]Be brief.\n\n {_QUESTION}[assistant]"),
        (_DROPS_SYSTEM, f"[user]Be brief.\n\n {_QUESTION}[assistant]"),
        (_PARTS.replace("[{{ m.role }}]", "{{ '[' ~ m.role ~ ']' if m.role != 'system' }}"), None),
        (
            _PARTS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
            f"[user]Be brief.\n\n {_QUESTION}[assistant]",
        ),
    ],
    ids=["plain", "parts", "first part", "refuses system", "drops system", "unmarked", "parts, drops system"],
)
def test_both_messages_arrive(template: str, prompt: str | None) -> None:
    text = _render(template, _SYSTEM, _ASKED)
    assert prompt is None or text == prompt
    assert "Be brief." in text and _QUESTION in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m | tojson }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace(' ', '_') }}{% endfor %}",
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
        "{{ messages[-1].content | trim }}",  # earlier ones may be left out
        "{% for m in messages %}{{ (m.content | trim).split() | join(' ') }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    ],
)
def test_what_a_template_does_to_texts_is_its_own_business(template: str) -> None:
    assert "4" in _render(template, *_TALK)


@pytest.mark.parametrize("where", ["user", "system"])
def test_a_command_that_a_template_takes_away_is_no_loss(where: str) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ (m.content.replace('/no_think', '') if m.role == '"
        + where
        + "' else m.content) | trim }}{% endfor %}"
    )
    system, user = ({**one, "content": f"{one['content'].strip()} /no_think"} for one in (_SYSTEM, _ASKED))
    given = {"system": (system, _ASKED), "user": (_SYSTEM, user)}[where]
    assert _render(template, *given) == f"[system]Be brief.[user]{_QUESTION}"
    alone = {"role": "system", "content": "/no_think"}
    if where == "system":
        assert _render(template, alone, _ASKED) == f"[system][user]{_QUESTION}"


def test_what_is_dropped_is_said_where_parts_fail() -> None:
    with pytest.raises(UsageError, match="drops the user message"):
        _render("{% for m in messages %}{{ m.content.replace('a', '')[:3] }}{% endfor %}", _ASKED)


def test_texts_are_taken_as_they_are_where_that_works() -> None:
    template = "{% for m in messages %}{{ m.content if m.content is string else 'PARTS' }}{% endfor %}"
    assert _render(template, *_TALK).startswith("Hi<think>")


def test_a_template_that_drops_the_question_is_refused() -> None:
    with pytest.raises(UsageError, match="the model's chat template drops the user message; try --raw"):
        _render("[user]{{ messages[0].role }}[assistant]", _ASKED)
    with pytest.raises(UsageError, match="drops the system message"):
        _render("{{ messages[-1].content }}", _SYSTEM, *_TALK)  # merging does not help either


@pytest.mark.parametrize("first", ["user", "assistant"])
def test_roles_that_it_refuses_are_its_own_sentence(first: str) -> None:
    with pytest.raises(UsageError, match="refuses these messages: Conversation roles must alternate"):
        _render(_NO_SYSTEM, {"role": first, "content": "Hi"}, *([_ASKED] if first == "user" else []))


def test_a_system_message_alone() -> None:
    with pytest.raises(UsageError, match="System role not supported"):
        _render(_NO_SYSTEM, _SYSTEM)
    assert _render(_PLAIN, _SYSTEM) == "[system]Be brief.[assistant]"


def test_an_empty_question_is_there() -> None:
    assert _render("[assistant]", {"role": "user", "content": " "}) == "[assistant]"


def test_a_broken_template_says_what_failed() -> None:
    with pytest.raises(ModelError, match="No filter named 'nope'"):
        _render("{{ messages | nope }}", _SYSTEM, _ASKED)
