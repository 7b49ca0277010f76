"""From MODEL, whatever it names, to its ModelSpec: the files here, or stand-ins for those that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from memfit.headers.model import read_model
from memfit.headers.model_spec import ModelSpec
from memfit.headers.remote.apart import ask
from memfit.headers.source import is_remote_name, resolve

__all__ = ["find_file", "find_model"]


def find_model(model: str, say: Callable[[str], None] | None = None) -> ModelSpec:
    """The facts about the model that MODEL names; of a remote one only the header is fetched.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelError: it cannot be read, or is no GGUF model.
        UsageError: a malformed name.
    """
    return read_model(find_file(model, say), source=model)


def find_file(model: str, say: Callable[[str], None] | None = None) -> Path:
    """Its first file. Errors as `find_model`."""
    return Path(ask("paths", model, say)[0]) if is_remote_name(model) else resolve(model)
