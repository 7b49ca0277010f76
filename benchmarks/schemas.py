"""Answers that follow JSON schemas: whether they hold, what grammars cost, and whether a batch of them fits.

    python benchmarks/schemas.py answers [--model demo]      the tests' schemas, each answered and judged
    python benchmarks/schemas.py cost [--model demo]         CPU time of a token with a grammar and without
    python benchmarks/schemas.py batch [--ram 700MiB]        1,500 requests with a schema each, and without
    python benchmarks/schemas.py vocabulary [--model demo]   seconds and bytes until the first grammar

Needs jsonschema and pydantic (the extra "test"). CPU time, since it is the same beside other programs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

import memfit
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.engines.protocol import Answer, Request, Sampling

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


def _plan(model: str, ram: str, **workload: Any) -> Any:
    return memfit.plan(
        model, budget=memfit.Budget(ram=ram), workload=memfit.Workload(threads=1, repack="off", **workload)
    )


def _answers(session: Any, requests: Sequence[Request]) -> dict[int, Answer]:
    batch = session.batch()
    for request in requests:
        batch.add(request)
    batch.end()
    return {one.number: one for one in batch.events() if isinstance(one, Answer)}


def _ask(number: int, text: str, schema: Any, max_tokens: int = _MOST_TOKENS) -> Request:
    return Request(
        number=number,
        messages=({"role": "user", "content": text},),
        sampling=Sampling(temperature=0, max_tokens=max_tokens),
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


def vocabulary(model: str, ram: str) -> None:
    del ram
    spec = memfit.plan(model).spec
    from dataclasses import replace

    from memfit.engines.llamacpp.oracle import small_parameters

    with LlamaWorker() as worker:
        small = small_parameters(spec, False)
        before = worker.ask("simulate", parameters=small.to_json())
        process = psutil.Process(worker.pid)
        began, cpu = time.monotonic(), sum(process.cpu_times()[:2])
        after = worker.ask("simulate", parameters=replace(small, grammar_bytes=1 << 23).to_json())
        wall, spent = time.monotonic() - began, sum(process.cpu_times()[:2]) - cpu
    held = after["anonymous_bytes"] - before["anonymous_bytes"]
    print(f"{spec.vocabulary} tokens: {wall:.2f} s, {spent:.2f} s of CPU, {held / 2**20:.1f} MiB")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tasks = {"answers": answers, "cost": cost, "batch": batch, "vocabulary": vocabulary}
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--ram", default="700MiB")
    options = parser.parse_args()
    tasks[options.task](options.model, options.ram)


if __name__ == "__main__":
    main()
