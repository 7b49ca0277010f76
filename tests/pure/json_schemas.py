"""JSON schemas for tests: as programs write them, and for every keyword of draft 2020-12."""

# ruff: noqa: E501 - a schema a line

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pydantic
from pydantic import BaseModel, Field, create_model

__all__ = ["keywords", "programs"]


class Colour(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    street: str = Field(max_length=12, description="Street and number")
    city: str = Field(max_length=12)
    zip_code: str = Field(pattern=r"^\d{5}(-\d{4})?$")


class Person(BaseModel):
    """A person."""

    name: Annotated[str, Field(min_length=1, max_length=12)]
    age: Annotated[int, Field(ge=0, le=130)]
    mail: Optional[Annotated[str, Field(max_length=9)]] = None  # noqa: UP045 - as people write it
    home: Address
    colours: list[Colour] = Field(default_factory=list, max_length=3)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog", "wolf"]
    tricks: Annotated[list[Annotated[str, Field(max_length=5)]], Field(max_length=2)]


class Tree(BaseModel):
    value: Annotated[int, Field(ge=0, le=9)]
    children: Annotated[list[Tree], Field(max_length=2)] = []


class Pair(NamedTuple):
    left: bool
    right: Level


@dataclasses.dataclass
class Options:
    quick: bool
    level: Level = Level.LOW


class Strict(BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", title="Strict one")
    ok: bool


class Loose(BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    ok: bool


class Animal(Cat):
    """Inherits."""

    owner: Person | None = None


_Short = Annotated[str, Field(max_length=6)]
_FIELDS: dict[str, Any] = {
    "text": _Short,
    "pattern": Annotated[str, Field(pattern=r"^[A-Z]{2}\d{2,4}$")],
    "number": Annotated[float, Field(gt=0, lt=1)],
    "whole": Annotated[int, Field(gt=-10, lt=10)],
    "multiple": Annotated[int, Field(ge=0, le=100, multiple_of=5)],
    "flag": bool,
    "nothing": None,
    "literal": Literal["a", 2, True],
    "colour": Colour,
    "level": Level,
    "maybe": Optional[Colour],  # noqa: UP045
    "either": bool | Colour,
    "list": Annotated[list[bool], Field(min_length=1, max_length=3)],
    "lists": Annotated[list[Annotated[list[Level], Field(max_length=2)]], Field(max_length=2)],
    "tuple": tuple[bool, Level],
    "pair": Pair,
    "dataclass": Options,
    "by name": Annotated[dict[str, bool], Field(max_length=2)],
    "by colour": dict[Colour, bool],
    "by pattern": Annotated[dict[Annotated[str, Field(pattern="^[a-z]{1,3}$")], bool], Field(max_length=2)],
    "by literal": dict[Literal["x", "y"], Level],
    "money": Annotated[decimal.Decimal, Field(ge=0, le=1000)],
    "day": datetime.date,
    "moment": datetime.datetime,
    "hour": datetime.time,
    "span": datetime.timedelta,
    "id": uuid.UUID,
    "id4": pydantic.UUID4,
    "secret": Annotated[pydantic.SecretStr, Field(max_length=5)],
    "address": Address,
    "person": Person,
    "animal": Animal,
    "strict": Strict,
    "loose": Loose,
    "tree": Tree,
    "pet": Annotated[Cat | Dog, Field(discriminator="kind")],
    "pets": Annotated[list[Annotated[Cat | Dog, Field(discriminator="kind")]], Field(max_length=2)],
    "anything": Cat | Dog,
    "with default": Annotated[int, Field(ge=0, le=9, default=5, title="D", examples=[1])],
    "old": Annotated[bool, Field(deprecated=True, description="Old.")],
}


def pydantic_models() -> dict[str, Any]:
    """50 schemas of Pydantic."""
    found = {
        name: create_model("Model", field=(kind, ...)).model_json_schema() for name, kind in _FIELDS.items()
    }
    found["all"] = create_model(
        "All", **{f"f{n}": (kind, ...) for n, kind in enumerate(list(_FIELDS.values())[:12])}
    ).model_json_schema()
    for name in ("colour", "whole", "pair", "tree", "person", "pet", "level"):
        adapter = pydantic.TypeAdapter(Annotated[list[_FIELDS[name]], Field(max_length=2)])
        found[f"list of {name}"] = adapter.json_schema()
    found["aliases"] = create_model(
        "Aliased", field=(bool, Field(alias="camelCase")), other=(Level, Field(2, alias="öther-näme"))
    ).model_json_schema()
    found["optional"] = create_model(
        "Many", **{f"o{n}": (bool | None, None) for n in range(12)}
    ).model_json_schema()
    return found


def _tool(required: str, **properties: Any) -> Any:
    return {"type": "object", "properties": properties, "required": required.split()}


_TEXT = {"type": "string", "maxLength": 10}


def function_tools() -> dict[str, Any]:
    """25 parameters of functions, as they stand in tutorials of chat APIs."""
    strict = {"additionalProperties": False}
    unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    count = {"type": "integer", "minimum": 1, "maximum": 20}
    return {
        "weather": _tool("location", location={**_TEXT, "description": "City, e.g. Paris"}, unit=unit),
        "weather strict": {**_tool("location unit", location=_TEXT, unit=unit), **strict},
        "nullable unit": {
            **_tool("unit", unit={"type": ["string", "null"], "enum": ["c", "f", None]}),
            **strict,
        },
        "no parameters": _tool(""),
        "no parameters strict": {"type": "object", "properties": {}, "required": [], **strict},
        "search": _tool("query", query=_TEXT, limit={**count, "default": 10}, exact={"type": "boolean"}),
        "mail": _tool(
            "to subject", to={"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2}, subject=_TEXT
        ),
        "event": _tool(
            "when",
            when={"type": "string", "format": "date-time"},
            minutes={"type": "integer", "minimum": 5, "maximum": 480, "multipleOf": 5},
        ),
        "flight": _tool(
            "from to day",
            **{
                "from": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "to": {"type": "string", "pattern": "^[A-Z]{3}$"},
                "day": {"type": "string", "format": "date"},
            },
        ),
        "point": _tool(
            "lat lon",
            lat={"type": "number", "minimum": -90, "maximum": 90},
            lon={"type": "number", "minimum": -180, "maximum": 180},
        ),
        "polygon": _tool(
            "points",
            points={
                "type": "array",
                "minItems": 3,
                "maxItems": 4,
                "items": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "maximum": 99},
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        ),
        "filter": _tool(
            "field op value",
            field=_TEXT,
            op={"enum": ["eq", "ne", "lt", "gt"]},
            value={"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}, _TEXT]},
        ),
        "steps": {
            **_tool(
                "steps answer",
                answer=_TEXT,
                steps={"type": "array", "maxItems": 2, "items": {**_tool("why", why=_TEXT), **strict}},
            ),
            **strict,
        },
        "ui": {
            **_tool(
                "type label children",
                type={"enum": ["div", "button"]},
                label=_TEXT,
                children={"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
            ),
            **strict,
        },
        "definitions": {
            **_tool("a", a={"$ref": "#/$defs/step"}),
            "$defs": {"step": {**_tool("n", n=count), **strict}},
            **strict,
        },
        "moderation": {
            **_tool(
                "flag reason", flag={"type": "boolean"}, reason={"type": ["string", "null"], "maxLength": 8}
            ),
            **strict,
        },
        "grade": _tool("score", score={"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5}),
        "label": {"type": "string", "enum": ["positive", "negative", "neutral"]},
        "labels": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "yes": {"type": "boolean"},
        "sql": _tool(
            "table columns",
            table={"const": "users"},
            columns={"type": "array", "items": {"enum": ["id", "name"]}, "minItems": 1, "maxItems": 2},
        ),
        "emoji": _tool("mood", mood={"enum": ["👍", "👎"]}),
        "paths": _tool("path", path={"enum": ["C:\\temp", "/tmp", "a\nb", 'say "x"']}),
        "quoted names": _tool(
            "", **{'a"b': {"type": "boolean"}, "c\\d": {"type": "boolean"}, "e/f~g": {"type": "null"}}
        ),
        "40 properties": _tool(
            " ".join(f"p{n}" for n in range(40)), **{f"p{n}": {"type": "boolean"} for n in range(40)}
        ),
    }


def typescript() -> dict[str, Any]:
    """25 exports: typescript-json-schema, ts-json-schema-generator and zod."""
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
    draft2020 = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    closed = {"additionalProperties": False}
    shape = [
        {
            **_tool(
                "kind radius",
                kind={"type": "string", "const": "circle"},
                radius={"type": "number", "minimum": 0, "maximum": 9},
            ),
            **closed,
        },
        {
            **_tool(
                "kind side",
                kind={"type": "string", "const": "square"},
                side={"type": "integer", "minimum": 0, "maximum": 9},
            ),
            **closed,
        },
    ]
    email = (
        r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    )
    safe = 9007199254740991
    return {
        "interface": {**draft7, **_tool("a", a={"type": "boolean"}, b=_TEXT), "defaultProperties": []},
        "definitions": {
            **draft7,
            "$ref": "#/definitions/A",
            "definitions": {
                "A": {**_tool("b", b={"$ref": "#/definitions/B"}), **closed},
                "B": {"enum": ["x", "y"], "type": "string"},
            },
        },
        "generic name": {
            **draft7,
            "$ref": "#/definitions/Box%3Cnumber%3E",
            "definitions": {
                "Box<number>": {**_tool("v", v={"type": "integer", "minimum": 0, "maximum": 9}), **closed}
            },
        },
        "union": {**draft7, "anyOf": shape},
        "tuple": {
            **draft7,
            "type": "array",
            "items": [{"type": "boolean"}, {"enum": [1, 2]}],
            "minItems": 2,
            "maxItems": 2,
        },
        "tuple with rest": {
            **draft7,
            "type": "array",
            "items": [{"type": "boolean"}],
            "minItems": 1,
            "additionalItems": {"type": "null"},
            "maxItems": 3,
        },
        "tuple alone": {
            **draft7,
            "type": "array",
            "items": [{"type": "boolean"}],
            "minItems": 1,
            "additionalItems": False,
        },
        "intersection": {
            **draft7,
            "allOf": [_tool("a", a={"type": "boolean"}), _tool("b", b={"type": "null"})],
        },
        "record": {
            **draft7,
            "type": "object",
            "additionalProperties": {"type": "boolean"},
            "maxProperties": 2,
        },
        "partial": {
            **draft7,
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}},
            **closed,
        },
        "never": {**draft7, **_tool("a", a={"type": "boolean"}, b={"not": {}}), **closed},
        "numeric enum": {**draft7, "type": "number", "enum": [0, 1, 2]},
        "mixed enum": {**draft7, "enum": [0, "a", None, True]},
        "date": {**draft7, **_tool("d", d={"type": "string", "format": "date-time"}), **closed},
        "order": {
            **draft7,
            **_tool("a", b={"type": "boolean"}, a={"type": "boolean"}),
            "propertyOrder": ["b", "a"],
        },
        "recursive": {
            **draft7,
            "$ref": "#/definitions/L",
            "definitions": {
                "L": {**_tool("n", n={"anyOf": [{"$ref": "#/definitions/L"}, {"type": "null"}]}), **closed}
            },
        },
        "zod object": {
            **draft2020,
            **_tool(
                "a n",
                a={"type": "string", "minLength": 1, "maxLength": 8},
                n={"type": "integer", "minimum": -safe, "maximum": safe},
            ),
            **closed,
        },
        "zod discriminated": {**draft2020, "oneOf": shape},
        "zod email": {**draft2020, "type": "string", "format": "email", "pattern": email, "maxLength": 20},
        "zod record": {
            **draft2020,
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "boolean"},
            "maxProperties": 2,
        },
        "zod record of names": {
            **draft2020,
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["x", "y"]},
            "additionalProperties": {"type": "boolean"},
            "required": ["x", "y"],
        },
        "zod nullable": {**draft2020, "anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "zod cuid": {**draft2020, "type": "string", "format": "cuid", "pattern": "^[cC][^\\s-]{8,9}$"},
        "zod uuid": {
            **draft2020,
            "type": "string",
            "format": "uuid",
            "pattern": "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}|00000000-0000-0000-0000-000000000000)$",
        },
        "zod lazy": {
            **draft2020,
            "$ref": "#/$defs/schema0",
            "$defs": {
                "schema0": {
                    "id": "schema0",
                    **_tool("v", v={"type": "boolean"}, next={"$ref": "#/$defs/schema0"}),
                    **closed,
                }
            },
        },
    }


def openapi() -> dict[str, Any]:
    """20 of OpenAPI 3.0 and 3.1, each the whole document's components with one of them asked for."""
    components: dict[str, Any] = {
        "Id": {"type": "integer", "format": "int64", "minimum": 1, "maximum": 99, "example": 10},
        "Small": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 9},
        "Byte": {"type": "integer", "format": "uint8"},
        "Double": {"type": "number", "format": "double", "minimum": 0, "maximum": 5},
        "Open": {
            "type": "integer",
            "minimum": 0,
            "exclusiveMinimum": True,
            "maximum": 5,
            "exclusiveMaximum": True,
        },
        "Status": {"type": "string", "enum": ["placed", "approved"], "x-enum-varnames": ["P", "A"]},
        "MaybeStatus": {"type": "string", "enum": ["placed", None], "nullable": True},
        "Category": {
            "type": "object",
            "properties": {"id": {"$ref": "#/components/schemas/Id"}, "name": _TEXT},
            "xml": {"name": "category"},
        },
        "Tag": {"type": "object", "required": ["name"], "properties": {"name": {**_TEXT, "nullable": True}}},
        "Pet": {
            "type": "object",
            "required": ["name", "photoUrls"],
            "properties": {
                "id": {"$ref": "#/components/schemas/Id"},
                "name": _TEXT,
                "category": {"$ref": "#/components/schemas/Category"},
                "photoUrls": {"type": "array", "items": _TEXT, "maxItems": 1, "xml": {"wrapped": True}},
                "status": {"$ref": "#/components/schemas/Status"},
            },
        },
        "Base": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["cat", "dog"]}},
            "discriminator": {"propertyName": "type", "mapping": {"cat": "#/components/schemas/Cat"}},
        },
        "Cat": {
            "allOf": [
                {"$ref": "#/components/schemas/Base"},
                {
                    "type": "object",
                    "properties": {
                        "lives": {"$ref": "#/components/schemas/Small"},
                        "type": {"enum": ["cat"]},
                    },
                    "required": ["lives"],
                },
            ]
        },
        "Dog": {
            "allOf": [
                {"$ref": "#/components/schemas/Base"},
                {"type": "object", "properties": {"type": {"enum": ["dog"]}}},
            ]
        },
        "Either": {
            "oneOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}],
            "discriminator": {"propertyName": "type"},
        },
        "MaybeCategory": {"allOf": [{"$ref": "#/components/schemas/Status"}], "nullable": True},
        "File": {"type": "string", "format": "binary", "maxLength": 5},
        "Encoded": {"type": "string", "format": "byte", "maxLength": 12},
        "Error": {
            "type": "object",
            "required": ["code"],
            "properties": {
                "code": {"$ref": "#/components/schemas/Small"},
                "message": {**_TEXT, "readOnly": True},
            },
            "externalDocs": {"url": "https://example.org"},
        },
        "Page": {
            "type": "object",
            "required": ["items"],
            "properties": {
                "items": {"type": "array", "maxItems": 2, "items": {"$ref": "#/components/schemas/Tag"}},
                "next": {"type": "string", "format": "uri", "nullable": True, "maxLength": 20},
            },
        },
        "Map": {
            "type": "object",
            "additionalProperties": {"$ref": "#/components/schemas/Small"},
            "maxProperties": 2,
        },
    }
    return {
        name: {"$ref": f"#/components/schemas/{name}", "components": {"schemas": components}}
        for name in components
    }


def programs() -> dict[str, Any]:
    return {
        f"{source.__name__}: {name}": schema
        for source in (pydantic_models, function_tools, typescript, openapi)
        for name, schema in source().items()
    }


def _typed(kind: str, **words: Any) -> Any:
    return {"type": kind, **words}


def keywords() -> dict[str, tuple[Any, str | None]]:
    """80 schemas over every keyword of draft 2020-12, each with the pointer where it is refused, if it is."""
    integer = _typed("integer", minimum=0, maximum=99)
    text = _typed("string", maxLength=5)
    closed = {"additionalProperties": False}
    enforced: dict[str, Any] = {
        "type": _typed("boolean"),
        "types": {"type": ["null", "boolean"]},
        "const": {"const": {"a": [1, None, "é\n\""]}},
        "const number": {"const": 1.5},
        "const zero": {"const": -0.0},
        "enum": {"enum": ["a\nb", "c\td", "\\", '"', "👍", 0.1, None, [], {}]},
        "enum of a type": _typed("integer", enum=[1, "a", 2.0, 3.5]),
        "anyOf": {"anyOf": [integer, text]},
        "anyOf beside": {**_typed("object", properties={"a": integer}), "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "maxProperties": 1, "additionalProperties": integer, "properties": {}},
        "oneOf": {"oneOf": [integer, text, {"type": "null"}]},
        "oneOf of constants": {"oneOf": [{"const": 1, "title": "One"}, {"const": "1"}, {"const": True}]},
        "oneOf by a property": {"oneOf": [_typed("object", properties={"k": {"const": n}, "v": integer}, required=["k"], **closed) for n in range(3)]},
        "allOf": {"allOf": [_typed("integer", minimum=3), {"maximum": 7}, {"multipleOf": 2}]},
        "allOf of objects": {"allOf": [_typed("object", properties={"a": integer}, required=["a"]), {"properties": {"b": text}, "required": ["b"]}], "maxProperties": 2},
        "allOf of texts": {"type": "string", "allOf": [{"pattern": "^[a-f]+$"}, {"minLength": 2}, {"maxLength": 4}]},
        "not nothing": {"anyOf": [{"not": {}}, integer]},
        "not of false": {"not": False, **integer},
        "$ref": {"$ref": "#/$defs/a", "$defs": {"a": integer}},
        "$ref with siblings": {"$ref": "#/$defs/a", "minimum": 40, "$defs": {"a": integer}},
        "$ref to a property": {**_typed("object", properties={"a": text, "b": {"$ref": "#/properties/a"}}, required=["a", "b"]), **closed},
        "$ref in circles": {"$defs": {"n": _typed("object", properties={"k": _typed("array", items={"$ref": "#/$defs/n"}, maxItems=1)}, required=["k"], **closed)}, "$ref": "#/$defs/n"},
        "$anchor": {"$ref": "#here", "$defs": {"a": {"$anchor": "here", **integer}}},
        "$id": {"$id": "https://example.org/s", "$ref": "https://example.org/s#/$defs/a", "$defs": {"a": integer}},
        "properties": _typed("object", properties={"a": integer, "b": text}),
        "required": _typed("object", properties={"a": integer}, required=["a", "b"], additionalProperties=text),
        "required alone": _typed("object", required=["x"], maxProperties=1, additionalProperties={"type": "null"}),
        "additionalProperties": _typed("object", additionalProperties=integer, maxProperties=2),
        "additionalProperties beside": _typed("object", properties={"a": text}, required=["a"], additionalProperties=integer, maxProperties=2),
        "patternProperties": _typed("object", patternProperties={"^x": integer, "^y": text}, additionalProperties=False, maxProperties=2),
        "patternProperties apply to named ones": _typed("object", properties={"xa": {"minimum": 50}}, patternProperties={"^x": integer}, required=["xa"], **closed),
        "patternProperties beside a reference": {"patternProperties": {"^x": integer}, "$ref": "#/$defs/o", **closed, "maxProperties": 2, "$defs": {"o": {"type": "object"}}},
        "propertyNames": _typed("object", propertyNames={"pattern": "^[a-c]{1,2}$"}, additionalProperties=integer, maxProperties=2),
        "propertyNames of a length": _typed("object", propertyNames={"maxLength": 2}, additionalProperties=integer, maxProperties=1),
        "propertyNames listed": _typed("object", propertyNames={"enum": ["a", "b"]}, additionalProperties=integer),
        "minProperties": _typed("object", minProperties=1, maxProperties=2, additionalProperties=integer),
        "minProperties of named ones": _typed("object", properties={"a": integer, "b": integer}, minProperties=1, **closed),
        "maxProperties": _typed("object", maxProperties=1, additionalProperties=integer),
        "maxProperties 0": _typed("object", maxProperties=0),
        "unevaluatedProperties": _typed("object", properties={"a": integer}, unevaluatedProperties=False),
        "items": _typed("array", items=integer, maxItems=3),
        "items false": _typed("array", items=False),
        "prefixItems": _typed("array", prefixItems=[integer, text], items=False),
        "prefixItems and items": _typed("array", prefixItems=[text], items=integer, minItems=2, maxItems=3),
        "unevaluatedItems": _typed("array", prefixItems=[integer], unevaluatedItems=False),
        "minItems": _typed("array", items=integer, minItems=2, maxItems=4),
        "minItems without items": _typed("array", minItems=2, maxItems=2),
        "maxItems 0": _typed("array", maxItems=0),
        "uniqueItems false": _typed("array", uniqueItems=False, items=integer, maxItems=2),
        "minContains 0": _typed("array", contains=integer, minContains=0, maxItems=1, items=text),
        "minLength": _typed("string", minLength=3, maxLength=5),
        "maxLength counts characters": _typed("string", minLength=1, maxLength=1),
        "pattern": _typed("string", pattern=r"^[0-9]+\.[0-9]+$", maxLength=8),
        "pattern anywhere": _typed("string", pattern=r"a\d", maxLength=6),
        "pattern with a line end": _typed("string", pattern="^[ab]\\n$"),
        "pattern of quotes": _typed("string", pattern='^["\\\\/]{2}$'),
        "minimum": _typed("integer", minimum=-5, maximum=5),
        "minimum of numbers": _typed("number", minimum=-1.25, maximum=2.5),
        "exclusive": _typed("number", exclusiveMinimum=0, exclusiveMaximum=1),
        "exclusive whole": _typed("integer", exclusiveMinimum=-3, exclusiveMaximum=3),
        "maximum beyond doubles": _typed("integer", minimum=2**53 - 9, maximum=2**64),
        "multipleOf": _typed("integer", multipleOf=7, minimum=-70, maximum=70),
        "multipleOf 0.01": _typed("number", multipleOf=0.01, minimum=0, maximum=1),
        "contentEncoding": _typed("string", contentEncoding="base64", maxLength=8),
        "annotations": {"title": "t", "description": "d", "default": 1, "examples": [2], "deprecated": True, "readOnly": False, "writeOnly": False, "$comment": "c", **integer},
        **{f"format {name}": _typed("string", format=name, maxLength=40) for name in ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "duration")},
    }  # fmt: skip
    refused: dict[str, tuple[Any, str]] = {
        "not": ({"not": {"const": 1}}, "#/not"),
        "if": ({"properties": {"a": {"if": {}, "else": {}}}}, "#/properties/a/if"),
        "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, "#/dependentRequired"),
        "dependentSchemas": ({"dependentSchemas": {"a": {}}}, "#/dependentSchemas"),
        "uniqueItems": ({"items": {"uniqueItems": True}}, "#/items/uniqueItems"),
        "contains": ({"contains": {}}, "#/contains"),
        "unevaluatedItems": ({"anyOf": [{}], "unevaluatedItems": False}, "#/unevaluatedItems"),
        "$dynamicRef": ({"$dynamicRef": "#a"}, "#/$dynamicRef"),
        "contentSchema": ({"contentSchema": {}}, "#/contentSchema"),
    }
    return {
        **{name: (schema, None) for name, schema in enforced.items()},
        **{f"{name} is refused": one for name, one in refused.items()},
    }
