"""memfit runs large language models inside an exact memory budget.

import memfit

plan = memfit.plan("model.gguf", budget=memfit.Budget(ram="8GiB"))
with memfit.load(plan) as session:
    answer = session.chat([{"role": "user", "content": "Hello"}])
    print(answer.text, session.report().within_budget)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.api import load, plan
    from memfit.engines.report import Report
    from memfit.engines.requests import Completion, Sampling
    from memfit.engines.session import Session
    from memfit.errors import DoesNotFitError, MemfitError
    from memfit.planner.plan import Plan
    from memfit.planner.request import Budget, Conditions, Workload

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Completion",
    "Conditions",
    "DoesNotFitError",
    "MemfitError",
    "Plan",
    "Report",
    "Sampling",
    "Session",
    "Workload",
    "load",
    "plan",
]

# Imported when first used: the worker and `memfit --help` need none of them.
_HOMES = {
    "Budget": "planner.request",
    "Completion": "engines.requests",
    "Conditions": "planner.request",
    "DoesNotFitError": "errors",
    "MemfitError": "errors",
    "Plan": "planner.plan",
    "Report": "engines.report",
    "Sampling": "engines.requests",
    "Session": "engines.session",
    "Workload": "planner.request",
    "load": "api",
    "plan": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memfit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"memfit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
