"""The oracle's parent side: asks simulating workers, one per way of holding the weights.

What they answered once about one sequence in RAM is kept in the cache folder: it depends on the model's
header, the configuration and the engine's build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memfit.closing import Closing
from memfit.engines.calibration import KeptAnswers
from memfit.engines.llamacpp.process import LlamaWorker
from memfit.engines.requests import Request
from memfit.hardware.machine import is_remote
from memfit.headers.model_spec import ModelSpec
from memfit.headers.purpose import embeds
from memfit.memory.estimate import RAM, DeviceBytes, Graph, LlamaConfig, MemoryEstimate, Operation
from memfit.memory.grammars import grammar_bytes
from memfit.memory.process_memory import Baseline, ProcessMemory

__all__ = ["LlamaOracle", "grammar_memory", "small_config"]


class LlamaOracle(Closing):
    """Answers by llama.cpp's `no_alloc` mode; byte for byte what a real load allocates.

    Repacked and plain weights are two loads, so each has a worker. With the first question that was not asked
    before those of `repack_modes` start, another one when it is first asked for. A vocabulary takes most of a
    load's time and is the same in both, so only the first worker reads it, and the processes' own memory is
    always that one's.
    """

    def __init__(
        self,
        spec: ModelSpec,
        baseline: Baseline,
        *,
        repack_modes: tuple[bool, ...],
        answers: KeptAnswers | None = None,
        grammar: ProcessMemory | None = None,
        verbose: bool = False,
    ) -> None:
        """`answers` are those that were given before; `grammar` is what the model's vocabulary takes as the
        ground of grammars: `grammar_memory`'s."""
        self._baseline = baseline
        self._grammar = grammar
        self._spec = spec
        self._verbose = verbose
        self._repack_modes = repack_modes
        self._first = repack_modes[0]
        self._workers: dict[bool, LlamaWorker] = {}
        self._kept = answers
        self._loaded_more: set[bool] = set()  # workers that hold more than a plain question's
        self._answers: dict[LlamaConfig, MemoryEstimate] = {}

    def ask(self, config: LlamaConfig) -> MemoryEstimate:
        if not config.op_offload:  # else how weights are read decides what devices compute
            config = replace(config, load_mode="read")
        if config not in self._answers:
            self._answers[config] = self._ask(config)
        return self._answers[config]

    def tokenize(self, requests: Sequence[Request]) -> list[list[int] | None]:
        """The tokens of each request's prompt, template included; None where it makes no prompt."""
        asked = [one.to_json() for one in requests]
        worker = self._worker(self._first)
        worker.ask("simulate", **self._question(small_config(self._spec, self._first)))
        tokens: list[list[int] | None] = worker.ask("tokenize", requests=asked)["tokens"]
        return tokens

    def settle(self) -> None:
        """Wait until no worker computes: speeds are measured on a quiet machine."""
        for worker in self._workers.values():
            worker.skip_posted()

    def _worker(self, repack: bool) -> LlamaWorker:
        modes = {repack} if self._workers else {*self._repack_modes, repack}
        for mode in modes - self._workers.keys():
            self._workers[mode] = LlamaWorker(verbose=self._verbose)
            # Posted, not asked: the workers load in parallel, and this answer is of no interest.
            self._workers[mode].post("simulate", **self._question(small_config(self._spec, mode)))
        return self._workers[repack]

    def _simulate(self, config: LlamaConfig) -> dict[str, Any]:
        """A worker's reply, of now or of an earlier command."""
        question = self._question(config)
        name = json.dumps({**question, "config": {**question["config"], "paths": None}}, sort_keys=True)
        # A device's driver and numpy, once loaded, count in this and in every later answer of their worker.
        alone = not (config.devices or config.needs_numpy)
        if alone and self._kept and (known := self._kept.find(name)):
            return known
        reply = self._worker(config.repack).ask("simulate", **question)
        if not alone:
            self._loaded_more.add(config.repack)
        elif self._kept and config.repack not in self._loaded_more:
            self._kept.keep(name, reply)
        return reply

    def _question(self, config: LlamaConfig) -> dict[str, Any]:
        whole = config.repack == self._first
        return {
            "config": config.to_json(),
            "without_vocabulary": None if whole else [self._spec.architecture, self._spec.vocabulary],
        }

    def _ask(self, config: LlamaConfig) -> MemoryEstimate:
        whole = config.repack == self._first
        reply = self._simulate(config)
        if not config.kv_unified:  # what one token computes can only be told of a common cache
            graphs = self._simulate(replace(config, kv_unified=True))
            reply = reply | {name: graphs[name] for name in ("generation", "prompt")}
        held = _memory(reply)
        if config.grammar_bytes:
            assert self._grammar, "whoever plans grammars measures the vocabulary"
            held = held.plus(self._grammar)
        ram, *devices = reply["bytes"]
        messages = reply["prompt"]["message_bytes"]
        remote = [is_remote(name) for name in config.devices]
        layers = reply["prompt"]["layer_kv_bytes"]  # JSON made their numbers texts
        return MemoryEstimate(
            context=reply["context"],
            **ram,
            scratch_bytes=reply["scratch_bytes"]
            + reply["candidate_bytes"]
            + reply["score_bytes"]
            + reply["embedding_bytes"]
            + (messages[RAM] if any(remote) else 0),
            process_bytes=self._baseline.with_worker(held)
            + config.grammar_bytes
            + config.serving_bytes
            + config.importance_bytes
            if whole
            else self.ask(replace(config, repack=self._first)).process_bytes,
            generation=_graph(reply["generation"], 1),
            prompt=_graph(reply["prompt"], reply["ubatch"]),
            layer_kv_bytes=tuple(
                layers.get(str(layer), 0) for layer in range(1 + max(map(int, layers), default=-1))
            ),
            devices=tuple(
                DeviceBytes(
                    **device,
                    scratch_bytes=reply["scratch_bytes"] + (message if sent else 0),
                    thread_bytes=reply["thread_bytes"],
                )
                for device, message, sent in zip(devices, messages[1:], remote, strict=True)
            ),
        )

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()  # it holds nothing worth an orderly end
            worker.close()


def grammar_memory(spec: ModelSpec) -> ProcessMemory:
    """What a worker holds more where answers follow grammars: their library, and the vocabulary it reads."""
    # As where they are planned for: numpy, which they need as several sequences do, is counted there.
    config = replace(small_config(spec, False), grammar_bytes=grammar_bytes(1)).to_json()
    with LlamaWorker() as worker:
        without, with_one = (
            _memory(worker.ask("simulate", config=config, with_grammar=it)) for it in (False, True)
        )
    return with_one.minus(without)


def _memory(reply: Mapping[str, Any]) -> ProcessMemory:
    return ProcessMemory(anonymous_bytes=reply["anonymous_bytes"], files=reply["files"])


def small_config(spec: ModelSpec, repack: bool) -> LlamaConfig:
    """A configuration that is quick to ask about, where any will do."""
    return LlamaConfig(
        paths=spec.paths,
        context=256,
        parallel=1,
        kv_type="f16",
        ubatch=32,
        threads=1,
        repack=repack,
        load_mode="read",
        embeds=embeds(spec),
    )


def _graph(values: Mapping[str, Any], tokens: int) -> Graph:
    return Graph(
        tokens=tokens,
        operations=tuple(Operation(**operation) for operation in values["operations"]),
        splits=tuple(values["splits"]),
        split_bytes=tuple(values["split_bytes"]),
        sent_bytes=tuple(values["sent_bytes"]),
        last_device=values["last_device"],
    )
