"""Sizes: the only place where bytes become text and text becomes bytes."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["GIB", "KIB", "MIB", "format_bytes", "format_rate", "parse_size"]

KIB = 1024
MIB = 1024**2
GIB = 1024**3

# Decimal and binary prefixes differ by 7 % at giga, so neither is guessed from the other.
_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 1024**4,
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Z]*|%)\s*", re.ASCII)
_LARGEST_BYTES = 2**63 - 1


def parse_size(text: str, *, free_bytes: int | None = None) -> int:
    """Bytes of a size as users write it: `11.5GiB`, `800MiB`, `11.5GB` (decimal), `1024`, `90%`.

    A percentage is of `free_bytes`, and an error where that is not given. Fractions of a byte are
    cut off, since a budget must not grow by rounding.

    Raises:
        ValueError: not a size, zero or below, or beyond 2^63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 11.5GiB, 800MiB, 11.5GB, 1024 or 90%")
    number, unit = Decimal(match[1]), match[2]
    if unit == "%":
        if free_bytes is None:
            raise ValueError(f"{text!r}: a percentage makes no sense here; write 11.5GiB or 800MiB")
        if number > 100:
            raise ValueError(f"{text!r} is more than 100% of what is free")
        size = int(number * free_bytes / 100)
    else:
        factor = _UNITS.get(unit.upper())
        if factor is None:
            raise ValueError(f"{text!r}: unknown unit {unit!r}; write GiB, MiB, KiB, GB, MB or %")
        size = int(number * factor)
    if size <= 0:
        raise ValueError(f"{text!r} is no memory at all; a size must be above zero")
    if size > _LARGEST_BYTES:
        raise ValueError(f"{text!r} is larger than any machine's memory")
    return size


def format_bytes(size_bytes: int) -> str:
    """`1.50 GiB`, `93.81 MiB`; the sign is kept. Below 10 KiB whole bytes are shown."""
    magnitude = abs(size_bytes)
    if magnitude >= GIB:
        return f"{size_bytes / GIB:.2f} GiB"
    if magnitude >= 10 * KIB:
        return f"{size_bytes / MIB:.2f} MiB"
    return f"{size_bytes} B"


def format_rate(tokens_per_second: float) -> str:
    """`142 tok/s`, `7.3 tok/s`, `0.82 tok/s`: three figures are more than any of them is worth."""
    if tokens_per_second >= 100:
        return f"{tokens_per_second:.0f} tok/s"
    if tokens_per_second >= 1:
        return f"{tokens_per_second:.1f} tok/s"
    return f"{tokens_per_second:.2f} tok/s"
