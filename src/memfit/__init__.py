"""memfit runs large language models inside an exact memory budget.

    plan = memfit.plan("model.gguf", budget=memfit.Budget(ram="8GiB"))
    with memfit.load(plan) as session:
        print(session.chat([{"role": "user", "content": "Hello"}]).text)
        print(session.report())
"""

from __future__ import annotations

__version__ = "0.1.0"
