"""llama.cpp as an engine: GGUF models, planned tensor by tensor."""

from __future__ import annotations

from memfit.engines.llamacpp.planning import LlamaPlanner
from memfit.engines.llamacpp.session import LlamaSession
from memfit.engines.protocol import LoadOptions, PlanOptions
from memfit.errors import WrongValueError
from memfit.headers.purpose import require_writes
from memfit.hub.resolve import ResolvedModel
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import Plan
from memfit.planner.request import Workload

__all__ = ["ENGINE"]


class LlamaEngine:
    """Satisfies protocol.Engine."""

    def accepts(self, model: ResolvedModel) -> bool:
        return not model.is_checkpoint

    def planner(self, model: ResolvedModel, options: PlanOptions, workload: Workload) -> LlamaPlanner:
        if options.load_in or options.double_quant or options.trust_remote_code:
            raise WrongValueError(
                "load_in",
                ", --double-quant and --trust-remote-code are for transformers; with --engine "
                "transformers it dequantizes a GGUF file",
            )
        spec = model.read_spec()
        require_writes(spec)
        return LlamaPlanner(spec, options, workload)

    def load(self, plan: Plan, options: LoadOptions) -> LlamaSession:
        assert isinstance(plan, LlamaPlan)
        return LlamaSession(plan, options)


ENGINE = LlamaEngine()
