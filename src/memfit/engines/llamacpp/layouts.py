"""Matrices that are held in two forms: one for passes of few tokens, one for those of many.

Some CPUs compute a prompt faster with the plain form and a single token with the rewritten one, or a prompt
with BF16. Before a pass all of them get the form that it uses: their nodes' type, buffer, data and what the
kernels know of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from memfit.engines.llamacpp.buffers import Form, form_of, give_form, rewriting_type
from memfit.engines.llamacpp.filling import allocate, fill
from memfit.engines.llamacpp.library import Library
from memfit.headers.model_spec import TensorSpec
from memfit.planner.speed import MANY_TOKENS

__all__ = ["Layouts", "rewritten_forms"]


class Layouts:
    """Knows both forms of some of a model's matrices. That for many tokens is in use at first."""

    def __init__(self, few: Mapping[int, Form], many: Mapping[int, Form]) -> None:
        """By the nodes' addresses."""
        self._few, self._many = few, many
        self._uses_few = False
        self._give(many)

    def use(self, tokens: int) -> None:
        """Give all matrices the form for a pass of so many tokens."""
        wants_few = tokens < MANY_TOKENS
        if wants_few != self._uses_few:
            self._give(self._few if wants_few else self._many)
            self._uses_few = wants_few

    def _give(self, forms: Mapping[int, Form]) -> None:
        for address, form in forms.items():
            give_form(address, form)


def rewritten_forms(
    library: Library, tensors: Mapping[TensorSpec, int], threads: int, came: Callable[[int], None]
) -> dict[int, Form]:
    """Rewrite `tensors`, given by their nodes' addresses, which have their data and keep it. `came` is told
    how many bytes are done. A matrix is left out where this CPU's kernels have no other form of it, as of an
    odd number of rows.

    Raises:
        EngineError: there is no memory.
    """
    ggml, cpu = library.ggml_base, library.ggml.ggml_backend_dev_by_type(0)
    before = {address: form_of(address) for address in tensors.values()}
    kinds: dict[int, list[tuple[TensorSpec, int]]] = {}
    for tensor, address in tensors.items():
        if kind := rewriting_type(ggml, cpu, address):
            kinds.setdefault(kind, []).append((tensor, address))
    taken = [one for kind, group in kinds.items() for one in allocate(ggml, kind, group)]

    @contextlib.contextmanager
    def plain(tensor: TensorSpec) -> Iterator[int]:
        data = before[tensors[tensor]].data
        assert data is not None
        yield data

    fill(ggml, taken, plain, threads=threads, came=came)
    rewritten = {address: form_of(address) for _, address in taken}
    for address, form in before.items():
        give_form(address, form)
    return rewritten
