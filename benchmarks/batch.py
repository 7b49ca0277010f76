"""Many requests at once: memfit batch against llama-server, streamed weights, and a common beginning.

    python benchmarks/batch.py [throughput] [larger] [whole] [streaming] [prefix] [kl] [lines]  or all

throughput: 256 prompts of mixed lengths (REQUESTS in the environment), 64 tokens each, greedy: ours as
planned for 1 GiB beside the weights, before and after llama-server with -np 16 and 32, repacked and not, fed
by as many connections; from the first request to the last answer, loading left out. Bar: 1.1 times its best.
And ours one by one, an eighth of them. larger: an eighth of the prompts, a model of 0.6 GB. whole: 64
requests of 10 to 120 words, 48 tokens each, a model of Qwen2.5-0.5B's shape, start included: `memfit batch`
as a command, before and after llama-server's best. Bar: 1.5 times.
streaming: the dense 4.1 GB model in a budget that holds half of its weights: 16 sequences against one by one,
prompts of 100 characters. Bar: 8 times. prefix: 100 requests that begin with the same 1,000 tokens. Bar: the
beginning is computed at most 1.2 times in all. kl: what the same tokens' probabilities differ by, each
sequence alone and 16 side by side. Bar: 1e-3 in the mean. lines: 100,000 lines of which all but a few are
answered already: how long until the next answer, and what memory the parent takes beyond a job of few lines.
Bar: 50 MiB.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from llama_server import complete_all
from rewrite import rewrite
from shapes import BIG, QWEN25_0B5, SMALL
from subjects import MEMFIT, held, models
from synthetic import write_model

import memfit
from memfit.batch.input import InputSizes
from memfit.batch.job_plan import plan_job
from memfit.engines.protocol import PlanOptions
from memfit.engines.requests import Request, RequestResult, Sampling

MIB = 1 << 20
REQUESTS, TOKENS = int(os.environ.get("REQUESTS", "256")), 64
WORDS = ("the", "of", "and", "to", "in", "he", "have", "it", "that", "for", "they", "with", "as", "not", "on")


def main() -> int:
    bars = {
        "throughput": throughput,
        "larger": larger,
        "whole": whole,
        "streaming": streaming,
        "prefix": prefix,
        "kl": divergence,
        "lines": lines,
    }
    with tempfile.TemporaryDirectory(prefix="memfit-batch-", dir=Path.home()) as folder:
        return sum(bars[name](Path(folder)) for name in sys.argv[1:] or bars)


# -- throughput ----------------------------------------------------------------------------------------


def throughput(_: Path) -> int:
    return against_server(models()["demo"], "demo", REQUESTS)


def larger(folder: Path) -> int:
    write_model(folder / "small.gguf", SMALL, values="random")
    return against_server(str(folder / "small.gguf"), "dense 0.6 GB", REQUESTS // 8)


def against_server(path: str, name: str, count: int) -> int:
    print("| model | who | sequences | seconds | tok/s | own | RAM error |\n|" + " --- |" * 7)
    prompts = mixed_prompts(count)
    alone = answered(path, prompts[: count // 8], name, sequences=1)
    first = answered(path, prompts, name)
    settings = [(sequences, repack) for sequences in (16, 32) for repack in (True, False)]
    theirs = max(served(path, prompts, name, *one) for one in settings)
    ours = (first + answered(path, prompts, name)) / 2
    print(f"{name}: {ours / theirs:.2f} times llama-server's best, {ours / alone:.1f} times one by one")
    return ours < 1.1 * theirs


def whole(folder: Path) -> int:
    write_model(folder / "small.gguf", QWEN25_0B5)
    path, tokens = str(folder / "small.gguf"), 48
    random.seed(1)
    words = [random.choice((10, 20, 40, 80, 120)) for _ in range(64)]  # a token each
    prompts = [" ".join(f"w{random.randrange(10_000)}" for _ in range(count)) for count in words]
    requests = folder / "requests.jsonl"
    requests.write_text("".join(json.dumps({"prompt": one, "max_tokens": tokens}) + "\n" for one in prompts))
    print("| who | sequences | seconds, start included | tok/s |\n|" + " --- |" * 4)

    def ours() -> float:
        files = ["--input", str(requests), "--output", str(folder / "answers.jsonl"), "--overwrite"]
        started = time.perf_counter()
        done = subprocess.run(
            [
                *MEMFIT,
                "batch",
                path,
                *files,
                "--raw",
                "--temperature",
                "0",
                "--threads",
                "2",
                "--ram",
                "3GiB",
                "--json",
            ],
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds, found = time.perf_counter() - started, json.loads(done.stdout)
        rate = found["usage"]["completion_tokens"] / seconds
        who = "memfit, " + held(found["plan"]["config"])
        row(who, found["plan"]["parallel"], f"{seconds:.1f}", f"{rate:.1f}")
        return rate

    ours()  # measures the kernels
    rates, theirs = [ours()], []
    for sequences, repack in ((16, True), (16, False), (32, True), (32, False)):
        generated, start, seconds = complete_all(path, prompts, tokens, sequences, repack)
        theirs.append(generated / (start + seconds))
        who = f"llama-server, repack {'on' if repack else 'off'}"
        row(who, sequences, f"{start + seconds:.1f}", f"{theirs[-1]:.1f}")
    rates.append(ours())
    ratio = sum(rates) / 2 / max(theirs)
    print(f"{ratio:.2f} times llama-server's best")
    return ratio < 1.5


def mixed_prompts(count: int) -> list[str]:
    random.seed(1)
    lengths = [random.choice((10, 25, 50, 100, 200)) for _ in range(count)]
    return [f"{n}: " + " ".join(random.choices(WORDS, k=length)) for n, length in enumerate(lengths)]


def answered(path: str, prompts: list[str], name: str, sequences: int | None = None) -> float:
    """Our tokens per second, as `memfit batch` plans and runs it; prints a row."""
    requests = [
        Request(number=n, prompt=prompt, sampling=Sampling(temperature=0, max_tokens=TOKENS))
        for n, prompt in enumerate(prompts)
    ]
    budget = memfit.Budget(ram=Path(path).stat().st_size + 1024 * MIB)
    plan = planned(path, requests, budget, sequences)
    totals, report, tokens, _ = work(plan, requests)
    rate = tokens / totals.seconds
    row(
        name,
        "memfit, " + held(plan.config.to_json()),
        plan.config.parallel,
        f"{totals.seconds:.1f}",
        f"{rate:.1f} (predicted {plan.prediction.together.value:.0f} without prompts)",
        f"{1 - totals.decode_seconds / totals.seconds:.1%}",
        f"{report.tiers[0].error_bytes / MIB:.1f} MiB",
    )
    return rate


def planned(
    path: str,
    requests: list[Request],
    budget: memfit.Budget,
    sequences: int | None = None,
    **workload: Any,
) -> Any:
    sizes = [len(one.prompt or "") for one in requests]
    found = InputSizes(
        count=len(requests),
        mean_prompt_bytes=sum(sizes) / len(sizes),
        largest_prompt_bytes=max(sizes),
        with_max_tokens=len(requests),
        mean_max_tokens=float(requests[0].sampling.max_tokens or 0),
        largest_max_tokens=requests[0].sampling.max_tokens,
    )
    lines: Any = SimpleNamespace(
        sizes=found, sample=lambda count: [SimpleNamespace(request=one) for one in requests[:count]]
    )
    return plan_job(
        path,
        lines,
        PlanOptions(budget=budget),
        workload=memfit.Workload(threads=2, generated_tokens=TOKENS, **workload),
        sequences=sequences,
    )


def work(plan: Any, requests: list[Request]) -> tuple[Any, Any, int, dict[int, int]]:
    """What a batch came to, the report, the tokens of its answers, and of each prompt."""
    with memfit.load(plan) as session:
        batch = session.open(expected_tokens=plan.workload.generated_tokens)
        for request in requests:
            batch.add(request)
        batch.end()
        found = [event for event in batch.events() if isinstance(event, RequestResult)]
        report = session.report()
    done = {one.number: one.completion for one in found if one.completion}
    assert len(done) == len(requests)
    tokens = sum(one.completion_tokens for one in done.values())
    return batch.totals, report, tokens, {number: one.prompt_tokens for number, one in done.items()}


def served(path: str, prompts: list[str], name: str, sequences: int, repack: bool) -> float:
    """llama-server's tokens per second; prints a row."""
    tokens, _, seconds = complete_all(path, prompts, TOKENS, sequences, repack)
    who = f"llama-server, repack {'on' if repack else 'off'}"
    row(name, who, sequences, f"{seconds:.1f}", f"{tokens / seconds:.1f}", "", "")
    return tokens / seconds


# -- streaming, a common beginning, many lines -----------------------------------------------------------


def streaming(folder: Path) -> int:
    path = folder / "big.gguf"
    write_model(path, BIG, values="random")
    prompts = mixed_prompts(32)
    print(
        "| dense 4.1 GB at 50 % | sequences | streamed MB | seconds | tok/s | RAM error |\n|" + " --- |" * 6
    )
    rates = {}
    for sequences, count in ((1, 2), (16, 32)):
        requests = [
            Request(number=n, prompt=prompt[:100], sampling=Sampling(temperature=0, max_tokens=TOKENS))
            for n, prompt in enumerate(prompts[:count])
        ]
        settings = {"sequences": sequences, "repack": "off"}
        tier = planned(str(path), requests, memfit.Budget(), **settings).tiers[0]
        ram = tier.total_bytes - tier.weights_bytes // 2
        plan = planned(str(path), requests, memfit.Budget(ram=ram), **settings)
        totals, report, tokens, _ = work(plan, requests)
        rates[sequences] = tokens / totals.seconds
        speeds = f"{totals.seconds:.1f}", f"{rates[sequences]:.2f}"
        error = report.tiers[0].error_bytes / MIB
        row("", plan.config.parallel, plan.streamed_bytes // 10**6, *speeds, error)
    print(f"ratio {rates[16] / rates[1]:.1f}")
    path.unlink()
    return rates[16] < 8 * rates[1]


def prefix(_: Path) -> int:
    """What each prompt has of its own, two to four tokens, is not counted: nobody else could compute it."""
    beginning = " ".join(f"Item {n} costs {n * 7} coins." for n in range(110))
    prompts = [beginning, *(f"{beginning} {n}?" for n in range(1, 100))]
    requests = [
        Request(number=n, prompt=prompt, sampling=Sampling(temperature=0, max_tokens=16))
        for n, prompt in enumerate(prompts)
    ]
    print("| model | tokens of the beginning | own | computed | beginnings | tok/s |\n|" + " --- |" * 6)
    missed = 0
    for name, path in models().items():
        plan = planned(path, requests, memfit.Budget(ram="1GiB"))
        totals, _, tokens, lengths = work(plan, requests)
        once = lengths[0]
        own = sum(lengths.values()) - once * len(requests)
        ratio = (totals.prompt_tokens - own) / once
        row(name, once, own, totals.prompt_tokens, f"{ratio:.2f}", f"{tokens / totals.seconds:.0f}")
        missed += ratio > 1.2
    return missed


def divergence(folder: Path) -> int:
    """16 texts of 48 tokens: what the same tokens' probabilities differ by, and any from those of F32. Takes
    up to 7 GB of disk."""
    print("| model | kernels | compared with | mean KL | largest | same first choice |\n|" + " --- |" * 6)
    missed = 0
    for name, path in models().items():
        exact = str(rewrite(path, folder / "f32.gguf", kind="F32")[0])
        saved = {
            (way, parallel): log_probabilities(folder, exact if way == "f32" else path, way, parallel)
            for way in ("f32", "file", "repacked", "bf16")
            for parallel in (False, True)
        }
        for way, with_way, bar in (
            ("file", "file", 1e-3),
            ("repacked", "repacked", 1e-3),
            ("bf16", "bf16", 1e-3),
            ("bf16", "file", None),
            ("file", "f32", None),
            ("bf16", "f32", None),
        ):
            mean, largest, same = compared(saved[with_way, False], saved[way, True])
            figures = f"{mean:.1e}", f"{largest:.1e}", f"{same:.2%}"
            row(name, f"{way}, 16 at once", f"{with_way}, alone", *figures)
            missed += bar is not None and mean > bar
        for one in saved.values():
            one.unlink()
    return missed


def compared(alone: Path, together: Path) -> tuple[float, float, float]:
    """KL divergence in nats, its mean and maximum over all tokens; how often both prefer the same token."""
    kls, same = [], []
    for one, other in zip(*(np.load(path, mmap_mode="r") for path in (alone, together)), strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        kls.append((np.exp(one) * (one - other)).sum(axis=1))
        same.append(one.argmax(axis=1) == other.argmax(axis=1))
    return float(np.mean(kls)), float(np.max(kls)), float(np.mean(same))


def log_probabilities(folder: Path, model: str, way: str, together: bool) -> Path:
    """Of each of 48 tokens of 16 texts; computed in a process that owns the C library."""
    path = folder / f"{way}-{together}.npy"
    command = [sys.executable, "-c", LOG_PROBABILITIES, model, way, str(int(together)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


LOG_PROBABILITIES = """
import sys
import numpy as np
from memfit.engines.llamacpp.decode_batch import DecodeBatch
from memfit.engines.llamacpp.devices import Devices
from memfit.engines.llamacpp.library import load_library
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.scheduler import Pass
from memfit.hub.resolve import resolve
from memfit.memory.estimate import LlamaConfig
from memfit.planner.llamacpp.dequantizing import may_dequantize

path, way, together, output = sys.argv[1], sys.argv[2], sys.argv[3] == "1", sys.argv[4]
library = load_library()
api = library.api
quiet = api.llama_log_callback(lambda *_: None)
api.llama_log_set(quiet, None)
api.llama_backend_init()
spec = resolve(path).read_spec()
larger = tuple(one.name for one in spec.tensors if way == "bf16" and may_dequantize(one, spec))
config = LlamaConfig(
    paths=spec.paths, context=2048, parallel=16, kv_type="f16", ubatch=256, threads=2,
    repack=way == "repacked", load_mode="own" if larger else "read", dequantized=larger,
)
model = LlamaModel(library, Devices(library, dummies=False), config, tensors=spec.tensors)
model.open_context(config)
batch = DecodeBatch(api, 256)
text = "The quick brown fox jumps over the lazy dog, and nobody knows why it did so that day. " * 40
tokens = model.tokenize(text, add_special=False)
rng = np.random.default_rng(3)
texts = [[tokens[0], *rng.permutation(tokens)[:47].tolist()] for _ in range(16)]

def decode(entries):
    work = Pass()
    for sequence, position, token in entries:
        work.tokens.append(token), work.positions.append(position), work.sequences.append(sequence)
        work.outputs.append((len(work.tokens) - 1, None))
    batch.fill(work)
    model.decode_batch(batch.pointer)
    rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(model._context, at), (model.vocabulary_size,))
            for at in range(len(entries))]
    rows = np.array(rows, dtype=np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

found = np.lib.format.open_memmap(output, "w+", np.float32, (48, 16, model.vocabulary_size))
if together:
    for at in range(48):
        found[at] = decode([(n, at, one[at]) for n, one in enumerate(texts)])
else:
    for n, one in enumerate(texts):
        model.cache.clear()
        for at, token in enumerate(one):
            found[at, n] = decode([(0, at, token)])[0]
found.flush()
"""


def lines(folder: Path) -> int:
    """A job of 100,000 lines, and one of 200; all but the last 200 were answered by an earlier run, as their
    journal says. Until the first new answer is kept: that is written down once a second."""
    print("| lines | first new answer after s | parent's peak MiB | seconds |\n|" + " --- |" * 4)
    peaks = []
    for count in (200, 100_000):
        source, output = folder / f"{count}.jsonl", folder / f"{count}.out.jsonl"
        prepare(source, output, count)
        command = [sys.executable, "-m", "memfit", "batch", "demo", "--ram", "1GiB"]
        command += ["--input", str(source), "--output", str(output)]
        journal = output.with_name(output.name + ".journal")
        before = journal.stat().st_size
        started = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        peak, first = 0, 0.0
        while process.poll() is None:
            peak = max(peak, status_bytes(process.pid))
            if not first and size_of(journal) > before:
                first = time.perf_counter() - started
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        err = process.stderr.read() if process.stderr else ""
        assert process.returncode == 0, err
        with output.open("rb") as file:
            assert sum(1 for _ in file) == count
        row(count, first, peak / MIB, seconds)
        peaks.append(peak)
    return peaks[1] - peaks[0] > 50 * MIB


def prepare(source: Path, output: Path, count: int) -> None:
    """So many requests, and what a run that was killed before the last 200 leaves."""
    from memfit.batch.input import open_input
    from memfit.batch.lines import answer_line
    from memfit.batch.output import open_sink
    from memfit.engines.requests import Completion, Speed
    from memfit.hub.resolve import resolve

    with source.open("w") as file:
        for n in range(count):
            request = {"id": str(n), "prompt": f"Number {n}", "max_tokens": 8, "temperature": 0}
            file.write(json.dumps(request) + "\n")
    spec = resolve("demo").read_spec()
    identity = {
        "model": {"name": spec.name, "quantization": spec.quantization, "file_bytes": spec.file_bytes},
        "sampling": vars(Sampling()) | {"stop": []},
        "schema": None,
        "raw": False,
    }
    done = Completion(
        text="word " * 8,
        finish_reason="length",
        prompt_tokens=30,
        completion_tokens=8,
        speed=Speed(prompt_tokens=0, prompt_seconds=0, generated_tokens=0, generation_seconds=0),
    )
    with (
        open_input(str(source), Sampling()) as found,
        open_sink(str(output), found, identity=identity) as sink,
    ):
        for number, line in enumerate(found.items(), start=1):
            if number <= count - 200:
                sink.add(number, output=answer_line(line, done, model="m"))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a job that is done keeps no journal
        return 0


def status_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def row(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
