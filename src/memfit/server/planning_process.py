"""The process that plans another model than the one that is served: its one argument says which, and for what
budget and workload. Of a model that is not here it fetches the header only, and it ends with its answer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from memfit.api import plan
from memfit.planner.request import Workload
from memfit.processes.child import Parent, answer
from memfit.server.pricing_process import read_budget


def _plan(parent: Parent) -> dict[str, Any]:
    del parent
    asked = json.loads(sys.argv[1])
    planned = plan(
        asked["model"],
        budget=read_budget(asked["budget"]),
        workload=Workload(**asked["workload"]),
        count_parent=True,
    )
    return {"answer": planned.to_json()}


if __name__ == "__main__":
    sys.exit(answer(_plan))
