"""Sizes: the only place where bytes become text and text becomes bytes."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["GIB", "KIB", "MIB", "format_bytes", "format_rate", "parse_size"]

KIB = 1024
MIB = 1024**2
GIB = 1024**3

# Decimal and binary prefixes differ by 7 % at giga, so neither is guessed from the other. A letter alone is
# binary, as llama.cpp and Docker read it; with an i it is Kubernetes' spelling.
_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}{end}": 1024**power for power, letter in enumerate("KMGT", 1) for end in ("", "I", "IB")},
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([a-zA-Z]*|%)\s*", re.ASCII)
# What people write beside that: "+8GiB", ".5GiB", "1.GiB", "11,5GiB", "1_000", "1e9".
_NEARLY = re.compile(
    r"\s*\+?\s*(\d[\d_]{0,20}|(?=[.,]\d))(?:[.,](\d{0,18}))?(?:[eE]\+?(\d{1,2}))?\s*([a-zA-Z]*|%)\s*",
    re.ASCII,
)
_LARGEST_BYTES = 2**63 - 1


def parse_size(text: str, *, free_bytes: int | None = None) -> int:
    """Bytes of a size as users write it: `11.5GiB`, `11.5G`, `800MiB`, `11.5GB` (decimal), `1024`, `90%`.

    A percentage is of `free_bytes`, and an error where that is not given. Fractions of a byte are
    cut off, since a budget must not grow by rounding.

    Raises:
        ValueError: not a size, zero or below, or beyond 2^63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None and text.lstrip().startswith("-"):
        raise ValueError(f"{text!r} is not a size; a size must be above zero")
    if match is None:
        examples = "11.5GiB, 800MiB, 11.5GB, 1024 or 90%"
        raise ValueError(f"{text!r} is not a size; write {' or '.join(_spellings(text)) or examples}")
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


def _spellings(text: str) -> list[str]:
    """What a text that is no size may have meant, as it is written: one size or none; two after a comma with
    three digits, which differ by a thousand."""
    match = _NEARLY.fullmatch(text)
    if match is None or match[4].upper() not in ("%", *_UNITS):
        return []
    whole, rest, power, unit = (part or "" for part in match.groups())
    whole = whole.replace("_", "") or "0"
    numbers = [f"{Decimal(f'{whole}.{rest or 0}').scaleb(int(power or 0)).normalize():f}"]
    if "," in text and len(rest) == 3 and whole != "0" and not power:
        numbers.insert(0, whole + rest)
    return [spelling for number in numbers if _SIZE.fullmatch(spelling := f"{number}{unit}")]


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
