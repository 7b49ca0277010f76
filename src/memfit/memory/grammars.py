"""What the grammars of JSON schemas may hold together, where answers follow some.

    bytes = base + sequences * each

A grammar of an object with 40 properties takes 0.2 MiB, and 0.3 once it was used; one that is larger leaves
room for fewer side by side. What the vocabulary takes is not in it: the oracle holds one and is measured.
"""

from __future__ import annotations

from memfit.units import MIB

__all__ = ["grammar_bytes"]

_BASE_BYTES = 4 * MIB
_EACH_BYTES = MIB // 2


def grammar_bytes(sequences: int) -> int:
    """`sequences`: answers side by side."""
    return _BASE_BYTES + sequences * _EACH_BYTES
