"""Issue 6's bars: many requests at once against llama-server, streaming, and a common beginning.

    python benchmarks/batch.py [throughput] [streaming] [prefix] [kl] [lines]     all where none is named

throughput: 256 prompts of mixed lengths (REQUESTS in the environment; a quarter for the larger model), 64
tokens each, greedy: ours as planned for 1 GiB beside the weights, before and after llama-server with -np 16
and 32, fed by as many connections; from the first request to the last answer, loading left out. Bar: 1.1
times its best.
streaming: the dense 4.1 GB model in a budget that holds half of its weights: 16 sequences against one by one.
Bar: 8 times. prefix: 100 requests that begin with the same 1,000 tokens. Bar: at most 1.2 times the prompt
work of computing them once. kl: what the same tokens' logits differ by, each sequence alone and 16 side by
side. Bar: 1e-3 in the mean. lines: 100,000 lines of which all but a few are answered already: how long until
the model is loaded, and what memory the parent takes.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from shapes import BIG, SMALL
from subjects import models, peers
from synthetic import write_model

import memfit
from memfit.api import plan_batch
from memfit.batch.input import Lengths as ByteLengths
from memfit.batch.lengths import lengths_in_tokens
from memfit.engines.protocol import Answer, Request, Sampling

MIB = 1 << 20
REQUESTS, TOKENS = int(os.environ.get("REQUESTS", "256")), 64
WORDS = ("the", "of", "and", "to", "in", "he", "have", "it", "that", "for", "they", "with", "as", "not", "on")


def main() -> int:
    bars = {
        "throughput": throughput,
        "streaming": streaming,
        "prefix": prefix,
        "kl": divergence,
        "lines": lines,
    }
    with tempfile.TemporaryDirectory(prefix="memfit-batch-", dir=Path.home()) as folder:
        return sum(bars[name](Path(folder)) for name in sys.argv[1:] or bars)


# -- throughput ----------------------------------------------------------------------------------------


def throughput(folder: Path) -> int:
    small = folder / "small.gguf"
    write_model(small, SMALL, values="random")
    missed = 0
    print("| model | who | sequences | seconds | tok/s | own | RAM error |\n|" + " --- |" * 7)
    for name, path, share in (("demo", models()["demo"], 1), ("dense 0.6 GB", str(small), 4)):
        prompts = mixed_prompts(REQUESTS // share)
        first = answered(path, prompts, name)
        theirs = max(served(path, prompts, name, sequences, True) for sequences in (16, 32))
        ratio = (first + answered(path, prompts, name)) / 2 / theirs
        print(f"{name}: {ratio:.2f} times llama-server's best", flush=True)
        missed += ratio < 1.1
    return missed


def mixed_prompts(count: int) -> list[str]:
    random.seed(1)
    lengths = [random.choice((10, 25, 50, 100, 200)) for _ in range(count)]
    return [f"{n}: " + " ".join(random.choices(WORDS, k=length)) for n, length in enumerate(lengths)]


def answered(path: str, prompts: list[str], name: str) -> float:
    """Ours, as `memfit batch` plans and runs it; prints a row."""
    requests = [
        Request(number=n, prompt=prompt, sampling=Sampling(temperature=0, max_tokens=TOKENS))
        for n, prompt in enumerate(prompts)
    ]
    budget = memfit.Budget(ram=Path(path).stat().st_size + 1024 * MIB)
    plan = planned(path, requests, budget)
    totals, report, tokens = work(plan, requests)
    rate = tokens / totals.seconds
    row(
        name,
        "memfit, repack " + ("on" if plan.parameters.repack else "off"),
        plan.parameters.parallel,
        f"{totals.seconds:.1f}",
        f"{rate:.1f} (predicted {plan.prediction.together.value:.0f} without prompts)",
        f"{1 - totals.decode_seconds / totals.seconds:.1%}",
        f"{report.tiers[0].error_bytes / MIB:.1f} MiB",
    )
    return rate


def planned(path: str, requests: list[Request], budget: memfit.Budget, **workload: Any) -> Any:
    sizes = [len(one.prompt or "") for one in requests]
    found = ByteLengths(
        count=len(requests),
        mean_prompt_bytes=sum(sizes) / len(sizes),
        largest_prompt_bytes=max(sizes),
        with_max_tokens=len(requests),
        mean_max_tokens=float(requests[0].sampling.max_tokens or 0),
        largest_max_tokens=requests[0].sampling.max_tokens,
    )
    sample = requests[:64]
    return plan_batch(
        path,
        sample,
        lambda counts: lengths_in_tokens(found, sample, counts, TOKENS),
        budget=budget,
        workload=memfit.Workload(threads=2, **workload),
    )


def work(plan: Any, requests: list[Request]) -> tuple[Any, Any, int]:
    """What a batch came to, the report, and the tokens of its answers."""
    with memfit.load(plan) as session:
        batch = session.batch(expected_tokens=plan.workload.generated_tokens)
        for request in requests:
            batch.add(request)
        batch.end()
        answers = [event for event in batch.events() if isinstance(event, Answer)]
        report = session.report()
    assert len(answers) == len(requests) and all(one.completion for one in answers)
    return batch.totals, report, sum(one.completion.completion_tokens for one in answers if one.completion)


def served(path: str, prompts: list[str], name: str, sequences: int, repack: bool) -> float:
    """llama-server's tokens per second; prints a row."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(peers() / "llama-server"), "-m", path, "-t", "2", "-np", str(sequences)]
    command += ["-c", str(512 * sequences), "--host", "127.0.0.1", "--port", str(port), "-lv", "0"]
    command += ["--repack" if repack else "--no-repack"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            time.sleep(0.2)
            assert server.poll() is None, "llama-server ended"
        started = time.perf_counter()
        tokens = ask_all(port, prompts, sequences)
        seconds = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()
    who = f"llama-server, repack {'on' if repack else 'off'}"
    row(name, who, sequences, f"{seconds:.1f}", f"{tokens / seconds:.1f}", "", "")
    return tokens / seconds


def is_ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def ask_all(port: int, prompts: list[str], connections: int) -> int:
    """As many requests at a time as there are connections; returns the tokens generated."""
    waiting, tokens, lock = list(reversed(prompts)), [0], threading.Lock()

    def work_through() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "cache_prompt": False}
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = json.loads(connection.getresponse().read())
            with lock:
                tokens[0] += answer["usage"]["completion_tokens"]

    threads = [threading.Thread(target=work_through) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tokens[0]


# -- streaming, a common beginning, many lines -----------------------------------------------------------


def streaming(folder: Path) -> int:
    path = folder / "big.gguf"
    write_model(path, BIG, values="random")
    prompts = mixed_prompts(48)
    print(
        "| dense 4.1 GB at 50 % | sequences | streamed MB | seconds | tok/s | RAM error |\n|" + " --- |" * 6
    )
    rates = {}
    for sequences, count in ((1, 2), (16, 48)):
        requests = [
            Request(number=n, prompt=prompt[:100], sampling=Sampling(temperature=0, max_tokens=32))
            for n, prompt in enumerate(prompts[:count])
        ]
        whole = planned(str(path), requests, memfit.Budget(), parallel=sequences, context=2048, repack="off")
        tier = whole.tiers[0]
        ram = tier.total_bytes - tier.weights_bytes // 2
        plan = planned(
            str(path), requests, memfit.Budget(ram=ram), parallel=sequences, context=2048, repack="off"
        )
        totals, report, tokens = work(plan, requests)
        rates[sequences] = tokens / totals.seconds
        error = report.tiers[0].error_bytes / MIB
        row(
            "",
            sequences,
            plan.streamed_bytes // 10**6,
            f"{totals.seconds:.1f}",
            f"{rates[sequences]:.2f}",
            error,
        )
    print(f"ratio {rates[16] / rates[1]:.1f}")
    path.unlink()
    return rates[16] < 8 * rates[1]


def prefix(_: Path) -> int:
    beginning = " ".join(f"Item {n} costs {n * 7} coins." for n in range(110))
    requests = [
        Request(number=n, prompt=f"{beginning} {n}?", sampling=Sampling(temperature=0, max_tokens=16))
        for n in range(100)
    ]
    print("| model | tokens of a prompt | computed | of once | tok/s |\n|" + " --- |" * 5)
    missed = 0
    for name, path in models().items():
        plan = planned(path, requests, memfit.Budget(ram="1GiB"))
        totals, _, tokens = work(plan, requests)
        whole = (totals.prompt_tokens + totals.shared_tokens) / len(requests)
        ratio = totals.prompt_tokens / whole
        row(name, f"{whole:.0f}", totals.prompt_tokens, f"{ratio:.2f}", f"{tokens / totals.seconds:.0f}")
        missed += ratio > 1.2
    return missed


def divergence(_: Path) -> int:
    """In a process that owns the C library: 16 texts of 48 tokens, token by token."""
    print("| model | repack | mean KL | largest | same first choice |\n|" + " --- |" * 5)
    missed = 0
    for name, path in models().items():
        for repack in (False, True):
            done = subprocess.run(
                [sys.executable, "-c", DIVERGENCE, path, str(int(repack))], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            mean, largest, same = map(float, done.stdout.split())
            row(name, "on" if repack else "off", f"{mean:.1e}", f"{largest:.1e}", f"{same:.2%}")
            missed += mean > 1e-3
    return missed


DIVERGENCE = """
import sys
from pathlib import Path
import numpy as np
from memfit.engines.llamacpp.batching import _Batch
from memfit.engines.llamacpp.devices import Devices
from memfit.engines.llamacpp.library import load_library
from memfit.engines.llamacpp.model import Model
from memfit.engines.scheduler import Pass
from memfit.memory.oracle import EngineParameters

library = load_library()
api = library.api
quiet = api.llama_log_callback(lambda *_: None)
api.llama_log_set(quiet, None)
api.llama_backend_init()
parameters = EngineParameters(
    paths=(Path(sys.argv[1]),), context=2048, parallel=16, kv_type="f16", micro_batch=256, threads=2,
    repack=sys.argv[2] == "1", load_mode="read",
)
model = Model(library, Devices(library, stand_ins=False), parameters)
model.open_context(parameters)
batch = _Batch(api, 256)
text = "The quick brown fox jumps over the lazy dog, and nobody knows why it did so that day. " * 40
tokens = model.tokenize(text, add_special=False)
rng = np.random.default_rng(3)
texts = [[tokens[0], *rng.permutation(tokens)[:47].tolist()] for _ in range(16)]

def logits(entries):
    work = Pass()
    for sequence, position, token in entries:
        work.tokens.append(token), work.positions.append(position), work.sequences.append(sequence)
        work.outputs.append((len(work.tokens) - 1, None))
    batch.fill(work)
    model.decode_batch(batch.pointer)
    rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(model._context, at), (model.vocabulary_size,))
            for at in range(len(entries))]
    return np.array(rows, dtype=np.float64)

def log_probabilities(rows):
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

alone = []
for one in texts:
    model.clear()
    alone.append(np.concatenate([logits([(0, at, token)]) for at, token in enumerate(one)]))
model.clear()
found = []
for at in range(48):
    together = log_probabilities(logits([(n, at, one[at]) for n, one in enumerate(texts)]))
    single = log_probabilities(np.array([rows[at] for rows in alone]))
    kl = (np.exp(single) * (single - together)).sum(axis=1)
    found += zip(kl, single.argmax(axis=1) == together.argmax(axis=1))
kls = np.array([one for one, _ in found])
print(kls.mean(), kls.max(), np.mean([same for _, same in found]))
"""


def lines(folder: Path) -> int:
    """All lines but the last 200 were answered by an earlier run, as their journal says."""
    from memfit.batch.answers import answer_line
    from memfit.batch.input import open_input
    from memfit.batch.output import open_sink
    from memfit.engines.protocol import Completion, Speed
    from memfit.headers.find import find_model

    source, output, count = folder / "in.jsonl", folder / "out.jsonl", 100_000
    with source.open("w") as file:
        for n in range(count):
            file.write(
                json.dumps({"id": str(n), "prompt": f"Number {n}", "max_tokens": 8, "temperature": 0}) + "\n"
            )
    spec = find_model("demo", None)
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
    command = [
        sys.executable,
        "-m",
        "memfit",
        "batch",
        "demo",
        "--input",
        str(source),
        "--output",
        str(output),
    ]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--ram", "1GiB"], stderr=subprocess.PIPE, text=True)
    peak, first = 0, 0.0
    while process.poll() is None:
        peak = max(peak, status_bytes(process.pid))
        if not first and children(process.pid) and output.stat().st_size > 0:
            first = time.perf_counter() - started
        time.sleep(0.02)
    err = process.stderr.read() if process.stderr else ""
    assert process.returncode == 0, err
    with output.open("rb") as file:
        answers = sum(1 for _ in file)
    seconds = time.perf_counter() - started
    print(f"100,000 lines: {answers} answers, parent's peak {peak / MIB:.0f} MiB, {seconds:.1f} s")
    return answers != count


def status_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)


def children(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return ""


def row(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
