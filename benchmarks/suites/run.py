"""Test suites that others wrote, and hostile clients of our own, against memfit or llama-server.

    python benchmarks/suites/run.py --server memfit|llama-server [--seconds N] [SUITE…]

Each suite runs in an environment of its own, made on first use. Without names all of them run. What a server
cannot do by its nature, llama-server no Ollama paths for one, shows as failed.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

from limits import Limits
from results import Result, print_table

# Name → module, whose `run(server, limits)` gives Results. Imported when wanted, after the folder above is
# on the path, which has what benchmarks share.
SUITES = {
    "llama-server": "llama_server_tests",
    "openai": "openai_client",
    "anthropic": "anthropic_client",
    "llm-comply": "comply",
    "ollama": "ollama_client",
    "lm-eval": "lm_eval_client",
    "schemathesis": "openapi_document",
    "malformed": "malformed",
    "kills": "kills",
    "clients": "clients",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--server", choices=("memfit", "llama-server"), required=True)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name}", type=int, default=limit.default, help=f"[{limit.default}]")
    arguments = parser.parse_args()
    limits = Limits(**{limit.name: getattr(arguments, limit.name) for limit in fields(Limits)})
    names = arguments.suites or list(SUITES)
    if unknown := [name for name in names if name not in SUITES]:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    # A request to end goes through the blocks that end servers and tests.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    results: list[Result] = []
    for name in names:
        begun = time.perf_counter()
        found = _results(name, arguments.server, limits)
        told = ", ".join(f"{one.suite} {one.passed} of {one.total}" for one in found)
        print(f"{told} in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        results += found
    print_table(results, arguments.server)
    return int(not all(result.is_whole for result in results))


def _results(name: str, server: str, limits: Limits) -> list[Result]:
    """Of one suite; where it breaks, the others still run."""
    try:
        found: list[Result] = importlib.import_module(SUITES[name]).run(server, limits)
    except Exception as problem:
        why = f"{type(problem).__name__}: {problem}"
        found = [Result(suite=name, passed=0, total=1, failures=(why,))]
    return found


if __name__ == "__main__":
    sys.exit(main())
