"""One object of a config.json, whose fields are asked for one by one and checked as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from memfit.errors import HeaderError
from memfit.strict_json import shown

__all__ = ["ConfigSection"]

_LARGEST_COUNT = 2**31 - 1


class ConfigSection:
    """One object of the file, with its class's defaults. A null counts as absent, as upstream."""

    def __init__(self, path: Path, name: str, value: Any, defaults: dict[str, Any]) -> None:
        self.path, self._name = path, name
        if not isinstance(value, dict):
            raise HeaderError(path, name, f"got {shown(value)}, needed an object")
        self._value = {key: found for key, found in value.items() if found is not None}
        self._nulls = value.keys() - self._value.keys()
        self._defaults = defaults

    def part(
        self, key: str, default_type: str | None, defaults: Mapping[str, dict[str, Any]]
    ) -> ConfigSection | None:
        """A config inside this one, with the `defaults` of its model type; where the file has none, those
        alone if it needs one."""
        value = self._value.get(key)
        if value is None and default_type is None:
            return None
        found = ConfigSection(self.path, key, {} if value is None else value, {})
        model_type = found.text("model_type", default_type)
        value = found._value | {"model_type": model_type}
        return ConfigSection(self.path, key, value, defaults.get(model_type, {}))

    @property
    def values(self) -> Mapping[str, Any]:
        """What the file says; nulls left out."""
        return self._value

    def has(self, key: str) -> bool:
        return key in self._value

    def get(self, key: str) -> Any:
        """The field, else its default; a null hides the default of a field that upstream lets be null."""
        if key in self._nulls and key == "sliding_window":
            return None
        return self._value.get(key, self._defaults.get(key))

    def refuse(self, key: str, problem: str) -> NoReturn:
        raise HeaderError(self.path, f"{self._name}.{key}".strip("."), problem)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value.get(key, default)
        if value is None:
            self.refuse(key, "is missing")
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 100:
            self.refuse(key, f"got {shown(value)}, needed a short text")
        return value

    def count(self, key: str, default: int | None = None, *, low: int = 1, high: int = _LARGEST_COUNT) -> int:
        value = default if (found := self.get(key)) is None else found
        if value is None:
            self.refuse(key, "is missing")
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, f"got {shown(value)}, needed a whole number from {low} to {high}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"got {shown(value)}, needed true or false")
        return value

    def items(self, key: str, *, most: int) -> list[Any] | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > most:
            self.refuse(key, f"got {shown(value)}, needed a list of at most {most}")
        return value
