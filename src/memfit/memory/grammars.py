"""What the grammars of JSON schemas may hold together, where answers follow some.

    bytes = base + sequences * (each + between)

A grammar of an object with 40 properties takes 0.2 MiB, and 0.3 once it was used; one that is larger leaves
room for fewer in parallel. Between them lies what was freed and cannot be given back: 8 to 10 MiB in a batch
of 16 sequences with a schema each (benchmarks/schemas.py batch). What the vocabulary takes is not in it: that
is measured (engines/llamacpp/oracle.py).
"""

from __future__ import annotations

from memfit.units import MIB

__all__ = ["grammar_bytes", "grammar_limit_bytes"]

_BASE_BYTES = 4 * MIB
_EACH_BYTES = MIB // 2
_BETWEEN_BYTES = 3 * MIB // 4


def grammar_bytes(sequences: int) -> int:
    """What a plan counts; `sequences` are answers in parallel."""
    return grammar_limit_bytes(sequences) + sequences * _BETWEEN_BYTES


def grammar_limit_bytes(sequences: int) -> int:
    """What of it the grammars themselves may take."""
    return _BASE_BYTES + sequences * _EACH_BYTES
