"""An importance matrix of a model, collected over a text and written whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from memfit.engines.llamacpp.engine import LlamaSession
from memfit.engines.report import Report
from memfit.evaluate.perplexity import Chunk, Load, Tokens
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import Plan
from memfit.quantize.whole_file import whole_file

__all__ = ["collect", "collect_importance"]


def collect_importance(
    load: Load,
    plan: Plan,
    tokens: Tokens,
    text: Path,
    output: Path,
    *,
    overwrite: bool,
    on_chunk: Callable[[int], None] = lambda _: None,
) -> Report:
    """Of a plan that has memory for it; `text` is named in the file. `on_chunk` hears how many are done.

    Raises:
        UsageError: `output` is there, or is read.
        OutputError: it cannot be written.
        EngineError: the model computes what is no number.
        InterruptedByUser: Ctrl-C.
    """
    assert isinstance(plan, LlamaPlan)
    size_bytes = plan.config.importance_bytes
    with (
        whole_file(output, (*plan.spec.paths, text), size_bytes, overwrite=overwrite) as partial,
        load(plan) as session,
    ):
        assert isinstance(session, LlamaSession)
        collect(session, tokens.chunks, partial, text=text.name, on_chunk=on_chunk)
        return session.report()


def collect(
    session: LlamaSession,
    chunks: Sequence[Chunk],
    path: Path,
    *,
    text: str,
    on_chunk: Callable[[int], None] = lambda _: None,
) -> None:
    """Collect over chunks of one length, and write to `path`. Errors as in `collect_importance`."""
    for done, chunk in enumerate(chunks, start=1):
        session.collect(chunk)
        on_chunk(done)
    session.write_imatrix(path, text=text, chunks=len(chunks), chunk_tokens=len(chunks[0]))
