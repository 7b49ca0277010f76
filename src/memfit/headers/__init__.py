"""Reads the headers of GGUF files and Hugging Face checkpoints into a ModelSpec; never reads weights."""

from memfit.headers.gguf_model import read_model

__all__ = ["read_model"]
