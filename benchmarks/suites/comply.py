"""llm-comply: answers checked offline against the published documents of OpenAI's and Anthropic's APIs.

Left out of what can be reached: images, without a vision model; reasoning and thinking, which the demo does
not do; an error where `model` is missing, where llama-server's own tests want an answer.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from environments import environment
from limits import Limits
from results import Check, Result, of_checks
from servers import Server, running

REQUIREMENT = "llm-comply==0.5.0"
FORMATS = {
    "openai-chat": (),
    "open-responses": (),
    "anthropic": ("--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"),
}
# Parts of the names of those tests: they are reported, and not expected.
OUT_OF_REACH = ("image", "reasoning", "thinking", "error-handling", "missing-model")


def run(server: str, limits: Limits) -> list[Result]:
    # By other names the suite leaves out what it asks of models that reason.
    with running(server, context=2048, parallel=1, alias="gpt-5") as one:
        return [_format(one, name, options) for name, options in FORMATS.items()]


def _format(server: Server, name: str, options: tuple[str, ...]) -> Result:
    program = environment("llm-comply", REQUIREMENT).parent / "llm-comply"
    command: list[str | Path] = [program, "--format", name, "-u", f"{server.base}/v1", "-k", "none"]
    command += ["-m", server.alias]
    done = subprocess.run([*command, *options, "--json"], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError(f"llm-comply said nothing: {done.stderr[-500:]}")
    checks = [
        Check(name=one["id"], problem="" if one["status"] == "passed" else _why(one))
        for one in json.loads(done.stdout)["results"]
    ]
    apart = [check.name for check in checks if any(part in check.name for part in OUT_OF_REACH)]
    return of_checks(f"llm-comply {name}", checks, f"out of reach by their names: {', '.join(apart)}")


def _why(result: dict[str, object]) -> str:
    errors = result.get("errors") or [result["status"]]
    assert isinstance(errors, list)
    return "; ".join(str(error)[:120] for error in errors[:3])
