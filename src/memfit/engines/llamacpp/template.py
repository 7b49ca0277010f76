"""The model's own chat template, rendered as transformers and llama.cpp render it, but under guard.

A template is a program from a stranger's file. It runs in jinja2's immutable sandbox inside the
worker, with a limit on time, on memory and on output. What even that cannot stop (a C routine that
never returns) the parent's own deadline ends, together with the worker.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from memfit.errors import ModelError
from memfit.units import MIB

__all__ = ["SECONDS_LIMIT", "render_chat"]

SECONDS_LIMIT = 2.0  # real templates take milliseconds
_MEMORY_LIMIT = 256 * MIB  # of address space beyond what the worker has already
_OUTPUT_LIMIT = 16 * MIB  # characters; longer than any context
_PRODUCT_BITS_LIMIT = 4096
_POWER_LIMIT = 64  # exponents; 10 ** 10 ** 8 would not return


class _Timeout(Exception):  # noqa: N818
    pass


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
        if operator == "%" and isinstance(left, str):
            raise SecurityError("'%' formatting is not allowed")
        return super().call_binop(context, operator, left, right)


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str]
) -> str:
    """The prompt for `messages` ({"role", "content"} each), ending where the assistant's turn begins.

    Raises:
        ModelError: the template is broken, refuses these messages, or was stopped.
    """
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    environment.globals.pop("lipsum", None)
    pieces: list[str] = []
    size = 0
    try:
        with _time_limit(), _memory_limit():
            compiled = environment.from_string(template)
            for piece in compiled.generate(
                messages=list(messages), add_generation_prompt=True, tools=None, **special_tokens
            ):
                size += len(piece)
                if size > _OUTPUT_LIMIT:
                    raise SecurityError(f"its output passes {_OUTPUT_LIMIT} characters")
                pieces.append(piece)
    except _Timeout:
        raise ModelError(
            f"the model's chat template was stopped after {SECONDS_LIMIT:g} s; try --raw"
        ) from None
    except MemoryError:
        raise ModelError("the model's chat template was stopped: out of memory; try --raw") from None
    except RecursionError:
        raise ModelError("the model's chat template was stopped: endless recursion; try --raw") from None
    except SecurityError as error:
        raise ModelError(f"the model's chat template was stopped: {error}; try --raw") from None
    except TemplateError as error:
        raise ModelError(f"the model's chat template failed: {error}; try --raw") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"the model's chat template failed: {error!r}; try --raw") from None
    return "".join(pieces)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def expire(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _Timeout

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
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


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    # jinja2's own escapes HTML characters, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
