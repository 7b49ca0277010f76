"""From MODEL, whatever it names, to its ModelSpec: the files here, or stand-ins for those that are not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import ModelError
from memfit.headers.gguf_model import read_model
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint, model_from_config
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes
from memfit.headers.safetensors import Checkpoint, read_checkpoint
from memfit.hub.source import is_remote_name, local_file
from memfit.hub.subprocess import ask

__all__ = ["ResolvedModel", "find_checkpoint", "find_weights", "resolve"]


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """MODEL made into files or headers, once per command."""

    source: str  # as the user named it
    path: Path  # the first GGUF file, or a checkpoint's config.json; of a remote model the header at least

    @property
    def is_checkpoint(self) -> bool:
        """A Hugging Face checkpoint; else GGUF."""
        return self.path.name == "config.json"

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """Of a GGUF model.

        Raises:
            ModelError: it cannot be read, or is no GGUF model.
        """
        if self.is_checkpoint:
            raise ModelError(
                f"{self.source} is a checkpoint for transformers, which memfit plan, run and bench take; "
                "this needs a GGUF file"
            )
        return read_model(self.path, source=self.source)


def resolve(model: str, say: Callable[[str], None] | None = None) -> ResolvedModel:
    """What MODEL names; of a remote model only the header is fetched.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelError: it cannot be read.
        UsageError: a malformed name.
    """
    path = Path(ask("paths", model, say)[0]) if is_remote_name(model) else local_file(model)
    return ResolvedModel(source=model, path=path)


def find_checkpoint(model: str, say: Callable[[str], None] | None = None) -> HfModel | None:
    """A Hugging Face checkpoint: from its config.json, and its safetensors' headers where there are any.

    None where MODEL names something else. Errors as `resolve`; ModelError where it writes no text.
    """
    found = resolve(model, say)
    if not found.is_checkpoint:
        return None
    path = found.path
    require_checkpoint_writes(model, path)
    config, weights = read_config(path), find_weights(path)
    return model_from_checkpoint(config, weights) if weights else model_from_config(config)


def find_weights(config: Path) -> Checkpoint | None:
    """The safetensors beside a config.json; None where there are none.

    Raises:
        ModelError: they are damaged, or a part is missing.
    """
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path := config.with_name(name)).is_file():
            return read_checkpoint(path)
    return None
