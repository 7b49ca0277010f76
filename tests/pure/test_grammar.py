"""Random answers that follow a schema's grammar satisfy the schema, by jsonschema: no silent violation.

A vocabulary of bytes and a few longer pieces stands in for a model's; what chooses is a seeded random number.
"""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from json_schemas import keywords, programs

from memfit.engines.json_schema import check_schema
from memfit.engines.llamacpp.grammar import Grammars
from memfit.errors import UsageError

llguidance = pytest.importorskip("llguidance", reason="JSON schemas need llguidance")

_PIECES = (
    b'{"',
    b'": ',
    b'", "',
    b'"}',
    b"true",
    b"false",
    b"null",
    b", ",
    b"]",
    b"the",
    b" a",
    b"\\n",
    b"12",
)
_END = 0
_MOST_TOKENS = 600
_ANSWERS = 3


class _Vocabulary:
    """What LLTokenizer asks of a tokenizer."""

    eos_token_id = _END
    bos_token_id = None
    special_token_ids = (_END,)
    tokens = (b"<end>", *(bytes([byte]) for byte in range(256)), *_PIECES)

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        return [byte + 1 for byte in data]


class _Grammars(Grammars):
    """Without a model."""

    def __init__(self) -> None:
        super().__init__(None, 0, limit_bytes=64 * 2**20)

    def wait(self) -> None:
        if self._tokenizer is None:
            wrapped = llguidance.TokenizerWrapper(_Vocabulary())
            self._tokenizer = llguidance.LLTokenizer(wrapped, n_vocab=len(_Vocabulary.tokens))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return _Grammars()


def _answer(grammars: Grammars, schema: Any, seed: int) -> tuple[bytes, bool]:
    """A random answer, and whether it came to its end."""
    chance = random.Random(seed)
    tokens: list[int] = []
    with grammars.grammar(schema) as grammar:
        tokens += grammar.forced()
        while not grammar.is_complete and len(tokens) < _MOST_TOKENS:
            bits = grammar.mask()
            allowed = [n for n in range(len(_Vocabulary.tokens)) if bits[n // 8] >> n % 8 & 1]
            if _END in allowed:
                return b"".join(_Vocabulary.tokens[one] for one in tokens), True
            # A text is not to go on for ever, and signs of every kind are to be met.
            ends = [one for one in allowed if _Vocabulary.tokens[one] in (b'"', b"}", b"]", b"0")]
            token = chance.choice(ends if ends and chance.random() < 0.3 else allowed)
            assert grammar.allows(token)
            grammar.take(token)
            tokens += [token, *grammar.forced()]
        return b"".join(_Vocabulary.tokens[one] for one in tokens), grammar.is_complete


def _oracle(schema: Any) -> Any:
    """The schema for jsonschema, which knows nothing of OpenAPI's nullable and of numbers as doubles."""
    read = json.loads(json.dumps(schema), parse_float=Decimal)
    return _without_nullable(read)


def _without_nullable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_nullable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _without_nullable(one) for key, one in schema.items() if key != "nullable"}
    for word, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if made.get(word) is True:
            made[word] = made.pop(limit)
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") is True else made


def check_answer(schema: Any, text: bytes) -> None:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    value = json.loads(text.decode(), parse_float=Decimal)
    kind(_oracle(schema), format_checker=kind.FORMAT_CHECKER).validate(value)


def test_what_is_refused_is_found_beside_what_nothing_satisfies(grammars: Grammars) -> None:
    never, refused = {"not": {}}, {"type": "string", "pattern": "a^"}
    with pytest.raises(UsageError, match="the JSON schema at #/properties/b: "):
        grammars.grammar({"properties": {"a": never, "b": refused}})


@pytest.mark.parametrize("pattern", ["^\\s*$", "^[\\s]", "^[^\\S]$"])
def test_a_name_of_wide_space_matches_its_pattern(grammars: Grammars, pattern: str) -> None:
    """Of a name that did not match, the value would be another."""
    others = {"additionalProperties": {"type": "boolean"}}
    with grammars.grammar(
        {"patternProperties": {pattern: {"type": "null"}}, "type": "object", **others}
    ) as one:
        for byte in '{"\u00a0": '.encode():
            one.take(byte + 1)
        assert one.allows(b"n"[0] + 1) and not one.allows(b"t"[0] + 1)


@pytest.mark.parametrize("name", programs())
def test_what_programs_write_is_answered(grammars: Grammars, name: str) -> None:
    schema = programs()[name]
    whole = 0
    for seed in range(_ANSWERS):
        text, is_whole = _answer(grammars, schema, seed)
        if is_whole:
            check_answer(schema, text)
            whole += 1
    assert whole, "none of the answers came to its end"


@pytest.mark.parametrize("name", keywords())
def test_every_keyword_is_enforced_or_refused_by_its_pointer(grammars: Grammars, name: str) -> None:
    schema, pointer = keywords()[name]
    if pointer is not None:
        with pytest.raises(UsageError) as caught:
            grammars.grammar(schema)
        assert f"the JSON schema at {pointer}: " in str(caught.value)
        return
    whole = 0
    for seed in range(4 * _ANSWERS):
        text, is_whole = _answer(grammars, schema, seed)
        if is_whole:
            check_answer(schema, text)
            whole += 1
    assert whole


def test_a_name_cannot_come_again_in_disguise(grammars: Grammars) -> None:
    """llguidance allows "\\u0061" beside "a" by itself; whoever reads it takes the last one's value."""
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": True}
    with grammars.grammar(schema) as grammar:
        for byte in b'{"a": 1, "\\':
            grammar.take(byte + 1)
        assert grammar.allows(ord("n") + 1) and not grammar.allows(ord("u") + 1)


def test_equal_schemas_share_a_grammar_and_unused_ones_go() -> None:
    grammars = _Grammars()
    schema = {"enum": [f"value {n}" for n in range(1000)]}
    first, second = grammars.grammar(schema), grammars.grammar(dict(schema))
    assert first._compiled is second._compiled
    first.close(), second.close(), second.close()
    compiled = next(iter(grammars._known.values()))
    assert compiled.users == 0
    grammars._limit_bytes = 1
    with pytest.raises(UsageError, match="as a grammar, and 1 B"):
        grammars.grammar({"type": "null"})
    assert not grammars._known and grammars.has_room


def test_what_the_engine_refuses_is_named_too(grammars: Grammars) -> None:
    schema = {"properties": {"a": {"type": "string", "pattern": "a^b"}}}
    with pytest.raises(UsageError, match="JSON schema at #/properties/a: lookarounds"):
        grammars.grammar(schema)
    assert check_schema(schema)
