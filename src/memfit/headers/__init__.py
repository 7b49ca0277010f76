"""Reads model headers: GGUF today. Turns a file into a ModelSpec without reading weights."""
