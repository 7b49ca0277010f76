"""What an answer has to follow, as bodies ask for it: OpenAI's response_format, or a JSON schema itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.openai.fields import read_object, require_known
from memfit.strict_json import refusal

__all__ = ["read_response_format", "read_schema"]


def read_response_format(value: Any, path: str) -> Mapping[str, Any] | None:
    """The JSON schema that a response_format asks for; None for text.

    Raises:
        UsageError: it is none, or has something that cannot be enforced.
    """
    wanted = read_object(value, path)
    kind = wanted.get("type")
    if kind == "text":
        require_known(wanted, {"type"}, path)
        return None
    if kind == "json_object":  # llama-server's has the schema beside the type
        require_known(wanted, {"type", "schema"}, path)
        schema = wanted.get("schema")
        return {"type": "object"} if schema is None else read_schema(schema, f"{path}.schema")
    if kind != "json_schema":
        raise refusal(f"{path}.type", kind, "text, json_object or json_schema")
    require_known(wanted, {"type", "json_schema"}, path)
    path += ".json_schema"
    described = read_object(wanted.get("json_schema"), path, "an object with a schema")
    require_known(described, {"name", "description", "strict", "schema"}, path)
    return read_schema(described.get("schema"), f"{path}.schema")


def read_schema(value: Any, path: str) -> Mapping[str, Any]:
    """A JSON schema that answers can be held to. Errors as `read_response_format`."""
    schema = read_object(value, path)
    from memfit.engines.json_schema import check_schema  # where one is asked for

    check_schema(schema, path)
    return schema
