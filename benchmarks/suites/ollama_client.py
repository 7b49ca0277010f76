"""The ollama client in a scripted session: chat, streams, tools, formats, embeddings, the model's paths.

Its own tests talk to mocks; the session (ollama_session.py) is ours, the types that check are the client's.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from environments import CACHE, environment
from limits import Limits
from results import Check, Result, of_checks
from servers import running
from stand_ins import encoder

REQUIREMENT = "ollama==0.6.3"
_SESSION = Path(__file__).resolve().parent / "ollama_session.py"


def run(server: str, limits: Limits) -> list[Result]:
    python = environment("ollama", REQUIREMENT)
    with (
        running(server, context=4096, parallel=1) as one,
        running(server, str(encoder(CACHE / "models")), embeddings=True) as other,
    ):
        command: list[str | Path] = [python, _SESSION, one.base, other.base, one.alias]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    checks = [Check(name=name, problem=problem) for name, problem in json.loads(done.stdout)]
    return [of_checks("ollama", checks)]
