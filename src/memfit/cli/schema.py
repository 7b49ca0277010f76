"""The option `--schema FILE`: reads a JSON schema, for every command that has the option."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from memfit.errors import UsageError

__all__ = ["read_schema", "schema_option"]

schema_option = click.option("--schema", metavar="FILE", help="A JSON schema that every answer must satisfy.")


def read_schema(path: str | None) -> Mapping[str, Any] | None:
    """The schema in a file, checked; None without one.

    Raises:
        UsageError: there is no schema, or it has something that cannot be enforced.
    """
    if path is None:
        return None
    from memfit.engines.json_schema import check_schema
    from memfit.strict_json import parse_json, read_bytes

    where = f"--schema {path}"
    try:
        schema = parse_json(read_bytes(Path(path), where), where)
        if not isinstance(schema, dict):
            raise UsageError(f"{where}: a JSON schema is an object")
        check_schema(schema, where)
    except UsageError as error:
        raise UsageError(str(error), field="--schema") from None
    return schema
