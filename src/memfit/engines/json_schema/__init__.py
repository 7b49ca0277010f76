"""JSON schemas of answers: what memfit enforces, and what it refuses by keyword and JSON pointer."""

from memfit.engines.json_schema.check import CheckedSchema, check_schema

__all__ = ["CheckedSchema", "check_schema"]
