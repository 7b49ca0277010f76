"""transformers as an engine: Hugging Face checkpoints, and GGUF files that become one."""

from __future__ import annotations

from memfit.engines.protocol import LoadOptions, PlanOptions
from memfit.engines.transformers.planning import TransformersPlanner
from memfit.engines.transformers.session import TransformersSession
from memfit.errors import WrongValueError
from memfit.hub.resolve import ResolvedModel
from memfit.planner.plan import Plan
from memfit.planner.request import Workload
from memfit.planner.transformers.transformers_plan import TransformersPlan

__all__ = ["ENGINE"]


class TransformersEngine:
    """Satisfies protocol.Engine."""

    def accepts(self, model: ResolvedModel) -> bool:
        return model.is_checkpoint

    def planner(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> TransformersPlanner:
        if options.budget.rpc:
            raise WrongValueError("rpc", ": transformers uses GPUs of this machine only")
        return TransformersPlanner(model, options, workload)

    def load(self, plan: Plan, options: LoadOptions) -> TransformersSession:
        assert isinstance(plan, TransformersPlan)
        return TransformersSession(plan, options)


ENGINE = TransformersEngine()
