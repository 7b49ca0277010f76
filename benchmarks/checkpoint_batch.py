"""Sixteen requests to a checkpoint in transformers: side by side against one by one, in one run.

    python benchmarks/checkpoint_batch.py

SmolLM2, 16 questions of some 20 tokens, 32 greedy tokens each, PAIRS turns of both (3 unless the environment
says otherwise), two sessions at a time: one with a single sequence, one with 16. Bars: in fp32 the same texts
and 3 times the speed (median of the pairs); in bf16, whose roundings differ with the number of tokens, the
speed; the peak within the plan and within max(2 %, 16 MiB) of it. The model is written into the home folder,
and deleted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from checkpoints import checkpoint

import memfit
from memfit.engines.requests import Request, RequestResult

MIB = 1 << 20
PAIRS = int(os.environ.get("PAIRS", "3"))
SEQUENCES, CONTEXT, TOKENS = 16, 256, 32
THINGS = (
    "the sky",
    "a river",
    "the moon",
    "bread",
    "a bicycle",
    "chess",
    "rain",
    "the sea",
    "a clock",
    "honey",
)
THINGS += ("glass", "a volcano", "music", "salt", "a bridge", "snow")


def main() -> int:
    print(
        "| precision | one by one, s | side by side | ratio | tok/s | predicted | same text | peak MiB "
        "| error | missed |\n|" + " --- |" * 10
    )
    with tempfile.TemporaryDirectory(prefix="memfit-batch-", dir=Path.home()) as folder:
        path = checkpoint("demo", Path(folder) / "demo")
        return sum(compare(path, load_in) for load_in in ("fp32", "bf16"))


def compare(path: Path, load_in: str) -> int:
    plans = [plan(path, load_in, sequences) for sequences in (1, SEQUENCES)]
    turns = []
    with memfit.load(plans[0]) as alone, memfit.load(plans[1]) as together:
        sessions = (alone, together)
        for session in sessions:
            answer(session, 1)  # the first requests measure nothing
        for _ in range(PAIRS):
            turns.append([answer(session) for session in sessions])
        tier = together.report().tiers[0]
    seconds = [median(turn[side][0] for turn in turns) for side in (0, 1)]
    ratio = median(turn[0][0] / turn[1][0] for turn in turns)
    same = sum(one == other for one, other in zip(turns[0][0][1], turns[0][1][1], strict=True))
    bars = {
        "speed": ratio >= 3,
        "text": load_in != "fp32" or same == SEQUENCES,
        "plan": tier.error_bytes >= 0,
        "error": abs(tier.error_bytes) <= max(0.02 * tier.peak_bytes, 16 * MIB),
    }
    predicted = plans[1].prediction.together
    assert predicted is not None
    rate = SEQUENCES * TOKENS / seconds[1]
    cells = [load_in, f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", f"{ratio:.1f}", f"{rate:.0f}"]
    cells += [
        f"{predicted.value:.0f} ({predicted.low:.0f} to {predicted.high:.0f})",
        f"{same} of {SEQUENCES}",
    ]
    cells += [f"{tier.peak_bytes / MIB:.0f}", f"{tier.error_bytes / MIB:.1f}"]
    print(f"| {' | '.join([*cells, ', '.join(bar for bar, met in bars.items() if not met)])} |", flush=True)
    return sum(not met for met in bars.values())


def plan(path: Path, load_in: str, sequences: int) -> memfit.Plan:
    workload = memfit.Workload(
        context=CONTEXT * sequences,
        parallel=sequences,
        threads=2,
        prompt_tokens=32,
        generated_tokens=TOKENS,
    )
    return memfit.plan(str(path), load_in=load_in, workload=workload)


def answer(session: memfit.Session, count: int = SEQUENCES) -> tuple[float, list[str]]:
    """Seconds that the requests took, and their texts."""
    session.measure(1, 1)  # leaves nothing in the cache: what was asked before would not be computed
    greedy = memfit.Sampling(temperature=0, max_tokens=TOKENS)
    texts = [""] * count
    began = time.monotonic()
    stream = session.open()
    for number, thing in enumerate(THINGS[:count]):
        message = {"role": "user", "content": f"Tell me something about {thing}, please."}
        stream.add(Request(number=number, messages=(message,), sampling=greedy))
    stream.end()
    for event in stream.events():
        if isinstance(event, RequestResult):
            assert event.completion, event.error
            texts[event.number] = event.completion.text
    return time.monotonic() - began, texts


if __name__ == "__main__":
    sys.exit(main())
