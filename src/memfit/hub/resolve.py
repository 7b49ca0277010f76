"""MODEL, whatever it names, made into files once per command: a ResolvedModel.

What is on this disk is found by local_model.py. Of what is on a network, remote_model.py finds what was
downloaded before, or fetches the headers only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import ModelError
from memfit.headers.gguf_model import read_model
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import HfModel, model_from_checkpoint, model_from_config
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import require_checkpoint_writes
from memfit.headers.safetensors import find_weights
from memfit.hub.header_only import is_header_only
from memfit.hub.local_model import is_remote_name, local_path
from memfit.hub.subprocess import ask

__all__ = ["ResolvedModel", "resolve"]


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """The files that a MODEL stands for."""

    source: str  # MODEL as the user typed it
    path: Path  # the first GGUF file, or a checkpoint's config.json
    is_checkpoint: bool  # a Hugging Face checkpoint; else GGUF
    is_header_only: bool  # the weights were not downloaded

    def read_spec(self) -> ModelSpec:
        """The facts in a GGUF model's header.

        Raises:
            ModelError: it cannot be read, or is a checkpoint.
        """
        if self.is_checkpoint:
            raise ModelError(
                f"{self.source} is a checkpoint for transformers, which memfit plan, run and bench take; "
                "this needs a GGUF file"
            )
        return read_model(self.path, source=self.source)

    def read_hf_model(self) -> HfModel:
        """The tensors of a checkpoint; by its config.json alone where no safetensors lie beside it.

        Raises:
            ModelError: it cannot be read, or writes no text.
        """
        require_checkpoint_writes(self.source, self.path)
        config, weights = read_config(self.path), find_weights(self.path)
        return model_from_checkpoint(config, weights) if weights else model_from_config(config)


def resolve(model: str, say: Callable[[str], None] | None = None) -> ResolvedModel:
    """Find the files of MODEL; of a model on a network that is not here, fetch the headers.

    Raises:
        ModelNotFoundError: nothing is there.
        ModelError: it is no model, or the network fails.
        UsageError: a malformed name, or one that several models share.
    """
    path = Path(ask("paths", model, say)[0]) if is_remote_name(model) else local_path(model)
    return ResolvedModel(
        source=model, path=path, is_checkpoint=path.name == "config.json", is_header_only=is_header_only(path)
    )
