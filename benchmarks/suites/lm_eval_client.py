"""lm-eval through the server, by the server's own tokenizer, against memfit's scores of the same tokens.

Scores are made by the server's own plan and of all tokens, as an echo is: where a pass of tokens begins
decides how sums are rounded, by 0.01 on the longest line.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from environments import environment
from limits import Limits
from results import Check, Result, of_checks
from servers import running

import memfit
from memfit.planner.plan import Plan
from memfit.saved_plan import read_plan

REQUIREMENT = "lm-eval[api]==0.4.13"
BOUND = 1e-3  # of the sum of a continuation's log-likelihoods
CONTEXT = 2048
_SESSION = Path(__file__).resolve().parent / "lm_eval_session.py"


def run(server: str, limits: Limits) -> list[Result]:
    python = environment("lm-eval", REQUIREMENT)
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with running(server, context=CONTEXT, parallel=1) as one:
        command: list[str | Path] = [python, _SESSION, one.base, one.alias]
        done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
        _, plan = one.ask("GET", "/plan")
    if done.returncode:
        raise RuntimeError(done.stderr[-600:])
    with tempfile.TemporaryDirectory(prefix="memfit-suite-") as folder:
        saved = Path(folder) / "plan.json"
        # The path tells what is measured too, which is no part of a plan.
        planned = memfit.plan("demo").to_json()
        saved.write_text(json.dumps({key: value for key, value in plan.items() if key in planned}))
        return [compared(json.loads(done.stdout.splitlines()[-1]), read_plan(saved))]


def compared(samples: list[dict[str, Any]], plan: Plan) -> Result:
    checks, worst = [], 0.0
    with memfit.load(plan) as session:
        for number, sample in enumerate(samples):
            context, continuation = sample["tokens"]
            scores = session.score([*context, *continuation])[len(context) - 1 :]
            difference = abs(sum(one.logprob for one in scores) - sample["logprob"])
            problem = "" if difference <= BOUND else f"differs by {difference:.5f}"
            if sample["is_greedy"] != all(one.is_greedy for one in scores):
                problem = f"{problem} is_greedy is {sample['is_greedy']}".strip()
            worst = max(worst, difference)
            checks.append(Check(name=f"line {number + 1}", problem=problem))
    return of_checks("lm-eval", checks, f"largest difference {worst:.6f}, bound {BOUND}")
