"""What becomes of JSON schemas before the engine sees them: refused by keyword and pointer, or made exact."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from memfit.cli.schema import read_schema
from memfit.engines.json_schema import check_schema
from memfit.engines.json_schema.keywords import ENFORCED
from memfit.engines.json_schema.pattern import PatternError, translate_pattern
from memfit.errors import UsageError

_INTEGER = {"type": "integer"}


def _made(schema: Any) -> Any:
    return check_schema(schema).schema


def _nested(depth: int) -> Any:
    schema: Any = _INTEGER
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "pointer", "why"),
    [
        ({"type": "integer", "minimun": 3}, "#/minimun", "did you mean minimum?"),
        ({"properties": {"a/b~": {"tpye": "null"}}}, "#/properties/a~1b~0/tpye", "did you mean type?"),
        ({"if": {}, "then": {}}, "#/if", "anyOf"),
        ({"items": {"dependentRequired": {"a": ["b"]}}}, "#/items/dependentRequired", "anyOf"),
        ({"dependentSchemas": {}}, "#/dependentSchemas", "anyOf"),
        ({"not": {"type": "string"}}, "#/not", "say what is allowed"),
        ({"uniqueItems": True}, "#/uniqueItems", "not enforced"),
        ({"contains": _INTEGER}, "#/contains", "not enforced"),
        ({"maxContains": 2}, "#/maxContains", "beside contains"),
        ({"$dynamicRef": "#x"}, "#/$dynamicRef", "use $ref"),
        ({"anyOf": [{}], "unevaluatedProperties": False}, "#/unevaluatedProperties", "beside other"),
        ({"propertyNames": {"anyOf": [{"const": "a"}]}}, "#/propertyNames", "a list, a pattern or a length"),
        ({"contentSchema": {}}, "#/contentSchema", "not enforced"),
        ({"contentMediaType": "application/json"}, "#/contentMediaType", "not enforced"),
        ({"contentEncoding": "quoted-printable"}, "#/contentEncoding", "base64"),
        ({"anyOf": [{}], "$ref": f"#/anyOf/{'9' * 5000}"}, "#/$ref", "is not in the schema"),
        ({"additionalItems": False, "items": {}}, "#/additionalItems", "use items"),
        ({"type": "number", "format": "price"}, "#/format", "no format of numbers"),
        ({"type": "string", "format": "iri"}, "#/format", "write a pattern"),
        ({"x-guidance": {"lenient": True}}, "#/x-guidance", "leave it out"),
        ({"type": "text"}, "#/type", "needed one of null"),
        ({"type": []}, "#/type", "needed a type"),
        ({"enum": []}, "#/enum", "needed a list"),
        ({"anyOf": []}, "#/anyOf", "needed a list"),
        ({"properties": {"a": 3}}, "#/properties/a", "needed a schema"),
        ({"required": "a"}, "#/required", "needed a list of names"),
        ({"minProperties": 1, "required": [["a"]]}, "#/required", "needed a list of names"),
        ({"propertyNames": {"enum": ["a"]}, "properties": 3}, "#/properties", "needed an object of schemas"),
        ({"minLength": -1}, "#/minLength", "from 0"),
        ({"minItems": 1.5}, "#/minItems", "from 0"),
        ({"$schema": "http://example.org/mine"}, "#/$schema", "needed a draft"),
        ({"nullable": "yes"}, "#/nullable", "true or false"),
        ({"type": "object", "minProperties": 2}, "#/minProperties", "at most 1"),  # names may come twice
        ({"const": 2**53 + 1}, "#/const", "exactly"),
        ({"enum": ["a", "b\x01"]}, "#/enum/1", "control character"),
        ({"minimum": 2**60}, "#/minimum", "2^53"),
        ({"pattern": "^(?=a)b"}, "#/pattern", "looking ahead"),
        ({"patternProperties": {"(": {}}}, "#/patternProperties/(", "not closed"),
        ({"properties": {"a": {"$id": "b"}}}, "#/properties/a/$id", "leave it out"),
    ],
)
def test_what_is_not_enforced_is_refused_by_its_place(schema: Any, pointer: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_schema(schema, "--schema x")
    assert str(caught.value).startswith(f"--schema x at {pointer}: ") and why in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("https://example.org/x", "lies outside"),
        ("other.json#/a", "lies outside"),
        ("#/$defs/missing", "not in the schema"),
        ("#/$defs/~2", "no JSON pointer"),
        ("#name", "$anchor of 0"),
        (5, "needed a text"),
        ("#", "refers to itself"),
    ],
)
def test_references_that_lead_nowhere(reference: Any, why: str) -> None:
    with pytest.raises(UsageError, match="JSON schema at #") as caught:
        check_schema({"$ref": reference, "$defs": {"a": {}}})
    assert why in str(caught.value)


@pytest.mark.parametrize("reference", ["#/$defs/a~1b~0c%25", "#/%24defs/a~1b~0c%25", "#it", "x:y#it"])
def test_references_in_every_spelling(reference: str) -> None:
    schema = {
        "$id": "x:y",
        "properties": {"p": {"$ref": reference}},
        "$defs": {"a/b~c%": {"$anchor": "it", **_INTEGER}},
    }
    made = _made(schema)
    assert made["properties"]["p"] == {"$ref": "#/$defs/d0"} and made["$defs"] == {"d0": _INTEGER}


def _several(depth: int) -> Any:
    one: Any = {"const": depth}
    for n in range(depth):
        one = {"anyOf": [one, *({"const": f"{depth}{n}{each}"} for each in range(5))]}
    return one


def _deep_tag(number: int) -> Any:
    tag = {"properties": {"b": {"const": number}}, "required": ["b"]}
    return {"properties": {"a": tag}, "required": ["a"]}


HOSTILE: dict[str, Any] = {
    "5,000 chained references": {
        "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(5000)} | {"d5000": _INTEGER},
        "$ref": "#/$defs/d0",
    },
    "5,000 chained objects": {
        "$defs": {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(5000)}
        | {"d5000": _INTEGER},
        "$ref": "#/$defs/d0",
    },
    "10,000 optional properties": {"properties": {f"p{n}": _INTEGER for n in range(10_000)}},
    "multipleOf": {"type": "integer", "multipleOf": 1_000_003},
    "nested 1,000 deep": _nested(900),
    "100,000 values": {"enum": [str(n) for n in range(100_000)]},
    "10,000 objects": {"enum": [{"n": n} for n in range(9_000)]},
    "repeated repetitions": {"type": "string", "pattern": "(a{1000}){1000}"},
    "combinations": {"allOf": [{"anyOf": [{"required": [f"x{n}{m}"]} for m in range(8)]} for n in range(8)]},
    "a common multiple": {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]},
    "alternatives in thousands": {"oneOf": [_deep_tag(n) for n in range(900)]},
    "alternatives of alternatives": {"oneOf": [{"anyOf": [_several(5), _several(5)]}] * 2},
    "patterns of names": {"patternProperties": {f"^a{n}_": _INTEGER for n in range(300)}},
    "a circle": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    "no end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "half of a character": {"const": "\ud800"},
    "too large": {"const": "x" * 2**21},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_hostile_schemas_are_refused(schema: Any) -> None:
    """How soon: benchmarks/schemas.py hostile."""
    with pytest.raises(UsageError, match="JSON schema"):
        check_schema(schema)


_SILLY: list[Any] = [
    *(None, True, -1, 2.5, 10**400, "a", "#", "(", [], ["a"], [["a"]], [{}], [3], {}, {"a": 3}, {"a": []}),
    *({"$ref": "#"}, {"$ref": "#/propertyNames"}, {"type": "string"}, {"enum": ["a"]}, {"enum": [[]]}),
]


@pytest.mark.parametrize("word", sorted({*ENFORCED, "$id", "$schema", "$anchor", "$defs"}))
def test_whatever_a_keyword_says_is_taken_or_refused(word: str) -> None:
    for value in _SILLY:
        for schema in (
            {word: value},
            {"type": "string", word: value},
            {"propertyNames": {word: value}},
            {"propertyNames": {"enum": ["a"]}, word: value},
            {"minProperties": 1, word: value},
            {"$defs": {"a": {word: value}}, "$ref": "#/$defs/a", "type": "object"},
        ):
            with contextlib.suppress(UsageError):
                assert isinstance(check_schema(schema).schema, dict | bool)


def test_annotations_ask_for_nothing() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "c",
        "title": "T",
        "description": "D",
        "type": "integer",
        "default": 3,
        "examples": [4],
        "deprecated": True,
        "readOnly": True,
        "x-vendor": {"lenient": True},
    }
    assert _made(schema) == _INTEGER


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"enum": ["a"], "nullable": True}, {"anyOf": [{"enum": ["a"]}, {"type": "null"}]}),
        ({"minimum": 3, "exclusiveMinimum": True}, {"exclusiveMinimum": 3}),
        ({"items": [_INTEGER], "additionalItems": False}, {"prefixItems": [_INTEGER], "items": False}),
        ({"items": {"not": {}}}, {"items": False}),
        ({"maximum": 2**64}, {"maximum": 2**53 - 1}),
        ({"const": 2.0}, {"const": 2}),
        ({"format": "int8", "type": "integer"}, {"minimum": -128, "maximum": 127}),
        ({"type": "string", "format": "password"}, {}),
        ({"type": "string", "format": "hostname"}, {"format": "hostname", "maxLength": 253}),
        ({"maxItems": 10**9}, {}),
        ({"uniqueItems": True, "maxItems": 1}, {"maxItems": 1}),
        ({"properties": {"a": {}}}, {"type": "object"}),
        (
            {"additionalProperties": _INTEGER, "propertyNames": {"enum": ["a"]}, "type": "object"},
            {"properties": {"a": _INTEGER}, "additionalProperties": False},
        ),
        (
            {"additionalProperties": _INTEGER, "propertyNames": {"pattern": "^a"}},
            {"patternProperties": {"^a": _INTEGER}, "additionalProperties": False},
        ),
        ({"type": "object", "unevaluatedProperties": False}, {"additionalProperties": False}),
    ],
)
def test_what_becomes_exact(schema: Any, made: Any) -> None:
    found = _made(schema)
    assert found == made if not isinstance(made, dict) else made.items() <= found.items()


def test_keywords_of_one_group_stand_together() -> None:
    """The engine would else apply "additionalProperties" to an object without its patterns."""
    schema = {
        "patternProperties": {"^a": {}},
        "$ref": "#/$defs/x",
        "additionalProperties": False,
        "$defs": {"x": {}},
    }
    assert list(_made(schema)) == ["patternProperties", "additionalProperties", "$ref", "$defs"]
    schema = {"$ref": "#/$defs/x", "properties": {"a": {}}, "$defs": {"x": {}}}
    assert list(_made(schema))[:2] == ["$ref", "type"]


def test_alternatives_with_a_tag_are_told_apart_however_many_they_are() -> None:
    names = [f"kind {n}" for n in range(900)]
    options = [{"properties": {"kind": {"const": name}}, "required": ["kind"]} for name in names]
    assert len(_made({"oneOf": options})["anyOf"]) == 900
    constants = [{"const": name, "title": name.upper()} for name in names]
    assert len(_made({"oneOf": constants})["anyOf"]) == 900
    with pytest.raises(UsageError, match="alternatives 0 and 3 may both hold"):
        check_schema({"oneOf": [*options[:3], options[0]]})


def test_alternatives_of_which_one_holds_exclude_each_other() -> None:
    cat = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
    dog = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}, "required": ["kind"]}
    made = _made({"oneOf": [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/d"}], "$defs": {"c": cat, "d": dog}})
    assert "anyOf" in made
    assert "anyOf" in _made({"oneOf": [{"type": "string"}, {"type": "null"}, _INTEGER]})
    for options in (
        [_INTEGER, {"type": "number"}],
        [cat, {"type": "object"}],
        [{"const": 1}, {"enum": [1.0, 2]}],
        [{"required": ["a"]}, {"required": ["b"]}],
        [{**cat, "required": []}, {**dog, "required": []}],
    ):
        with pytest.raises(UsageError, match="at #/oneOf: alternatives 0 and 1 may both hold"):
            check_schema({"oneOf": options})


def test_an_optional_part_that_cannot_end_is_never_begun() -> None:
    endless = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}}, "required": ["a"]}
    made = _made({"properties": {"b": _INTEGER, "a": {"$ref": "#/$defs/e"}}, "$defs": {"e": endless}})
    assert made["properties"] == {"b": _INTEGER, "a": False}


def test_objects_get_no_names_beside_their_own() -> None:
    made = _made({"properties": {"a": {"properties": {"b": {}}}}, "required": ["c"]})
    assert made["additionalProperties"] is False and made["properties"]["c"] is True
    assert made["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in _made({"type": "object"})
    assert _made({"patternProperties": {"^a": {}}})["additionalProperties"] is False
    # Joined, each would exclude the other's.
    base = {"properties": {"a": {}}}
    for joined in (
        {"allOf": [{"$ref": "#/$defs/b"}, {"properties": {"c": {}}}], "$defs": {"b": base}},
        {"$ref": "#/$defs/b", "properties": {"c": {}}, "$defs": {"b": base}},
        {"anyOf": [base], "properties": {"c": {}}},
    ):
        assert "additionalProperties" not in json.dumps(_made(joined))
    made = _made({"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}], "$defs": {"b": base}})
    assert made["$defs"]["d0"]["additionalProperties"] is False


def test_a_constant_that_looks_like_a_reference_is_none() -> None:
    schema = {
        "$defs": {"a": {"const": {"$ref": "#/$defs/nothing"}}},
        "allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}],
    }
    assert _made(schema)["$defs"] == {"d0": schema["$defs"]["a"]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("pattern", "translated"),
    [
        (r"^\d+$", "^[0-9]+$"),
        (r"[\w-.]", r"[0-9A-Za-z_\-\.]"),
        ("[a&&b[c]", r"[a\&\&b\[c]"),
        ("[+--]", r"[\+-\-]"),
        ("[^]", "(?s:.)"),
        (".", r"[^\n\r\x{2028}\x{2029}]"),
        (r"\/\-\u0041\x42\cA\0", r"/\-\x{41}\x{42}\x{1}\x{0}"),
        (r"\ud83d\ude00", r"\x{1f600}"),
        ("a{b}", r"a\{b\}"),
        ("(?<year>a)", "(?:a)"),
        ("a+?", "a+"),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", r"^[\+\-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$"),
    ],
)
def test_regular_expressions_of_one_dialect(pattern: str, translated: str) -> None:
    assert translate_pattern(pattern) == translated


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bx",
        r"(a)\1",
        r"\k<a>",
        "(?i)a",
        "a++",
        "*a",
        "[]",
        "[a",
        "(a",
        "a)",
        "\\",
        r"\Z",
        r"\ud800",
        "a{1234567890}",
        "a{1,1234567890}",
        "x" * 5000,
    ],
)
def test_regular_expressions_that_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        translate_pattern(pattern)


def test_a_schema_file_as_editors_write_it(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(b'\xef\xbb\xbf{"type": "integer"}\r\n')
    assert read_schema(str(path)) == _INTEGER


def test_what_is_no_schema_file_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in {"": "it is a folder", "none": "there is no such file", "pipe": "no plain file"}.items():
        with pytest.raises(UsageError, match=f"--schema {tmp_path / name}: .*{why}"):
            read_schema(str(tmp_path / name))
