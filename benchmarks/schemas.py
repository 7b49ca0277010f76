"""Answers that follow JSON schemas: whether they hold, what grammars cost, and whether a batch of them fits.

    python benchmarks/schemas.py answers [--model demo]      the tests' schemas, each answered and judged
    python benchmarks/schemas.py cost [--model demo]         CPU time of a token with a grammar and without
    python benchmarks/schemas.py batch [--ram 700MiB]        1,500 requests with a schema each, and without
    python benchmarks/schemas.py masks [--model demo]        of a grammar alone, with every token masked too
    python benchmarks/schemas.py vocabulary [--model demo]   seconds and bytes until the first grammar
    python benchmarks/schemas.py first [--model demo]        seconds from a command to its first token

With `--tokens qwen.tiktoken` (151,643 tokens; the package dashscope has it) instead of `--model`, on random
weights of Qwen2.5-0.5B's shape with these tokens.
Needs jsonschema and pydantic (the extra "test"). CPU time, since it is the same beside other programs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from shapes import Shape

import memfit
from memfit.engines.requests import Request, RequestResult, Sampling

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pure"))

_MOST_TOKENS = 500
_TEXT = {"type": "string"}
_STORY = {  # free texts, as an extraction or a report has them
    "type": "object",
    "properties": {
        "title": _TEXT,
        "summary": _TEXT,
        "characters": {
            "type": "array",
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {
                    "name": _TEXT,
                    "age": {"type": "integer"},
                    "role": {"enum": ["hero", "villain"]},
                },
                "required": ["name", "age", "role"],
            },
        },
        "text": _TEXT,
    },
    "required": ["title", "summary", "characters", "text"],
}

# Qwen2.5-0.5B's, in Q4_0.
_QWEN = Shape(
    architecture="llama",
    mix="Q4_0",
    layers=24,
    width=896,
    feed_forward=4864,
    heads=14,
    kv_heads=2,
    vocabulary=151936,
)


def _plan(model: str, ram: str, **workload: Any) -> Any:
    return memfit.plan(
        model, budget=memfit.Budget(ram=ram), workload=memfit.Workload(threads=1, repack="off", **workload)
    )


def _answers(session: Any, requests: Sequence[Request]) -> dict[int, RequestResult]:
    batch = session.open()
    for request in requests:
        batch.add(request)
    batch.end()
    return {one.number: one for one in batch.events() if isinstance(one, RequestResult)}


def _ask(number: int, text: str, schema: Any, max_tokens: int = _MOST_TOKENS) -> Request:
    return Request(
        number=number,
        messages=({"role": "user", "content": text},),
        sampling=Sampling(seed=number, max_tokens=max_tokens),
        schema=schema,
    )


def answers(model: str, ram: str) -> None:
    from json_schemas import keywords, programs
    from test_grammar import check_answer

    for source, schemas in (
        ("programs", programs()),
        ("keywords", {name: schema for name, (schema, pointer) in keywords().items() if pointer is None}),
    ):
        names = list(schemas)
        plan = _plan(model, ram, context=8 * 1024, parallel=8, grammars=True)
        with memfit.load(plan, count_parent=False) as session:
            asked = [
                _ask(number, "Answer with an example, as JSON.", schemas[name])
                for number, name in enumerate(names)
            ]
            found = _answers(session, asked)
            report = session.report()
        counts: Counter[str] = Counter()
        for number, answer in sorted(found.items()):
            completion = answer.completion
            verdict = "refused" if completion is None else completion.finish_reason
            if completion and completion.finish_reason == "stop":
                try:
                    check_answer(schemas[names[number]], completion.text.encode())
                except Exception as error:
                    verdict = "BROKEN"
                    print(f"  {names[number]}: {completion.text!r}: {error}")
            elif verdict != "stop":
                print(f"  {names[number]}: {verdict} {answer.error or ''}")
            counts[verdict] += 1
        tier = report.tiers[0]
        print(
            f"{source}: {dict(counts)}; RAM predicted {tier.predicted_bytes >> 20}, "
            f"peak {(tier.peak_bytes or 0) >> 20} MiB"
        )


def cost(model: str, ram: str) -> None:
    plan = _plan(model, ram, context=2048, grammars=True)
    with memfit.load(plan, count_parent=False) as session:
        worker = psutil.Process(session.worker_pid)
        session.generate("a", Sampling(temperature=0, max_tokens=4), schema=_STORY)
        for name, temperature in (("greedy", 0.0), ("drawn", 0.8)):
            for schema in (None, _STORY):
                began, tokens = sum(worker.cpu_times()[:2]), 0
                for seed in range(6):
                    done = session.generate(
                        f"Story {seed}: once upon a time",
                        Sampling(temperature=temperature, seed=seed, max_tokens=150),
                        schema=schema,
                    )
                    tokens += done.completion_tokens
                spent = sum(worker.cpu_times()[:2]) - began
                kind = "a schema" if schema else "no schema"
                print(f"{name}, {kind}: {1000 * spent / tokens:.2f} ms of CPU a token, {tokens} tokens")


def masks(model: str, ram: str) -> None:
    """What a grammar adds to a token: where the model's choice is allowed, and where a mask is needed."""
    del ram
    import numpy

    from memfit.engines.llamacpp.grammar import Grammars
    from memfit.engines.llamacpp.library import load_library
    from memfit.hub.resolve import resolve

    api = load_library().api
    silent = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(silent, None)
    options = api.llama_model_default_params()
    options.vocab_only = True
    file = str(resolve(model).read_spec().paths[0]).encode()
    words = api.llama_model_get_vocab(api.llama_model_load_from_file(file, options))
    size = api.llama_vocab_n_tokens(words)
    grammars = Grammars(api, words, limit_bytes=1 << 26)
    began = time.process_time()
    grammars.wait()
    print(f"{size} tokens: read in {time.process_time() - began:.2f} s of CPU")
    logits = numpy.random.default_rng(0).standard_normal(size).astype(numpy.float32)
    person = {"name": "Ada of the hills", "age": 36, "role": "hero"}
    words_of_story = "It was late in the year, and snow lay on the roads; nobody had come for days. " * 8
    story = {"title": "The mill", "summary": "Snow.", "characters": [person] * 3, "text": words_of_story}
    text = json.dumps(story).encode()
    plain: list[float] = []
    masked: list[float] = []
    forced = 0
    with grammars.grammar(_STORY) as grammar:
        wanted, at = _tokenized(api, words, text), 0
        while at < len(wanted):
            began = time.process_time()
            given = grammar.forced()
            if given:
                forced += len(given)
                text = text[len(b"".join(_pieces(api, words, given))) :]
                wanted, at = _tokenized(api, words, text), 0
                continue
            assert grammar.allows(wanted[at])
            plain.append(time.process_time() - began)
            began = time.process_time()
            allowed = numpy.flatnonzero(
                numpy.unpackbits(numpy.frombuffer(grammar.mask(), numpy.uint8), count=size, bitorder="little")
            )
            allowed[logits[allowed].argmax()]
            masked.append(time.process_time() - began)
            began = time.process_time()
            grammar.take(wanted[at])
            plain[-1] += time.process_time() - began
            text = text[len(b"".join(_pieces(api, words, wanted[at : at + 1]))) :]
            at += 1
    masked.sort()
    print(
        f"{len(plain)} tokens chosen, {forced} forced; "
        f"of one that is allowed {1e6 * sum(plain) / len(plain):.0f} us; "
        f"with a mask mean {1e6 * sum(masked) / len(masked):.0f}, "
        f"median {1e6 * masked[len(masked) // 2]:.0f}, 99 % {1e6 * masked[int(0.99 * len(masked))]:.0f} us"
    )


def _tokenized(api: Any, words: Any, text: bytes) -> list[int]:
    room = (ctypes.c_int32 * (len(text) + 8))()
    count = api.llama_tokenize(words, text, len(text), room, len(room), False, False)
    return list(room[:count])


def _pieces(api: Any, words: Any, tokens: Sequence[int]) -> list[bytes]:
    found = []
    for token in tokens:
        buffer = ctypes.create_string_buffer(256)
        found.append(buffer.raw[: api.llama_token_to_piece(words, token, buffer, 256, 0, False)])
    return found


def vocabulary(model: str, ram: str) -> None:
    del ram
    spec = memfit.plan(model).spec
    from memfit.engines.llamacpp.oracle import grammar_memory

    began = time.monotonic()
    held = grammar_memory(spec).total_bytes
    wall = time.monotonic() - began
    print(f"{spec.vocabulary} tokens: {held / 2**20:.1f} MiB, measured in {wall:.2f} s")


def first(model: str, ram: str) -> None:
    """Of whole commands, in turns: what of a grammar is not hidden behind loading."""
    schema = Path(tempfile.mkstemp(suffix=".json")[1])
    schema.write_text(json.dumps(_STORY))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(7):
        for with_schema, found in seconds.items():
            more = ["--schema", str(schema)] if with_schema else []
            words = ["run", model, "-p", "Tell a story.", "--raw", "--ram", ram, "--max-tokens", "4", *more]
            command = [sys.executable, "-m", "memfit", *words]
            began = time.monotonic()
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.read(1)
                found.append(time.monotonic() - began)
                process.stdout.read()
    schema.unlink()
    plain, bound = (sorted(found)[len(found) // 2] for found in seconds.values())
    print(
        f"first token after {plain:.2f} s, with a schema {bound:.2f} s (medians of 7): {bound - plain:+.2f} s"
    )


def batch(model: str, ram: str) -> None:
    for with_schemas in (False, True):
        requests = []
        for number in range(1500):
            names = [f"p{number}_{index}" for index in range(40)]
            schema = {
                "type": "object",
                "properties": {name: {"type": "boolean"} for name in names},
                "required": names,
            }
            requests.append(_ask(number, f"Fill in form {number}.", schema if with_schemas else None, 8))
        plan = _plan(model, ram, context=8192, parallel=16, grammars=with_schemas)
        if not plan.fits:
            print(f"schemas {with_schemas}: does not fit {ram}, needs {plan.ram.needs_bytes >> 20} MiB")
            continue
        with memfit.load(plan, count_parent=False) as session:
            found = _answers(session, requests)
            tier = session.report().tiers[0]
        done = sum(one.completion is not None for one in found.values())
        print(
            f"schemas {with_schemas}: {done} of 1500; budget {ram}, predicted "
            f"{tier.predicted_bytes / 2**20:.1f}, peak {(tier.peak_bytes or 0) / 2**20:.1f} MiB"
        )


def hostile(model: str, ram: str) -> None:
    """How soon schemas that are meant to do harm are refused, those of the tests."""
    del model, ram
    from test_json_schema import HOSTILE

    from memfit.engines.json_schema import check_schema
    from memfit.errors import UsageError

    for name, schema in HOSTILE.items():
        began = time.process_time()
        with contextlib.suppress(UsageError):
            check_schema(schema)
        print(f"{time.process_time() - began:6.2f} s of CPU  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tasks = {"answers": answers, "cost": cost, "masks": masks, "batch": batch, "vocabulary": vocabulary}
    tasks |= {"first": first, "hostile": hostile}
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--ram", default="700MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memfit-") as folder:
        if options.tokens:
            from synthetic import write_model

            options.model = str(Path(folder) / "qwen.gguf")
            write_model(Path(options.model), _QWEN, values="random", tiktoken=options.tokens)
        tasks[options.task](options.model, options.ram)


if __name__ == "__main__":
    main()
