"""lm-eval through the server, by the server's own tokenizer, against memfit's scores of the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from environments import environment
from limits import Limits
from results import Check, Result, of_checks
from servers import running

import memfit
from memfit.planner.request import Workload

REQUIREMENT = "lm-eval[api]==0.4.13"
BOUND = 1e-3  # of the sum of a continuation's log-likelihoods
CONTEXT = 2048
OUTPUTS = 256  # tokens that a pass may score
_SESSION = Path(__file__).resolve().parent / "lm_eval_session.py"


def run(server: str, limits: Limits) -> list[Result]:
    python = environment("lm-eval", REQUIREMENT)
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with running(server, context=CONTEXT, parallel=1) as one:
        command: list[str | Path] = [python, _SESSION, one.base, one.alias]
        done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-600:])
    return [compared(json.loads(done.stdout.splitlines()[-1]))]


def compared(samples: list[dict[str, Any]]) -> Result:
    """By the same plan as the server's: other kernels round differently."""
    checks, worst = [], 0.0
    with memfit.load("demo", workload=Workload(context=CONTEXT, outputs=OUTPUTS)) as session:
        for number, sample in enumerate(samples):
            context, continuation = sample["tokens"]
            scores = session.score([*context, *continuation], first=len(context))
            difference = abs(sum(one.logprob for one in scores) - sample["logprob"])
            problem = "" if difference <= BOUND else f"differs by {difference:.5f}"
            if sample["is_greedy"] != all(one.is_greedy for one in scores):
                problem = f"{problem} is_greedy is {sample['is_greedy']}".strip()
            worst = max(worst, difference)
            checks.append(Check(name=f"line {number + 1}", problem=problem))
    return of_checks("lm-eval", checks, f"largest difference {worst:.6f}, bound {BOUND}")
