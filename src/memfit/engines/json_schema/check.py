"""A stranger's JSON schema → one that the engine enforces to the letter, or a refusal that names the place.

The engine gets a new schema: it has known keywords only, references into one flat list of definitions,
regular expressions of one dialect, and bounds that a double holds exactly. A keyword that cannot be enforced
as it stands may become stricter, so that an answer satisfies both schemas, but never laxer. Knows no engine.
"""

from __future__ import annotations

import difflib
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from memfit.engines.json_schema.closing import close_objects
from memfit.engines.json_schema.keywords import ANNOTATIONS, DIALECTS, ENFORCED, REFUSED
from memfit.engines.json_schema.meaning import Meaning
from memfit.engines.json_schema.refusal import Refusal, escaped
from memfit.engines.json_schema.rules import apply_rules
from memfit.errors import UsageError, readable
from memfit.strict_json import shown

__all__ = ["CheckedSchema", "check_schema"]

_MOST_BYTES = 2**20  # of the schema as JSON
_MOST_DEPTH = 64
_MOST_DEFINITIONS = 400  # the engine follows them by recursion
_MOST_SUBSCHEMAS = 5000
_REFERENCE_ESCAPE = re.compile("~(?![01])")
_INDEX = re.compile("[0-9]{1,9}")  # longer ones are in no list


@dataclass(frozen=True, kw_only=True)
class CheckedSchema:
    """A schema as the engine gets it."""

    schema: Mapping[str, Any] | bool
    places: tuple[tuple[str, Any], ...]  # JSON pointer in the original → what became of it, inner ones first
    where: str

    @property
    def text(self) -> str:
        return json.dumps(self.schema, ensure_ascii=False)

    def refusal(self, pointer: str, why: str) -> UsageError:
        return _refusal(self.where, pointer, why)


def check_schema(schema: Any, where: str = "the JSON schema") -> CheckedSchema:
    """`where` begins every message, and is the field of every error.

    Raises:
        UsageError: not a schema, or one with something that cannot be enforced; it is named by its pointer.
    """
    _check_size(schema, where)
    try:
        return _Checker(schema, where).check()
    except Refusal as refusal:
        raise _refusal(where, refusal.pointer, refusal.why) from None


def _refusal(where: str, pointer: str, why: str) -> UsageError:
    return UsageError(f"{where} at {readable(pointer, most=200, kept='')}: {why}", field=where)


def _check_size(schema: Any, where: str) -> None:
    """Refuse what is too large or too deep, before recursion walks through it."""
    layer, depth = [schema], 0
    while layer:
        if depth > 2 * _MOST_DEPTH:
            raise UsageError(f"{where} is nested more than {_MOST_DEPTH} deep", field=where)
        depth += 1
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise UsageError(f"{where} holds half of a character: \\u{half:04x} alone", field=where) from None
    if size > _MOST_BYTES:
        raise UsageError(f"{where} is larger than {_MOST_BYTES // 2**20} MiB", field=where)


@dataclass(eq=False)
class _Checker:
    root: Any
    where: str
    names: dict[str, str] = field(default_factory=dict)  # pointer of what is referred to → its name
    done: dict[str, Any] = field(default_factory=dict)  # name → what became of it
    places: list[tuple[str, Any]] = field(default_factory=list)
    choices: list[tuple[str, list[Any]]] = field(default_factory=list)  # oneOfs, to be proved
    count: int = 0

    def check(self) -> CheckedSchema:
        root = self.subschema(self.root, "#", 0)
        while len(self.done) < len(self.names):  # definitions refer to further ones
            for pointer, name in list(self.names.items()):
                if name not in self.done:
                    self.done[name] = self.subschema(self._target(pointer, pointer), pointer, 0)
        meaning = Meaning(root, self.done, self.places)
        meaning.check()
        for pointer, options in self.choices:
            if overlap := meaning.overlap(options, pointer):
                first, second = overlap
                raise Refusal(
                    pointer,
                    f"alternatives {first} and {second} may both hold, and oneOf wants exactly one; "
                    "use anyOf, or give each a required field with a constant of its own",
                )
        close_objects(root, self.done)
        if isinstance(root, dict) and self.done:
            root = {**root, "$defs": self.done}
        return CheckedSchema(schema=root, places=tuple(self.places), where=self.where)

    def subschema(self, value: Any, pointer: str, depth: int) -> Any:
        """What becomes of a schema; True and False as they are."""
        self.count += 1
        if self.count > _MOST_SUBSCHEMAS:
            raise Refusal(pointer, f"the schema has more than {_MOST_SUBSCHEMAS} parts")
        if depth > _MOST_DEPTH:
            raise Refusal(pointer, f"it is nested more than {_MOST_DEPTH} deep")
        if isinstance(value, bool):
            return value
        if not isinstance(value, dict):
            raise Refusal(pointer, f"got {shown(value)}, needed a schema: an object, true or false")
        self._check_words(value, pointer)
        made = apply_rules(value, pointer, depth, self)
        self.places.append((pointer, made))
        return made

    def _check_words(self, value: dict[str, Any], pointer: str) -> None:
        for word in value:
            if word in REFUSED:
                raise Refusal(f"{pointer}/{word}", REFUSED[word])
            if word in ENFORCED or word in ANNOTATIONS or word.startswith("x-"):
                continue
            if pointer == "#" and word == "components":
                continue  # where OpenAPI keeps what is referred to
            close = difflib.get_close_matches(word, sorted(ENFORCED | ANNOTATIONS | set(REFUSED)), 1)
            raise Refusal(
                f"{pointer}/{escaped(word)}",
                "it is no keyword that memfit knows" + (f"; did you mean {close[0]}?" if close else ""),
            )
        dialect = value.get("$schema")
        if dialect is not None and (not isinstance(dialect, str) or dialect.rstrip("#") not in DIALECTS):
            raise Refusal(f"{pointer}/$schema", f"got {shown(dialect)}, needed a draft from 4 to 2020-12")
        if pointer != "#" and "$id" in value:
            raise Refusal(f"{pointer}/$id", "only the whole schema may have one; leave it out")

    def reference(self, text: Any, pointer: str) -> str:
        """The name of what a $ref refers to."""
        target = self._located(text, pointer)
        if target not in self.names:
            if len(self.names) >= _MOST_DEFINITIONS:
                raise Refusal(pointer, f"the schema has more than {_MOST_DEFINITIONS} definitions")
            self._target(target, pointer)
            self.names[target] = f"d{len(self.names)}"
        return self.names[target]

    def referred(self, text: Any, pointer: str) -> tuple[Any, str]:
        """The schema that a $ref refers to, as it was written, and its pointer."""
        target = self._located(text, pointer)
        return self._target(target, pointer), target

    def _located(self, text: Any, pointer: str) -> str:
        """The JSON pointer of what a $ref refers to; of an $anchor where its schema lies."""
        if not isinstance(text, str):
            raise Refusal(pointer, f"got {shown(text)}, needed a text")
        before, _, fragment = text.partition("#")
        own = self.root.get("$id")
        if before and not (isinstance(own, str) and before == own.rstrip("#")):
            raise Refusal(
                pointer, f"{shown(text)} lies outside of the schema; write a reference into it: #/$defs/name"
            )
        fragment = urllib.parse.unquote(fragment)
        if not fragment or fragment.startswith("/"):
            return f"#{fragment}"
        found = [where for where, name in _anchors(self.root, "#") if name == fragment]
        if len(found) != 1:
            raise Refusal(pointer, f"{shown('#' + fragment)} is the $anchor of {len(found)} schemas")
        return found[0]

    def _target(self, target: str, pointer: str) -> Any:
        """What lies at a JSON pointer."""
        value = self.root
        for part in target.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if value is not self.root and isinstance(value, dict) and "$id" in value:
                raise Refusal(pointer, "it leads through a schema with an $id of its own")
            if _REFERENCE_ESCAPE.search(part):
                raise Refusal(pointer, f"{shown(target)} is no JSON pointer")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
                value = value[int(key)]
            else:
                raise Refusal(pointer, f"{shown(target)} is not in the schema")
        return value


def _anchors(value: Any, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name in ("$anchor", "$dynamicAnchor"):
            if isinstance(value.get(name), str):
                yield pointer, value[name]
        for key, inner in value.items():
            yield from _anchors(inner, f"{pointer}/{escaped(key)}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _anchors(inner, f"{pointer}/{index}")
