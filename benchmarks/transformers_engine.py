"""Checkpoints in transformers: predicted against measured bytes, and text and speed against a plain script.

    python benchmarks/transformers_engine.py [memory] [plain] [offload] [engines]     or all of them

memory: four models, every precision: what stays in RAM within max(2 %, 16 MiB) of the prediction, the peak
while loading within 5 %, never above the budget, which is what the plan says and 1 %; and what nf4 with and
without double quantization differ by after loading, to the byte. plain: SmolLM2 against a script that calls
from_pretrained and generate: the same greedy text, 97 % of its speed; two pairs of processes that
answer in turns, medians.
offload: a budget that leaves half of the layers on the disk: within it, the same text. engines: the next
token by both engines, after each beginning of a text of 500 tokens; 99 % the same.
Models are written into the home folder, 3 GB at most, and deleted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints import RANDOM, checkpoint
from rewrite import rewrite
from subjects import models

import memfit

MIB = 1 << 20
PRECISIONS = [("fp32", False), ("bf16", False), ("fp16", False), ("int8", False)]
PRECISIONS += [("nf4", False), ("nf4", True), ("fp4", False)]
QUESTION = "Why is the sky blue? Explain it to a child in a few sentences."
TOKENS, PAIRS, TURNS = 32, 2, 5
AGREEMENT_TOKENS = 500
# Plain words: the tokenizer that transformers makes of SmolLM2's GGUF file splits numbers otherwise than the
# model's own, which llama.cpp has.
README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
TEXT = " ".join(re.findall(r"[A-Za-z]+[,.]?", README))


def main() -> int:
    bars = {"memory": memory, "plain": plain, "offload": offload, "engines": engines}
    with tempfile.TemporaryDirectory(prefix="memfit-checkpoints-", dir=Path.home()) as folder:
        return sum(bars[name](Path(folder)) for name in sys.argv[1:] or bars)


def greedy(tokens: int) -> memfit.Sampling:
    return memfit.Sampling(temperature=0, max_tokens=tokens)


def named(load_in: str, double_quant: bool) -> str:
    return load_in + "-dq" * double_quant


# -- memory ----------------------------------------------------------------------------------------


def memory(folder: Path) -> int:
    columns = ("model", "precision", "stays", "error", "loading", "error", "peak", "budget", "off", "missed")
    print(f"| {' | '.join(columns)} |\n|" + " --- |" * len(columns))
    missed = 0
    for name in ("demo", "gemma-3-270m", *RANDOM):
        path = checkpoint(name, folder / name)
        loaded = {}
        for load_in, double_quant in PRECISIONS:
            report = run(path, load_in, double_quant)
            missed += memory_row(name, named(load_in, double_quant), report)
            loaded[named(load_in, double_quant)] = report
        missed += nested_row(name, loaded["nf4"], loaded["nf4-dq"])
    return missed


def run(path: Path, load_in: str, double_quant: bool) -> Any:
    """A report after a prompt of a whole context's eighth and 16 tokens, in a budget of the plan and 1 %."""
    settings = {"load_in": load_in, "double_quant": double_quant}
    needs = memfit.plan(str(path), **settings).tiers[0].total_bytes
    plan = memfit.plan(str(path), budget=memfit.Budget(ram=int(needs * 1.01)), **settings)
    with memfit.load(plan) as session:
        session.measure(512, 16)
        return session.report()


def memory_row(name: str, precision: str, report: Any) -> int:
    """Prints one row; how many bars it misses."""
    model, tier = report.model, report.tiers[0]
    steady = model.steady_predicted_bytes - model.steady_bytes
    loading = model.loading_predicted_bytes - model.loading_bytes
    bars = {
        "stays": abs(steady) <= max(0.02 * model.steady_bytes, 16 * MIB),
        "loading": abs(loading) <= 0.05 * model.loading_bytes,
        "budget": report.within_budget,
    }
    cells = (
        *(name, precision, mib(model.steady_bytes), mib(steady), mib(model.loading_bytes), mib(loading)),
        *(mib(tier.peak_bytes), mib(tier.budget_bytes)),
        mib(tier.error_bytes),
        ", ".join(bar for bar, met in bars.items() if not met),
    )
    print(f"| {' | '.join(cells)} |", flush=True)
    return sum(not met for met in bars.values())


def nested_row(name: str, single: Any, nested: Any) -> int:
    """Before the first pass, by the tensors' own sizes."""
    measured = single.model.loaded_bytes - nested.model.loaded_bytes
    computed = single.plan.row.resident_bytes - nested.plan.row.resident_bytes
    print(f"{name}: nf4 - nf4-dq after loading: computed {computed:,}, measured {measured:,} bytes")
    return measured != computed


def mib(size: int) -> str:
    return f"{size / MIB:.1f}"


# -- against a plain script ------------------------------------------------------------------------


PLAIN = """
import json, sys, time, torch, transformers
folder, load_in, double_quant, tokens, question = sys.argv[1:]
torch.set_num_threads(2)
plain = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
settings = {}
if load_in == "int8":
    settings["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
elif load_in not in plain:
    settings["quantization_config"] = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=load_in, bnb_4bit_use_double_quant=double_quant == "True",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=plain.get(load_in, torch.bfloat16), device_map="cpu", **settings
)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
for _ in sys.stdin:
    started = time.perf_counter()
    found = model.generate(**inputs, max_new_tokens=int(tokens), do_sample=False)
    seconds = time.perf_counter() - started
    text = tokenizer.decode(found[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    print(json.dumps([text, seconds]), flush=True)
"""


def plain(folder: Path) -> int:
    print("| precision | same text | seconds, plain | ours | speed |\n|" + " --- |" * 5)
    path, missed = checkpoint("demo", folder / "demo"), 0
    for load_in, double_quant in PRECISIONS[:-1]:
        answers = [one for _ in range(PAIRS) for one in pair(path, load_in, double_quant)]
        same = all(theirs[0] == ours[0] for theirs, ours in answers)
        speed = median(theirs[1] / ours[1] for theirs, ours in answers)
        seconds = [f"{median(one[side][1] for one in answers):.2f}" for side in (0, 1)]
        cells = [named(load_in, double_quant), "yes" if same else "no", *seconds, f"{speed:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        missed += (not same) + (speed < 0.97)
    return missed


def pair(path: Path, load_in: str, double_quant: bool) -> list[list[tuple[str, float]]]:
    """Texts and seconds of a script and of ours, answering in turns; the first turn only warms up."""
    command = [sys.executable, "-c", PLAIN, str(path), load_in, str(double_quant), str(TOKENS), QUESTION]
    plan = memfit.plan(str(path), load_in=load_in, double_quant=double_quant)
    with (
        memfit.load(plan) as session,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as script,
    ):
        assert script.stdin is not None and script.stdout is not None

        def theirs() -> tuple[str, float]:
            print(file=script.stdin, flush=True)
            return tuple(json.loads(script.stdout.readline()))

        def ours() -> tuple[str, float]:
            session.measure(1, 1)  # leaves nothing in the cache: a common beginning would not be computed
            found = session.chat([{"role": "user", "content": QUESTION}], greedy(TOKENS))
            return found.text, found.speed.prompt_seconds + found.speed.generation_seconds

        return [[theirs(), ours()] for _ in range(1 + TURNS)][1:]


# -- layers on the disk ----------------------------------------------------------------------------


def offload(folder: Path) -> int:
    print(
        "| model | budget | streamed | peak | error | tok/s | predicted | same text | missed |\n|"
        + " --- |" * 9
    )
    path, missed = checkpoint("demo", folder / "demo"), 0
    for load_in in ("fp32", "bf16"):
        whole = memfit.plan(str(path), load_in=load_in, workload=memfit.Workload(context=1024))
        layers = sum(one.size_bytes for one in whole.spec.tensors if ".layers." in one.name)
        half = layers // (4 if load_in == "bf16" else 2)
        texts = []
        for ram in (None, whole.tiers[0].total_bytes - half):
            plan = memfit.plan(
                str(path), load_in=load_in, budget=memfit.Budget(ram=ram), workload=whole.workload
            )
            with memfit.load(plan) as session:
                found = session.chat([{"role": "user", "content": QUESTION}], greedy(32))
                report = session.report()
            texts.append(found.text)
        tier = report.tiers[0]
        bars = {"budget": report.within_budget, "text": texts[0] == texts[1], "disk": plan.streamed_bytes > 0}
        cells = [f"SmolLM2 {load_in}", mib(tier.budget_bytes), mib(plan.streamed_bytes), mib(tier.peak_bytes)]
        cells += [mib(tier.error_bytes), f"{report.speed.generation_tokens_per_second:.2f}"]
        cells += [f"{plan.prediction.generation.value:.2f}", "yes" if bars["text"] else "no"]
        cells.append(", ".join(bar for bar, met in bars.items() if not met))
        print(f"| {' | '.join(cells)} |", flush=True)
        missed += sum(not met for met in bars.values())
    return missed


# -- both engines ----------------------------------------------------------------------------------


def engines(folder: Path) -> int:
    path, gguf = checkpoint("demo", folder / "demo"), folder / "f16.gguf"
    rewrite(models()["demo"], gguf, kind="F16")
    beginnings = beginnings_of(path)
    found = [next_tokens(str(one), beginnings) for one in (path, gguf)]
    same = sum(one == other for one, other in zip(*found, strict=True)) / len(beginnings)
    print(
        f"transformers in fp32 and llama.cpp in F16: {same:.1%} of {len(beginnings)} next tokens are the same"
    )
    return same < 0.99


def beginnings_of(path: Path) -> list[str]:
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT)
    return [TEXT[:end] for _, end in encoded.offsets[:AGREEMENT_TOKENS]]


def next_tokens(model: str, beginnings: list[str]) -> list[str]:
    with memfit.load(memfit.plan(model, workload=memfit.Workload(context=2048))) as session:
        return [session.generate(text, greedy(1)).text for text in beginnings]


if __name__ == "__main__":
    sys.exit(main())
