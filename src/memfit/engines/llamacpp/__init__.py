"""The llama.cpp engine: a lean worker process owns the C library; the parent only talks to it."""
