"""Matrices in another form than the engine's choice: of another type, BF16 or Q8_0, which has every value of
some smaller ones; or plain in a model whose weights are rewritten.

The engine has built the model without memory; its nodes get the type, and a buffer of the right kind.
"""

from __future__ import annotations

from memfit.engines.llamacpp.buffers import Form, form_of, give_form, rewriting_type
from memfit.engines.llamacpp.graph import WEIGHTS_USAGE, Node
from memfit.engines.llamacpp.library import Library
from memfit.errors import EngineError
from memfit.memory.estimate import LlamaConfig
from memfit.memory.streaming import DEQUANTIZED, WIDENED, WIDENS

__all__ = ["Forms", "retype", "widen"]

_BLOCKS = 8192  # at once: they stay in a core's cache
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Forms:
    """A model's nodes with the types and the kinds of buffers that a configuration has for them."""

    def __init__(self, library: Library, model: int, config: LlamaConfig) -> None:
        """Raises EngineError where this CPU cannot rewrite what is to be widened."""
        self._ggml = library.ggml_base
        self._cpu = library.ggml.ggml_backend_dev_by_type(0)
        self._before: dict[int, Form] = {}
        self.added_bytes = 0  # to what the engine counts, which knows only its own kinds of buffers
        types = dict.fromkeys(config.dequantized, DEQUANTIZED) | dict.fromkeys(config.widened, WIDENED)
        plain = set(config.plain)
        for name, address in library.model_tensors(model) if types or plain else ():
            if name not in plain and name not in types:
                continue
            self._before[address] = form_of(address)
            if name in plain:
                self._move(address, self._ggml.ggml_backend_dev_buffer_type(self._cpu))
                continue
            retype(library, address, types[name])
            if name in config.widened:
                kind = rewriting_type(self._ggml, self._cpu, address)
                if kind is None:
                    raise EngineError(f"this CPU's kernels do not rewrite {name} as {WIDENED}")
                self._move(address, kind)

    def _move(self, address: int, kind: int) -> None:
        ggml = self._ggml
        before = ggml.ggml_backend_buffer_get_type(Node.from_address(address).buffer)
        size, counted = (ggml.ggml_backend_buft_get_alloc_size(one, address) for one in (kind, before))
        self.added_bytes += size - counted
        buffer = ggml.ggml_backend_buft_alloc_buffer(kind, 0)
        ggml.ggml_backend_buffer_set_usage(buffer, WEIGHTS_USAGE)
        give_form(address, form_of(address)._replace(buffer=buffer, data=None, extra=None))

    def undo(self) -> None:
        """Give them back what they had."""
        for address, form in self._before.items():
            if (buffer := form_of(address).buffer) != form.buffer:
                self._ggml.ggml_backend_buffer_free(buffer)
            give_form(address, form)


def retype(library: Library, address: int, type_name: str) -> None:
    """Let a node have a type, and the steps that follow from it."""
    node, ggml = Node.from_address(address), library.ggml_base
    node.type = library.type_numbers[type_name]
    node.nb[0] = ggml.ggml_type_size(node.type)
    node.nb[1] = ggml.ggml_row_size(node.type, node.ne[0])
    for dimension in (2, 3):
        node.nb[dimension] = node.nb[dimension - 1] * node.ne[dimension - 1]


def widen(type_name: str, blocks: memoryview, wide: memoryview) -> None:
    """Fill `wide` with Q8_0's blocks of the same weights: a scale of two bytes, 32 numbers of eight bits.

    Each of `blocks` begins with the same scale (ggml-common.h). Raises EngineError where Q8_0 does not hold
    every value of the type.
    """
    import numpy as np

    if type_name not in WIDENS:
        raise EngineError(f"{WIDENED} does not hold every value of {type_name}")
    rows = np.frombuffer(blocks, np.uint8).reshape(-1, 22 if type_name == "Q5_0" else 18)
    found = np.frombuffer(wide, np.uint8).reshape(len(rows), 34)
    table = np.array(_IQ4_NL, np.int8).view(np.uint8)
    for start in range(0, len(rows), _BLOCKS):
        part = rows[start : start + _BLOCKS]
        packed = part[:, -16:]  # of two weights, 16 apart
        numbers = np.concatenate([packed & 15, packed >> 4], axis=1)
        if type_name == "Q5_0":
            fifth_bits = np.unpackbits(part[:, 2:6], axis=1, bitorder="little")
            numbers = (numbers | fifth_bits << 4) - np.uint8(16)  # below zero as eight bits have it
        else:
            numbers = table[numbers]
        found[start : start + _BLOCKS, :2] = part[:, :2]
        found[start : start + _BLOCKS, 2:] = numbers
