"""Reads model headers: GGUF today. Turns a file into a ModelSpec without reading weights."""

from memfit.headers.gguf_model import read_model

__all__ = ["read_model"]
