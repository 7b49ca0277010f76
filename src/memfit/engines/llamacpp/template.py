"""The model's chat template, rendered as transformers and llama.cpp do: the functions that a template may
call, and the guards around it.

A template may call what `_compiled` adds to jinja2: `tojson`, `raise_exception`, `strftime_now`, loop
controls and generation blocks.

A template is a program from a stranger's file. It runs in jinja2's immutable sandbox, inside the worker,
with limits on time, memory and output. Where a C routine never returns, the kernel ends the worker.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from memfit.errors import ModelError, UsageError, readable
from memfit.units import MIB

__all__ = ["render_chat", "require_template"]

_SECONDS_LIMIT = 2.0  # real templates take milliseconds
_PROCESSOR_SECONDS_LIMIT = 4.0  # of the whole worker, in which then nothing else runs
_MEMORY_LIMIT = 32 * MIB  # of address space beyond what the worker has already
_OUTPUT_LIMIT = 16 * MIB  # characters; longer than any context
_PRODUCT_BITS_LIMIT = 4096
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(\d{4}|\*)")
_POWER_LIMIT = 64  # exponents; 10 ** 10 ** 8 would not return


class _Timeout(BaseException):
    """A BaseException, since jinja2's own `except Exception` would swallow an Exception."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses the operators that make a huge result from small ones inside one C call."""

    intercepted_binops = frozenset(["**", "*", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(right) > _POWER_LIMIT or abs(left) > 2**_POWER_LIMIT):
            raise SecurityError("an exponent is too large")
        if operator == "*":
            for repeated, times in ((left, right), (right, left)):
                sequence = isinstance(repeated, str | list | tuple) and isinstance(times, int)
                if sequence and len(repeated) * times > _OUTPUT_LIMIT:
                    raise SecurityError("a repetition is too long")
            numbers = isinstance(left, int) and isinstance(right, int)
            if numbers and left.bit_length() + right.bit_length() > _PRODUCT_BITS_LIMIT:
                raise SecurityError("a product is too large")
        if operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise SecurityError("a '%' format is too wide")
        return super().call_binop(context, operator, left, right)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The prompt for `messages` ({"role", "content"} each), ending where the assistant's turn begins.

    `tools` are a request's, as OpenAI's API sends them. `options` are what a template takes besides
    (`enable_thinking`); they cannot replace the rest.

    Raises:
        UsageError: the template refuses these messages.
        ModelError: it is broken, or was stopped.
    """
    variables = {
        **(options or {}),
        **special_tokens,
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
        "tools": None if tools is None else list(tools),
    }
    try:
        with _memory_limit(), _time_limit():
            return _generate(_compiled(template), variables)
    except _Timeout:
        problem = f"was stopped after {_SECONDS_LIMIT:g} s"
    except MemoryError:
        problem = f"was stopped: it wants more than {_MEMORY_LIMIT // MIB} MiB"
    except RecursionError:
        problem = "was stopped: endless recursion"
    except SecurityError as error:
        problem = f"was stopped: {error}"
    except Exception as error:  # a stranger's program may fail in any way
        if type(error) is TemplateError:  # what raise_exception raises
            raise UsageError(
                f"the model's chat template refuses these messages: {readable(str(error))}; try --raw"
            ) from None
        text = str(error) if isinstance(error, TemplateError) else repr(error)
        problem = f"failed: {readable(text)}"
    raise ModelError(f"the model's chat template {problem}; try --raw")


def require_template(template: str) -> None:
    """Raises ModelError where it is none."""
    try:
        _compiled(template)
    except TemplateError as error:
        raise ModelError(f"the chat template cannot be read: {readable(str(error))}") from None


@functools.lru_cache(maxsize=4)  # compiling takes milliseconds, a batch renders thousands
def _compiled(template: str) -> Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals.pop("lipsum", None)
    return environment.from_string(template)


def _generate(template: Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > _OUTPUT_LIMIT:
            raise SecurityError(f"its output passes {_OUTPUT_LIMIT} characters")
        pieces.append(piece)
    return "".join(pieces)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def expire(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _Timeout

    before = signal.signal(signal.SIGALRM, expire)
    # Python's handler waits for a C routine to return; this second alarm is the kernel's, and final.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _PROCESSOR_SECONDS_LIMIT)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - a pseudo-file
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limit = used + _MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own escapes HTML characters, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class _GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training: here, its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants a set

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
