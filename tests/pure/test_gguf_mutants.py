"""Thousands of damaged headers, some with sparse tails, read in a process with little memory.

Each must give a ModelSpec or a ModelError, in bounded time and memory. The process that reads them
may allocate 200 MiB beyond its start (RLIMIT_AS), and dies with a traceback if one takes too long.
Run this file as a script with a folder and a seed range to repeat what a test did.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import (
    ARRAY,
    FLOAT32,
    INT32,
    STRING,
    UINT8,
    GgufFile,
    Tensor,
    Value,
    number,
    text,
    tiny_metadata,
    tiny_model,
    tiny_tensors,
)

from memfit.errors import ModelError
from memfit.headers import read_model

_MUTANTS = 2_400
_MEMORY_BYTES = 200 * 2**20
_SECONDS_EACH = 20  # against hangs, not a measurement: the machine may be busy

_EVIL_NUMBERS = (
    *(0, 1, 3, 7, 9, 13, 31, 63, 255, 1024, 1025, 65_535, 65_536, 10**6),
    *(2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**62, 2**63 - 1),
    *(2**63, 2**63 + 1, 2**64 - 32, 2**64 - 8, 2**64 - 1),
)


def test_damaged_headers_give_errors_or_models(tmp_path: Path) -> None:
    outcome = _run(tmp_path, "mutants", 0, _MUTANTS)
    assert sum(outcome.values()) == _MUTANTS
    # Were everything refused, or nothing, the mutants would test one branch only.
    assert outcome["ModelSpec"] > 100
    assert outcome["HeaderError"] > 1_000
    assert set(outcome) == {"ModelSpec", "HeaderError"}


def test_the_largest_headers_stay_within_memory(tmp_path: Path) -> None:
    outcome = _run(tmp_path, "giants", 0, len(_GIANTS))
    assert outcome == {"ModelSpec": 2, "HeaderError": len(_GIANTS) - 2}


def test_the_limits_of_this_test_do_bite(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="MemoryError"):
        _run(tmp_path, "glutton", 0, 1)


def _run(folder: Path, kind: str, first: int, last: int) -> dict[str, int]:
    """Read the files in a process of its own; how often each outcome came."""
    arguments = [sys.executable, __file__, str(folder), kind, str(first), str(last)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=500)
    if done.returncode != 0:
        pytest.fail(f"exit code {done.returncode}: {done.stderr[-3000:]}")
    outcome: dict[str, int] = json.loads(done.stdout)
    return outcome


def _mutant(seed: int) -> tuple[bytes, int]:
    """A damaged file, and the size to which a sparse tail stretches it (0: none)."""
    rng = random.Random(seed)
    content = bytearray(_base(rng).encode())
    for _ in range(rng.choice((0, 1, 1, 1, 2, 16))):
        if content:
            rng.choice(_DAMAGES)(rng, content)
    tail = rng.choice((0, 0, 2**20, 2**33, 2**40, 2**43))
    return bytes(content), tail


def _base(rng: random.Random) -> GgufFile:
    file = tiny_model(
        a__floats=Value(ARRAY, [0.5] * rng.choice((3, 1024, 1025, 3000)), FLOAT32),
        a__strings=Value(ARRAY, ["token", "", "x" * 300], STRING),
        general__alignment=number(rng.choice((1, 32, 64))),
    )
    changes: tuple[Callable[[], GgufFile], ...] = (
        *(lambda: file,) * 6,
        lambda: replace(file, version=rng.choice((0, 1, 2, 3, 3 << 24))),
        lambda: replace(file, tensor_count=rng.choice(_EVIL_NUMBERS)),
        lambda: replace(file, key_count=rng.choice(_EVIL_NUMBERS)),
        lambda: replace(file, tensors=(*file.tensors, _evil_tensor(rng)), data=bytes(9000)),
        lambda: replace(file, metadata=[*tiny_metadata().items(), _evil_item(rng)]),
        lambda: tiny_model(general__alignment=number(rng.choice(_EVIL_NUMBERS) % 2**32)),
    )
    return rng.choice(changes)()


def _evil_tensor(rng: random.Random) -> Tensor:
    shape = tuple(rng.choice(_EVIL_NUMBERS) for _ in range(rng.choice((0, 1, 2, 4, 5, 40))))
    name = rng.choice(("a", "", "output_norm.weight", "n" * 64, b"\xff\xc0", "a\0"))
    return Tensor(name, shape, rng.randrange(48), offset=rng.choice((None, *_EVIL_NUMBERS)))


def _evil_item(rng: random.Random) -> tuple[str | bytes, bytes]:
    value_type = rng.choice((STRING, ARRAY, rng.randrange(16), 2**32 - 1))
    value = struct.pack("<IIQ", value_type, rng.randrange(16), rng.choice(_EVIL_NUMBERS))
    if value_type == STRING:
        value = struct.pack("<IQ", value_type, rng.choice(_EVIL_NUMBERS))
    return rng.choice(("odd", "general.name", "", b"\xff\xc0", "llama.context_length")), value


def _flip_bits(rng: random.Random, content: bytearray) -> None:
    content[rng.randrange(_head(content))] ^= 1 << rng.randrange(8)


def _set_number(rng: random.Random, content: bytearray) -> None:
    where = rng.randrange(_head(content))
    content[where : where + 8] = struct.pack("<Q", rng.choice(_EVIL_NUMBERS))


def _cut_out(rng: random.Random, content: bytearray) -> None:
    where = rng.randrange(_head(content))
    del content[where : where + rng.choice((1, 4, 8, 100))]


def _repeat(rng: random.Random, content: bytearray) -> None:
    where = rng.randrange(_head(content))
    content[where:where] = content[where : where + rng.choice((1, 4, 8, 200))]


def _truncate(rng: random.Random, content: bytearray) -> None:
    del content[rng.randrange(len(content)) + 1 :]


def _damage_data(rng: random.Random, content: bytearray) -> None:
    content[-1 - rng.randrange(min(len(content), 8192))] = rng.randrange(256)


_DAMAGES = (
    *(_flip_bits, _flip_bits, _set_number, _set_number),
    *(_cut_out, _repeat, _truncate, _damage_data),
)


def _head(content: bytearray) -> int:
    """Where the interesting bytes end: the data behind them is zeros."""
    return max(1, len(content) - 8192)


def _many_arrays(count: int, element: int, length: int, content: bytes) -> GgufFile:
    value = struct.pack("<IIQ", ARRAY, element, length) + content
    metadata = {**tiny_metadata(), **{f"k{index}": value for index in range(count)}}
    return GgufFile(metadata, tiny_tensors())


def _many_tensors(count: int) -> GgufFile:
    return replace(tiny_model(), tensors=[Tensor(f"t{'n' * 50}{n}", (8,)) for n in range(count)])


def _large_string(length: int, first: str = "") -> GgufFile:
    return tiny_model(odd=text(first.encode() + b"\xff" * (length - len(first.encode()))))


# Headers that go to the limits with real bytes; the first two stay within them.
_GIANTS: tuple[Callable[[], GgufFile], ...] = (
    lambda: _many_tensors(65_536),
    lambda: _large_string(8 * 2**20),
    lambda: _large_string(16 * 2**20, first="\U0001f600"),  # four bytes a character in Python
    lambda: _large_string(16 * 2**20 + 1),
    lambda: _many_arrays(65_000, UINT8, 1024, bytes(1024)),
    lambda: _many_arrays(8_000, INT32, 1024, b"\xff\xff\0\0" * 1024),
    lambda: _many_arrays(1, STRING, 2**22 + 1, bytes(8 * 2**22 + 8)),
    lambda: _many_arrays(3, STRING, 2**21, bytes(8 * 2**21)),
)


def _write_files(folder: Path, kind: str, first: int, last: int) -> Iterator[Path]:
    path = folder / "mutant.gguf"
    for seed in range(first, last):
        if kind == "mutants":
            content, tail = _mutant(seed)
            path.write_bytes(content)
            if tail:
                os.truncate(path, tail)
            yield path
        else:
            yield folder / f"giant-{seed}.gguf"


def _main(folder: Path, kind: str, first: int, last: int) -> None:
    if kind == "giants":  # built by a child, so that their making does not count
        for seed in range(first, last):
            if os.fork() == 0:
                _GIANTS[seed]().write(folder / f"giant-{seed}.gguf")
                os._exit(0)
            assert os.wait()[1] == 0
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if kind == "glutton":
        bytearray(2 * _MEMORY_BYTES)
    outcome: dict[str, int] = {}
    for seed, path in enumerate(_write_files(folder, kind, first, last), first):
        faulthandler.dump_traceback_later(_SECONDS_EACH, exit=True)
        start = time.perf_counter()
        try:
            name = type(read_model(path)).__name__
        except ModelError as error:
            name = type(error).__name__
        except BaseException:
            print(f"{kind} {seed}", file=sys.stderr)
            raise
        print(f"{kind} {seed}: {time.perf_counter() - start:.3f} s, {name}", file=sys.stderr)
        outcome[name] = outcome.get(name, 0) + 1
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcome))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
