"""The process that plans for pricing.py: its one argument says what, its answer is the plan's JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from memfit.api import plan
from memfit.errors import DoesNotFitError
from memfit.planner.request import Budget, Workload
from memfit.processes.child import Parent, answer


def _price(parent: Parent) -> dict[str, Any]:
    del parent
    asked = json.loads(sys.argv[1])
    budget, workload = asked.pop("budget"), asked.pop("workload")
    if isinstance(budget["vram"], dict):  # numbers of GPUs, which JSON has as texts
        budget["vram"] = {int(key) if key.isdigit() else key: size for key, size in budget["vram"].items()}
    planned = plan(budget=Budget(**budget), workload=Workload(**workload), count_parent=True, **asked)
    try:
        planned.require_fit()
    except DoesNotFitError as error:
        return {"answer": error.to_json()}
    return {"answer": planned.to_json()}


if __name__ == "__main__":
    sys.exit(answer(_price))
