"""Random sets of valid options: commands as a user might type them, around the sizes where plans change.

Made of a seed alone, so that a set that fails is made again by its number.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MIB = 1024**2
_PROMPT = "The capital of France is"
# Per model the MiB between which its weights, its copies and its caches come to fit.
_CRITICAL = {"demo": (100, 450), "gemma": (200, 800), "checkpoint": (250, 1000)}


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    command: str
    model: str  # a key of _CRITICAL
    options: tuple[str, ...]
    lines: tuple[str, ...] = ()  # of batch's input
    saved: bool = False  # planned first, and run by that plan
    as_json: bool = True


def option_set(seed: int, number: int) -> OptionSet:
    chance = random.Random(f"{seed} {number}")
    command = chance.choices(["plan", "run", "bench", "batch"], [10, 7, 2, 2])[0]
    model = chance.choices(list(_CRITICAL), [5, 3, 1 if command == "batch" else 3])[0]
    options = [*_budget(chance, model), *_workload(chance, command, model), *_engine(chance, model, command)]
    if command != "plan":
        options += ["--hard-cap"] * _happens(chance, 0.1)
    if command in ("run", "batch"):
        options += _sampling(chance)
        options += ["--raw"] * _happens(chance, 0.3)
    if command == "run":
        options += ["-p", chance.choice([_PROMPT, _PROMPT * 40, "é\N{SNOWMAN}", "a"])]
        options += ["--system", "Answer in French."] * _happens(chance, 0.1)
    if command == "plan":
        options += ["--explain"] * _happens(chance, 0.2)
        options += ["--machine", chance.choice(["pi-8gb", "rtx3060-12gb"])] * _happens(chance, 0.1)
    lines = tuple(_line(chance, number) for number in range(chance.randint(1, 4)))
    return OptionSet(
        command=command,
        model=model,
        options=tuple(options),
        lines=lines if command == "batch" else (),
        saved=command in ("run", "bench") and _happens(chance, 0.1),
        as_json=_happens(chance, 0.8),
    )


def _happens(chance: random.Random, share: float) -> bool:
    return chance.random() < share


def _maybe(chance: random.Random, share: float, name: str, *values: Any) -> list[str]:
    return [name, str(chance.choice(values))] if _happens(chance, share) else []


def _budget(chance: random.Random, model: str) -> list[str]:
    low, high = _CRITICAL[model]
    size = low * (high / low) ** chance.random()
    texts = [f"{size:.0f}MiB"] * 8 + [f"{size * _MIB:.0f}", "90%", "3GiB", "70MiB", f"{size / 1024:.3f}GiB"]
    return [*_maybe(chance, 0.85, "--ram", *texts), *(["--no-disk"] * _happens(chance, 0.25))]


def _workload(chance: random.Random, command: str, model: str) -> list[str]:
    contexts = (1, 7, 32, 100, 255, 256, 257, 512, 512, 1000, 1024, 2048, 2048, 4096, 8192, 20_000, 100_000)
    short = (1, 5, 33, 100, 512, 700)
    bench = command == "bench"
    likely = 0.03 if model == "checkpoint" else 1.0  # transformers refuses them, as it is to
    return [
        *_maybe(chance, 0.7, "--ctx", *contexts),
        *_maybe(chance, 0.35 * likely, "--parallel", 1, 2, 2, 3, 4, 8, 17, 64, 256),
        *_maybe(chance, 0.5 * likely, "--kv-type", "auto", "f16", "q8_0", "q4_0"),
        *_maybe(chance, 0.3, "--threads", 1, 1, 2, 3),
        *_maybe(chance, 0.5 * likely, "--repack", "auto", "on", "off"),
        *_maybe(chance, 1.0 if bench else 0.2, "--prompt-tokens", *short[: 3 if bench else None]),
        *_maybe(chance, 1.0 if bench else 0.2, "--gen-tokens", *short[:2] if bench else short),
        *_maybe(chance, 0.15, "--depth", 0, 1, 100, 300),
    ]


def _engine(chance: random.Random, model: str, command: str) -> list[str]:
    if command == "batch":
        return []
    likely = model == "checkpoint"
    types = ("fp32", "bf16", "fp16", "int8", "nf4", "fp4")
    options = _maybe(chance, 0.75 if likely else 0.03, "--load-in", *types)
    options += ["--double-quant"] * _happens(chance, 0.2 if options else 0.02)
    return options + _maybe(chance, 0.1, "--engine", "auto", "llamacpp" if not likely else "transformers")


def _sampling(chance: random.Random) -> list[str]:
    return [
        *("--max-tokens", str(chance.randint(1, 6))),
        *_maybe(chance, 0.4, "--temperature", 0, 0.7, 1.5, 100),
        *_maybe(chance, 0.2, "--top-k", 0, 1, 40, 2**31 - 1),
        *_maybe(chance, 0.2, "--top-p", 0.01, 0.9, 1),
        *_maybe(chance, 0.2, "--min-p", 0, 0.1, 1),
        *_maybe(chance, 0.2, "--repeat-penalty", 0.5, 1.1, 100),
        *_maybe(chance, 0.2, "--seed", 0, 1, 2**32 - 1),
        *_maybe(chance, 0.2, "--stop", " ", "Paris", "\n"),
    ]


def _line(chance: random.Random, number: int) -> str:
    good: list[dict[str, Any]] = [
        {"prompt": _PROMPT},
        {"prompt": _PROMPT, "max_tokens": 2, "temperature": 0},
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3},
        {"prompt": "one two " * 300, "max_tokens": 1},
        {"prompt": "x", "top_p": 7},  # fails alone
    ]
    return json.dumps({"id": str(number), **chance.choice(good)})


def arguments(one: OptionSet, model: str, folder: Path) -> list[str]:
    """The command line; a batch's files are in `folder`."""
    words = [one.command, model, *one.options, *(["--json"] * one.as_json)]
    if one.command == "batch":
        (folder / "in.jsonl").write_text("\n".join(one.lines) + "\n", encoding="utf-8")
        words += ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return words
