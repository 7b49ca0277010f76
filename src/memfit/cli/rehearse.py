"""A whole run on a model of a few kilobytes, in a fresh process: `memfit.cli.rehearse TINY.gguf`.

Answers what the processes held apart from the model's buffers. The calibration starts it once
per machine; users do not. It does what `memfit run` does, so that it holds what `memfit run` holds.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import memfit.cli.main
import memfit.cli.run  # noqa: F401 - imported for the memory it takes
from memfit.api import load
from memfit.cli.render import console, loading_progress, print_plan, print_report
from memfit.engines.llamacpp.oracle import LlamaOracle
from memfit.hardware import probe
from memfit.headers import read_model
from memfit.memory.baseline import Baseline
from memfit.memory.process_memory import process_memory
from memfit.planner.llamacpp.inputs import PlanInputs
from memfit.planner.llamacpp.planner import make_plan
from memfit.planner.request import Budget, Workload
from memfit.planner.speed import ASSUMED
from memfit.processes.child import Parent, answer

__all__: list[str] = []


def _rehearse(_: Parent) -> dict[str, Any]:
    spec = read_model(sys.argv[1])
    nothing = Baseline(parent=None, decode_bytes=0)
    # The tiny model's speed is of no interest, only that it is printed.
    speeds = {False: ASSUMED}
    workload = Workload(repack="off", threads=2, prompt_tokens=8, generated_tokens=4)
    inputs = PlanInputs(spec=spec, machine=probe(), budget=Budget(), workload=workload, speeds=speeds)
    with LlamaOracle(spec, nothing, repack_modes=(False,)) as oracle:
        plan = make_plan(inputs, oracle)
    with open(os.devnull, "w", encoding="utf-8") as sink:  # noqa: PTH123 - not a file
        out = console(file=sink)
        print_plan(plan, out)
        with loading_progress(out) as on_progress:
            session = load(plan, count_parent=True, on_progress=on_progress)
        with session:
            session.measure(8, 4)
            print_report(session.report(), out)
            parent, worker = process_memory(), process_memory(session.worker_pid)
    return {
        "parent": {"anonymous_bytes": parent.anonymous_bytes, "files": dict(parent.files)},
        "decode_bytes": worker.total_bytes - plan.ram.total_bytes,
    }


if __name__ == "__main__":
    sys.exit(answer(_rehearse))
