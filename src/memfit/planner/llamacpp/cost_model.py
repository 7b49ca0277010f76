"""What each piece of a model (a layer's core, an FFN tensor, the output) costs a request on each device.

Attention, norms, routers and shared experts of a layer are one piece, its core, to which its attention
over the KV cache is counted; each of its large feed-forward or expert tensors is a piece of its own, and
so is the output. Counted as in speed.py, but without the efficiency of kernels, which divides everything
alike, and without graph splits, which placement.py counts.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from memfit.headers.model_spec import ModelSpec, TensorSpec
from memfit.memory.estimate import RAM, LlamaConfig, MemoryEstimate, Operation
from memfit.planner.llamacpp.placement import Layer, Piece
from memfit.planner.llamacpp.tensor_devices import layer_tensors, output_tensors
from memfit.planner.request import Workload
from memfit.planner.speed import DeviceSpeed, attention_key, cells_in_use

__all__ = ["CostModel", "Pieces"]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a problem is made of, whatever the rooms."""

    layers: tuple[Layer, ...]
    output: Piece | None

    @property
    def layers_bytes(self) -> int:
        """With their KV cache."""
        return sum(
            layer.kv_bytes + sum(piece.size_bytes for piece in (layer.core, *layer.ffn_tensors))
            for layer in self.layers
        )

    @property
    def size_bytes(self) -> int:
        return self.layers_bytes + (self.output.size_bytes if self.output else 0)


@dataclass(frozen=True)
class CostModel:
    """Prices the pieces of one model, for one workload."""

    spec: ModelSpec
    workload: Workload
    speeds: Sequence[DeviceSpeed]  # of RAM, and then of each device
    fixed: Container[str] = ()  # names of tensors that are in no piece, their devices being no question

    def pieces(self, config: LlamaConfig, base: MemoryEstimate) -> Pieces:
        """`base` is the answer with everything in RAM."""
        layers = layer_tensors(self.spec, self.fixed)
        output = [one for one in output_tensors(self.spec) if one.name not in self.fixed]
        others = self._other_seconds(base, max(1, len(layers)))
        found = []
        for index, tensors in enumerate(layers):
            core = self._piece(f"blk.{index}.core", tensors.core, config)
            has_cache = index < len(base.layer_kv_bytes)
            kv_bytes = base.layer_kv_bytes[index] if has_cache else 0
            attention = self._attention_seconds(kv_bytes, base) if has_cache else (0.0,) * len(self.speeds)
            parts = zip(core.seconds, attention, others, strict=True)
            found.append(
                Layer(
                    core=replace(core, seconds=tuple(map(sum, parts))),
                    kv_bytes=kv_bytes,
                    ffn_tensors=tuple(
                        self._piece(f"blk.{index}.{kind}", block, config)
                        for kind, block in tensors.ffn_tensors.items()
                    ),
                )
            )
        return Pieces(
            layers=tuple(found),
            output=self._piece("output", output, config, is_output=True) if output else None,
        )

    def _piece(
        self, name: str, tensors: Sequence[TensorSpec], config: LlamaConfig, *, is_output: bool = False
    ) -> Piece:
        prompt = 1 if is_output else self.workload.prompt_tokens  # logits of the last token only
        passes = 1 if is_output else -(-prompt // config.ubatch)
        takes_over = config.op_offload and not is_output
        # The engine takes the first device that does it.
        sending = (one for one in self.speeds[1:] if takes_over and one.sent_bytes_per_second)
        offload = next(sending, None)
        seconds = []
        for device, speed in enumerate(self.speeds):
            total = 0.0
            for tensor in tensors:
                if len(tensor.shape) < 2:
                    continue
                share = self.spec.active_share(tensor.name)
                columns, experts = tensor.shape[0], len(tensor.shape) > 2
                rates = speed.weight(tensor.type, columns, experts=experts)
                total += self.workload.generated_tokens * tensor.size_bytes * share / rates.bytes_per_second
                operations = 2 * tensor.elements * share * prompt
                if device == RAM and offload:
                    total += passes * tensor.size_bytes / offload.sent_bytes_per_second
                    sent = offload.weight(tensor.type, columns, experts=experts)
                    total += operations / sent.operations_per_second
                else:
                    total += operations / rates.operations_per_second
            seconds.append(total)
        size = sum(tensor.size_bytes for tensor in tensors)
        return Piece(name=name, size_bytes=size, seconds=tuple(seconds))

    def _attention_seconds(self, kv_bytes: int, base: MemoryEstimate) -> tuple[float, ...]:
        """A layer's attention over a request, by the nodes of the graph that read as many bytes."""
        prompt_tokens, generated = self.workload.prompt_tokens, self.workload.generated_tokens
        prompt_cells, generation_cells = cells_in_use(prompt_tokens, generated, self.workload.depth)
        one_token = _nearest(base.generation.operations, kv_bytes)
        batch = _nearest(base.prompt.operations, kv_bytes)
        if one_token is None or batch is None:
            return (0.0,) * len(self.speeds)
        found = []
        for speed in self.speeds:
            rates = speed.attending(attention_key(one_token.type, one_token.width))
            per_token = one_token.operations / one_token.count * min(1.0, generation_cells / one_token.cells)
            per_batch = batch.operations / batch.count * min(1.0, prompt_cells / batch.cells)
            reading = rates.bytes_per_second or speed.streaming_bytes_per_second
            streamed = kv_bytes * min(1.0, generation_cells / one_token.cells)
            found.append(
                generated * max(per_token / rates.generation, streamed / reading)
                + prompt_tokens / base.prompt.tokens * per_batch / rates.prompt
            )
        return tuple(found)

    def _other_seconds(self, base: MemoryEstimate, layers: int) -> tuple[float, ...]:
        """Norms, activations and the nodes themselves, the same for every layer."""
        passes = self.workload.prompt_tokens / base.prompt.tokens
        nodes = sum(one.count for one in base.generation.operations) / layers
        moved = passes * sum(one.bytes for one in base.prompt.operations if one.kind == "other") / layers
        return tuple(
            (self.workload.generated_tokens + passes) * nodes * speed.node_seconds
            + moved / speed.activation_bytes_per_second
            for speed in self.speeds
        )


def _nearest(operations: Sequence[Operation], kv_bytes: int) -> Operation | None:
    """The attention nodes that read this much each: layers with a window read less."""
    found = [one for one in operations if one.kind == "attention"]
    return min(found, key=lambda one: abs(one.bytes / one.count - kv_bytes), default=None)
