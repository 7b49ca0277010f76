"""JSON schemas and written grammars over the model's own vocabulary: which tokens may come next, which must.

llguidance makes the grammars. The worker imports it when the first one is asked for. Equal ones share a
grammar. Unused grammars are kept while there is room, and the one unused for longest goes first.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memfit.closing import Closing
from memfit.engines.allocator import trim
from memfit.engines.json_schema import CheckedSchema, check_schema
from memfit.errors import EngineError, EngineMissingError, UsageError, readable
from memfit.units import format_bytes

__all__ = ["Grammar", "Grammars"]

# One form of white space, so that half of an answer's tokens need no choice and none ends in blank lines.
# No \u: the engine lets an escaped name stand beside the same one written plainly, whose value it replaces.
_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}
# Objects of 510 and more optional properties need the first two.
_LIMITS = {
    "max_items_in_row": 50_000,
    "step_max_items": 1_000_000,
    "max_lexer_states": 30_000,  # of about 1 KiB; a text with a maxLength takes one for every byte
    "verbose_errors": False,
}
_STACK_BYTES = 64 * 2**20  # the compiler recurses: 8 KiB for each definition or nested part
_FEW_PARTS = 100  # that any stack has room for
_MOST_LOOKED_AT = 200  # parts of a schema that are compiled alone, to find the one that was refused
_UNNAMED = b"\xff<control>"  # a token that is no text: it may not come
_PIECE_BYTES = 256
_TRIAL_SCHEMA = {
    "properties": {"a": {"type": "string"}, "b": {"items": {"type": "integer"}}},
    "required": ["b"],
}
_MOST_GRAMMAR = 256 * 1024  # characters of a written grammar
# Parts of a text whose masks are kept: without them a mask of a free text takes 50 ms with 262,000 tokens.
# The library's own four are 3 times as fast where a text has a maxLength, and take half as much memory again.
_SLICES = (r'[^"\\\x00-\x1F\x7F]{1,10}', r'[^"\\\x00-\x1F\x7F]+')


class Grammars:
    """The grammars of one model. Used by one thread; another reads the vocabulary while the model loads."""

    def __init__(self, api: Any, vocabulary: int, *, limit_bytes: int) -> None:
        self._api = api
        self._vocabulary = vocabulary
        self._limit_bytes = limit_bytes
        self._known: OrderedDict[str, _Compiled] = OrderedDict()
        self._tokenizer: Any = None
        self._failure: Exception | None = None
        self._preparing: threading.Thread | None = None
        self._empty_bytes = 0  # on the heap before there was any grammar

    def prepare(self) -> None:
        """Begin to read the vocabulary, on a thread of its own; `grammar` waits for it."""
        if self._preparing is None:
            self._preparing = threading.Thread(target=self._prepare, name="vocabulary", daemon=True)
            self._preparing.start()

    def wait(self) -> None:
        """Until what was begun is done.

        Raises:
            EngineMissingError: llguidance is not here.
        """
        self.prepare()
        assert self._preparing
        self._preparing.join()
        if self._failure:
            raise self._failure

    def _prepare(self) -> None:
        try:
            self._tokenizer = _tokenizer(self._api, self._vocabulary)
        except ImportError as error:
            self._failure = EngineMissingError(
                f"JSON schemas need llguidance ({error}); try: pip install 'llguidance>=1.9'"
            )
        except Exception as error:
            self._failure = EngineError(f"the vocabulary makes no grammar: {readable(str(error), most=200)}")

    def warm_up(self) -> None:
        """Use a small grammar, so that the pages that every grammar needs are in memory and counted."""
        with self.grammar(_TRIAL_SCHEMA) as grammar:
            grammar.forced()
            grammar.mask()

    @property
    def has_room(self) -> bool:
        """Whether another grammar is within the plan, once unused ones are gone."""
        if not any(one.users for one in self._known.values()):
            return True
        return self._make_room() < self._limit_bytes

    def grammar(self, source: Mapping[str, Any] | str) -> Grammar:
        """A new answer's way through a JSON schema, or through a grammar that is a text.

        Raises:
            UsageError: not a schema or a grammar, or a part of it cannot be enforced; the part is named.
            EngineMissingError: llguidance is not here.
        """
        checked = None if isinstance(source, str) else check_schema(source)
        text = checked.text if checked else str(source)
        self.wait()
        if text not in self._known:
            if not self._known:
                self._empty_bytes = _heap_bytes()
            self._make_room()
            self._known[text] = _Compiled(self._compile(checked) if checked else self._compile_written(text))
            self._check_size(text)
        self._known.move_to_end(text)
        compiled = self._known[text]
        compiled.users += 1
        return Grammar(compiled.matcher.deep_copy(), compiled)

    def _check_size(self, text: str) -> None:
        """Refuse a grammar that is too large even alone."""
        if self._make_room(but=text) <= self._limit_bytes or len(self._known) > 1:
            return
        held = _heap_bytes() - self._empty_bytes
        del self._known[text]
        trim()
        raise UsageError(
            f"the JSON schema or grammar needs {format_bytes(held)} as a grammar, and "
            f"{format_bytes(self._limit_bytes)} were planned for it; describe less of it"
        )

    def _make_room(self, but: str = "") -> int:
        """Drop unused grammars until the rest is within the plan; returns the bytes that are held then."""
        held = _heap_bytes() - self._empty_bytes
        if held < self._limit_bytes:
            return held
        for text in [key for key, one in self._known.items() if not one.users and key != but]:
            del self._known[text]
            held = _heap_bytes() - self._empty_bytes
            if held < self._limit_bytes:
                break
        trim()
        return held

    # -- compiling ---------------------------------------------------------------------------------

    def _compile(self, checked: CheckedSchema) -> Any:
        matcher = self._run(checked, lambda: self._matcher(checked.text))
        if not (error := matcher.get_error()):
            return matcher
        raise checked.refusal(*self._run(checked, lambda: self._find(checked, error)))

    def _compile_written(self, text: str) -> Any:
        """A grammar in GBNF or in llguidance's Lark."""
        if len(text) > _MOST_GRAMMAR:
            raise UsageError(
                f"grammar: it has {len(text)} characters, at most {_MOST_GRAMMAR} are taken",
                field="grammar",
                got=len(text),
                needed=_MOST_GRAMMAR,
            )
        try:
            lark = importlib.import_module("llguidance.gbnf_to_lark").any_to_lark(text)
            matcher = self._deep(lambda: self._of_source(_library().LLMatcher.grammar_from_lark(lark)))
            if not (problem := matcher.get_error()):
                trial = matcher.deep_copy()
                trial.compute_bitmask()  # one that no text satisfies fails only here
                problem = trial.get_error()
        except Exception as error:  # a stranger's grammar may fail in any way
            problem = str(error) or type(error).__name__
        if problem:
            raise UsageError(f"grammar: {_reason(problem)}", field="grammar", needed="GBNF or Lark")
        return matcher

    def _matcher(self, schema: str) -> Any:
        return self._of_source(_library().LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS))

    def _of_source(self, source: str) -> Any:
        llguidance = _library()
        limits = llguidance.LLParserLimits(**_LIMITS)
        return llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)

    def _find(self, checked: CheckedSchema, error: str) -> tuple[str, str]:
        """The innermost part of the schema that is refused, and why; the library does not say where."""
        definitions = checked.schema.get("$defs", {}) if isinstance(checked.schema, dict) else {}
        for pointer, part in checked.places[:_MOST_LOOKED_AT]:
            if not isinstance(part, dict):
                continue  # true or false, which is no grammar by itself
            whole = {**part, "$defs": definitions}
            if why := self._matcher(CheckedSchema(schema=whole, places=(), where="").text).get_error():
                return pointer, _reason(why)
        return "#", _reason(error)

    @staticmethod
    def _run(checked: CheckedSchema, task: Callable[[], Any]) -> Any:
        """Run a task with a stack that is deep enough for the schema, on a thread that ends with it."""
        return task() if len(checked.places) < _FEW_PARTS else Grammars._deep(task)

    @staticmethod
    def _deep(task: Callable[[], Any]) -> Any:
        found: list[Any] = []
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=lambda: found.append(task()), name="grammar")
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join()
        if not found:
            raise UsageError("the JSON schema or grammar could not be read")
        return found[0]


@dataclass(eq=False)
class _Compiled:
    matcher: Any
    users: int = 0


class Grammar(Closing):
    """One answer's way through a schema. Each step raises EngineError where it grows beyond its limits."""

    def __init__(self, matcher: Any, compiled: _Compiled) -> None:
        self._matcher = matcher
        self._compiled: _Compiled | None = compiled

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def forced(self) -> list[int]:
        """The tokens that must come next, often none. They count as taken."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens:
            self._matcher.consume_tokens(tokens)
        self._check()
        return tokens

    def allows(self, token: int) -> bool:
        return bool(self._matcher.validate_tokens([token]))

    def mask(self) -> bytes:
        """A bit for each token of the vocabulary, set where the token may come next; the lowest bit first."""
        bits: bytes = self._matcher.compute_bitmask()
        self._check()  # the mask would only allow the end, and cut the answer
        return bits

    def take(self, token: int) -> None:
        """Go on by the token that was chosen. A token that ends the answer is not taken."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            why = _reason(self._matcher.get_error())
            raise EngineError(f"the grammar of the JSON schema failed: {why}")

    def close(self) -> None:
        """Safe to repeat."""
        if self._compiled:
            self._compiled.users -= 1
            self._compiled = self._matcher = None


def _library() -> Any:
    """llguidance, untyped: its annotations are narrower than what it accepts."""
    return importlib.import_module("llguidance")


def _tokenizer(api: Any, vocabulary: int) -> Any:
    llguidance = _library()
    pieces = _pieces(api, vocabulary, api.llama_vocab_n_tokens(vocabulary))
    ends = [
        token
        for token, piece in enumerate(pieces)
        if piece is _UNNAMED and api.llama_vocab_is_eog(vocabulary, token)
    ]
    return llguidance.LLTokenizer.from_llamacpp(
        tokens=pieces,
        vocab_ptr=vocabulary,
        tokenize_fptr=_address(api.llama_tokenize),
        eos_token=ends or api.llama_vocab_eos(vocabulary),
        slices=list(_SLICES),
    )


def _pieces(api: Any, vocabulary: int, count: int) -> list[bytes]:
    """What each token adds to a text."""
    size = _PIECE_BYTES
    buffer = ctypes.create_string_buffer(size)
    view, start = memoryview(buffer).cast("B"), ctypes.c_void_p(ctypes.addressof(buffer))
    words = ctypes.c_void_p(vocabulary)
    # Without types to convert to, and without letting other threads in between: three times as fast.
    read = ctypes.PYFUNCTYPE(ctypes.c_int32)(_address(api.llama_token_to_piece))
    pieces = []
    for token in range(count):
        length = read(words, token, start, size, 0, 0)
        if length < 0:
            long = ctypes.create_string_buffer(-length)
            read(words, token, ctypes.byref(long), -length, 0, 0)
            pieces.append(long.raw)
        else:
            pieces.append(view[:length].tobytes() if length else _UNNAMED)
    return pieces


def _address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found
    return found


def _reason(error: str) -> str:
    """The library's message, shortened to what concerns the schema."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    text = lines[0] if lines else "no reason was given"
    if text.startswith("regex parse error"):
        text = f"regular expression: {lines[-1].removeprefix('error: ')}"
    return readable(text, most=200, kept="")


class _HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _heap_bytes() -> int:
    """Bytes in use on the C heap; 0 where glibc is older than 2.33, which does not tell."""
    library = ctypes.CDLL(None)
    try:
        ask = library.mallinfo2
    except AttributeError:
        return 0
    ask.restype = _HeapInfo
    info = ask()
    return int(info.uordblks + info.hblkhd)
