"""Chat templates: the known ones give the text worked out by hand, harmful ones are stopped.

A harmful template runs in a process of its own with a deadline, so that a hang fails its test.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from memfit.engines.llamacpp.template import render_chat
from memfit.errors import ModelError, UsageError

_TALK = (
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
)
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def _render(template: str, messages: Sequence[dict[str, Any]] = _TALK) -> str:
    return render_chat(template, messages, _SPECIAL)


# --- templates as they ship with models ---

_CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            _CHATML,
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            _LLAMA_3,
            "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            _GEMMA,
            "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        (_MISTRAL, "<s>[INST]  Hi  [/INST]Hello</s>[INST] Bye [/INST]"),
    ],
    ids=["chatml", "llama-3", "gemma", "mistral"],
)
def test_real_templates_by_hand(template: str, text: str) -> None:
    assert _render(template) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if tools is none %}none{% endif %}{% if not tools %}!{% endif %}", "none!"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
            "{{ ns.n }}",
            "3",
        ),
        (
            "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
            "{{ m.content|trim }};{% endfor %}",
            "Hi;Bye;",
        ),
        (
            "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        ("{{ messages[-1]|tojson }}", '{"role": "user", "content": "Bye"}'),
        ("{{ {'a': '<é>'}|tojson }}", '{"a": "<é>"}'),  # neither HTML nor ASCII escapes
        ("{{ [1]|tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ '%' ~ (7 % 4) ~ (2 ** 10) ~ ('ab' * 2) }}", "%31024abab"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # trim_blocks and lstrip_blocks
        ("{{ 'a' if messages[5] is defined else 'b' }}{{ missing }}", "b"),
        ("{{ '{}-{:>3}'.format('a', 1) }}", "a-  1"),
        ("{{ messages|map(attribute='role')|join(',') }}", "user,assistant,user"),
        ("{{ messages|selectattr('role', 'equalto', 'assistant')|list|length }}", "1"),
        ("{{ '<b>' }}", "<b>"),
    ],
)
def test_what_templates_use(template: str, text: str) -> None:
    assert _render(template) == text


def test_tools_and_options() -> None:
    template = (
        "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
        "{{ 'thinks' if enable_thinking else 'no' }}{{ '!' if add_generation_prompt }}{{ messages|length }}"
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    hostile = {"enable_thinking": True, "messages": [], "tools": "none", "add_generation_prompt": True}
    shown = render_chat(template, _TALK, _SPECIAL, tools=tools, add_generation_prompt=False, options=hostile)
    assert shown == "f;thinks3"
    assert _render(template) == "no!3"


def test_today() -> None:
    before = time.strftime("%d %b %Y")
    text = _render("{{ strftime_now('%d %b %Y') }}")
    assert text in (before, time.strftime("%d %b %Y"))


def test_the_messages_are_the_callers_still() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    _render("{% set messages = messages + [1] %}{% for m in messages %}{% set m = 2 %}{% endfor %}", messages)
    assert messages == [{"role": "user", "content": "Hi"}]


def test_tojson_as_transformers_has_it() -> None:
    template = "{{ {'b': 1, 'a': 2}|tojson(separators=(',', ':'), sort_keys=true) }}"
    assert _render(template) == '{"a":2,"b":1}'


def test_generation_blocks_as_transformers_has_them() -> None:
    assert _render("{% generation %}a{% endgeneration %}b") == "ab"


def test_percent_formatting_as_transformers_has_it() -> None:
    assert _render("{{ '%s: %d' % ('a', 7) }}") == "a: 7"


# --- broken templates ---


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ missing.content.x }}", "'missing' is undefined"),
        ("{{ messages[9].content }}", "list object has no element 9"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ {}['a']['b'] }}", "has no attribute 'a'"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{{ 'a'|no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{% include 'other' %}", "no loader"),
        ("{{ raise_exception() }}", "missing 1 required"),
        ("{{ strftime_now(1) }}", "TypeError"),
        ("{{ 'x'.encode().decode('utf-16') }}", "UnicodeDecodeError"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ namespace()|tojson }}", "not JSON serializable"),
    ],
)
def test_a_broken_template_says_what_failed(template: str, problem: str) -> None:
    with pytest.raises(ModelError, match=re.escape(problem)) as caught:
        _render(template)
    assert "try --raw" in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ 'x'.encode('nope') }}", id="LookupError"),
        pytest.param("{{ cycler() }}", id="RuntimeError"),
        pytest.param("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, id="SyntaxError"),
    ],
)
def test_any_failure_is_a_model_error(template: str) -> None:
    with pytest.raises(ModelError):
        _render(template)


def test_what_a_template_refuses_is_the_requests_fault() -> None:
    with pytest.raises(UsageError, match="refuses these messages: roles must alternate; try --raw"):
        _render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("argument", ["'\\x1b]0;title\\x07'", "'x' * 10**7"])
def test_a_templates_message_is_fit_for_a_terminal(argument: str) -> None:
    with pytest.raises(UsageError) as caught:
        _render(f"{{{{ raise_exception({argument}) }}}}")
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).isprintable()


# --- harmful templates ---

_DRIVER = """
import sys
from memfit.engines.llamacpp import template
from memfit.memory.process_memory import process_status
template._SECONDS_LIMIT = 0.3
template._PROCESSOR_SECONDS_LIMIT = 1.0
try:
    text = template.render_chat(sys.stdin.read(), [{"role": "user", "content": "hi"}], {"bos_token": "<s>"})
    print("text", text[:200])
except template.ModelError as error:
    print("stopped", str(error)[:200])
print(process_status().peak_resident_bytes // 2**20)  # ru_maxrss would begin at the parent's own
"""


def _attack(template: str, deadline_seconds: float) -> tuple[str, int]:
    """What became of a template in a fresh process, and that process's peak in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input=template,
        capture_output=True,
        text=True,
        timeout=deadline_seconds,
    )
    outcome, _, peak = done.stdout.strip().rpartition("\n")
    return outcome or f"exit code {done.returncode}: {done.stderr[-500:]}", int(peak or 0)


_GROW = (
    "{% set ns = namespace(x=START) %}{% for i in range(200) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
)


def _growing(start: str, step: str) -> str:
    return _GROW.replace("START", start).replace("STEP", step)


_STOPPED = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat, reversed": "{{ 10**9 * 'a' }}",
    "repeat a list": "{{ [1] * 10**9 }}",
    "repeat bytes": "{{ ('a'.encode() * 10**9)|length }}",
    "power": "{{ 10**(10**8) }}",
    "power of floats": "{{ 1e308**99 }}",
    "squaring": _growing("3", "ns.x * ns.x"),
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "percent": "{{ '%99999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format, nested": "{{ '{:{}}'.format(1, 10**9) }}",
    "format filter": "{{ '%999999999d'|format(1) }}",
    "format filter, star": "{{ '%*d'|format(10**9, 1) }}",
    "center": "{{ 'x'.center(10**9) }}",
    "center filter": "{{ 'x'|center(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ ('\t' * 10**6).expandtabs(10**6) }}",
    "translate": "{{ ('a' * 8000000).translate({97: 'b' * 10**7}) }}",
    "range": "{{ range(10**9)|list }}",
    "join": "{{ ('a' * 10**7).join('b' * 10**7) }}",
    "replace": "{{ ('a' * 10**7).replace('a', 'b' * 10**6) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "wordwrap": "{{ ('a b' * 10**6)|wordwrap(1) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "round, at run time": "{{ messages|length|round(1000000000, 'floor') }}",
    "pprint": "{{ ([[1]] * 10**6)|pprint }}",
    "xmlattr": "{{ {'a' * 10**7: '<' * 10**7}|xmlattr }}",
    "tojson indent": "{{ [1]|tojson(indent=10**9) }}",
    "strftime": "{{ strftime_now('%Y' * 8000000) }}",
    "doubling a string": _growing("'ab'", "ns.x ~ ns.x"),
    "doubling a list": _growing("[1]", "ns.x + ns.x"),
    "nested lists, shown": _growing("[1]", "[ns.x, ns.x]"),
    "nested lists, as JSON": _growing("[1]", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x|tojson }}"),
    "growing a dict": "{% set ns = namespace(x={}) %}{% for i in range(99999) %}"
    "{% set ns.x = dict(ns.x, **{('k' ~ i): i}) %}{% endfor %}",
    "chained generators": _growing("[1]", "ns.x|map('upper')").replace("200", "5000") + "{{ ns.x|list }}",
    "unique and sort": "{{ (range(99999)|list * 100)|unique|sort|length }}",
    "division of huge numbers": "{% set a = ('f' * 2000000)|int(base=16) %}{{ a // (a - 1) // a }}"
    "{% for i in range(99999) %}{{ a // 3 > 1 }}{% endfor %}",
    "a digit string": "{{ ('f' * 10**7)|int(base=16) }}",
    "parentheses": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "nested ifs": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "elifs": "{% if a %}" + "{% elif a %}x" * 20000 + "{% endif %}",
    "a long sum": "{{ a" + " ~ a" * 50000 + " }}",
    "a long filter chain": "{{ a" + "|upper" * 50000 + " }}",
}


@pytest.mark.parametrize("template", _STOPPED.values(), ids=_STOPPED.keys())
def test_a_harmful_template_is_stopped(template: str) -> None:
    outcome, peak_mib = _attack(template, 60)
    assert outcome.startswith("stopped the model's chat template "), outcome
    assert peak_mib < 80  # 32 beyond what the process has, and it starts with some 25


_ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "item": "{{ ''['__class__'] }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "map": "{{ ['']|map(attribute='__class__')|list }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "format, taken first": "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "format, mapped": "{{ ['{0.__class__}']|map('format', '')|list }}",
    "self": "{{ self._TemplateReference__context }}",
    "loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._environment }}{{ m.__globals__ }}",
    "filter": "{{ ''.join.__self__.__class__ }}",
    "generator": "{{ ([1]|map('upper')).gi_frame.f_globals }}",
    "raise_exception": "{{ raise_exception.__globals__ }}",
    "strftime_now": "{{ strftime_now.__globals__ }}",
}


@pytest.mark.parametrize("template", _ESCAPES.values(), ids=_ESCAPES.keys())
def test_a_template_cannot_reach_python(template: str) -> None:
    try:
        text = _render(template)
    except ModelError:
        return
    assert not re.search(r"<class|<module|<frame|<function|builtins|Environment", text)


@pytest.mark.parametrize(
    "expression",
    [
        "messages.append(1)",
        "messages.clear()",
        "messages.pop()",
        "messages[0].update(content='x')",
        "messages[0].pop('content')",
        "messages[0].setdefault('a', 1)",
    ],
)
def test_a_template_cannot_change_the_messages(expression: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ModelError, match="unsafe"):
        _render(f"{{{{ {expression} }}}}", messages)
    assert messages == [{"role": "user", "content": "Hi"}]


# Each runs inside one C call, which no Python signal handler interrupts, or loses the timer while
# compiling (jinja2 folds constants under `except Exception`, which swallows the timeout).
_LONG = "{% set x = 'a' * 16000000 %}{% set l = [x ~ 'b', x ~ 'c'] * 100000 %}"
_HANGING = {
    "round": "{{ 1|round(-1000000000) }}",
    "round floor": "{{ 1|round(100000000, 'floor') }}",
    "sort of long strings": _LONG + "{{ l|sort(case_sensitive=true)|length }}",
    "in": _LONG + "{{ (x ~ 'z') in l }}",
    "equal lists": _LONG + "{% set m = [x ~ 'b', x ~ 'c'] * 100000 %}{{ l == m }}",
    "equal nested lists": "{% set ns = namespace(x=1, y=1) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "hash of nested tuples": _growing("1", "(ns.x, ns.x)").replace("{{ ns.x }}", "{{ {ns.x: 1}|length }}"),
    "strip": "{{ ('a' * 8000000).strip('b' * 8000000 ~ 'a')|length }}",
    "sum of lists": "{{ ([[1] * 1000] * 100000)|sum(start=[])|length }}",
    "a timeout swallowed while compiling": "{% if ('<'|center(2000001)|replace(' ', '<!---->'))|striptags %}"
    "{% endif %}" + "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
}


@pytest.mark.parametrize("template", _HANGING.values(), ids=_HANGING.keys())
def test_a_template_that_hangs_in_c_is_ended(template: str) -> None:
    outcome, _ = _attack(template, 60)
    by_the_kernel = f"exit code {-signal.SIGPROF}: "
    assert outcome.startswith(("stopped the model's chat template ", by_the_kernel)), outcome
