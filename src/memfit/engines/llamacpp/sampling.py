"""Which token comes next in one answer: llama.cpp's samplers, held to a grammar where there is one."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from memfit.closing import Closing
from memfit.engines.llamacpp.chain import build_chain, remembers
from memfit.engines.llamacpp.grammar import Grammar
from memfit.engines.requests import Sampling

if TYPE_CHECKING:
    from memfit.engines.llamacpp.model import LlamaModel

__all__ = ["Candidates", "Sampler"]

_CANDIDATE = [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]  # llama_token_data


class Candidates:
    """All tokens of a vocabulary as the samplers take them; the same memory for every choice."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used: Any = None

    def filled(self, logits: Any) -> Any:
        """With these logits. The samplers change their order."""
        import numpy as np

        if self._used is None:
            self._used = np.zeros(self._size, dtype=_CANDIDATE)
            self._ids = np.arange(self._size, dtype=np.int32)
        self._used["id"], self._used["logit"] = self._ids, logits
        return self._used


class Sampler(Closing):
    """Chooses the next tokens of one request; a context manager."""

    def __init__(
        self,
        api: Any,
        model: LlamaModel,
        sampling: Sampling,
        grammar: Grammar | None = None,
        *,
        alone: bool = True,
        candidates: Candidates | None = None,
        keeps: int | None = None,
    ) -> None:
        """`grammar` is closed with this. Where it is not `alone` it keeps no candidates from token to token:
        12 bytes for each token of the vocabulary; those that it uses are others', too. `keeps` so many of the
        tokens that sampling left over.

        Raises:
            UsageError: a setting names a token that the vocabulary has not.
        """
        self._api = api
        self._alone = alone
        self._size = model.vocabulary_size
        self._grammar = grammar
        self._keeps = keeps
        self.left: list[tuple[int, float]] = []  # for the last choice, with their probabilities
        self.chance = 1.0  # of the last choice among them
        self._remembers = remembers(sampling)
        # The largest logit is the choice, among those that are allowed, and nothing has to be remembered.
        self.is_greedy = sampling.temperature <= 0 and not self._remembers and keeps is None
        self._draws = sampling.temperature > 0
        self._candidates = candidates or Candidates(self._size)
        self._chain = build_chain(api, model, sampling)

    def choose(self, context: int, entry: int, likeliest: int = -1) -> int:
        """The next token, from the logits of a batch's entry; -1 is the last one.

        As llama.cpp does, a grammar is first asked about the one token that would be chosen without it,
        and about the whole vocabulary only where it refuses that. `likeliest` is the one with the largest
        logit, where it is known.
        """
        if self._grammar is None and self._alone and self._keeps is None:
            return int(self._api.llama_sampler_sample(self._chain, context, entry))
        logits = self._logits(context, entry)
        if self.is_greedy:
            token = likeliest if likeliest >= 0 else int(logits.argmax())
            return token if self._allows(token) else self._likeliest_allowed(logits)
        token = self._draw(logits, None)
        if not self._allows(token):
            token = self._draw(logits, self._allowed())
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def _allows(self, token: int) -> bool:
        return self._grammar is None or self._grammar.allows(token)

    def follow(self, token: int, *, forced: bool = True) -> list[int]:
        """The chosen token, and those that a grammar leaves no choice about after it, where `forced` ones are
        wanted at once. Errors as Grammar's."""
        if self._grammar is None:
            return [token]
        self._grammar.take(token)
        return [token, *(self.forced() if forced else ())]

    def forced(self) -> list[int]:
        """The tokens that must come now, before any is chosen."""
        if self._grammar is None:
            return []
        tokens = self._grammar.forced()
        if self._remembers:
            for each in tokens:
                self._api.llama_sampler_accept(self._chain, each)
        return tokens

    @property
    def has_grammar(self) -> bool:
        return self._grammar is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow, by the grammar."""
        return self._grammar is not None and self._grammar.is_complete

    def _logits(self, context: int, entry: int) -> Any:
        import numpy as np

        logits = self._api.llama_get_logits_ith(context, entry)
        values: Any = (ctypes.c_float * self._size).from_address(ctypes.addressof(logits.contents))
        return np.frombuffer(values, dtype=np.float32)

    def _allowed(self) -> Any:
        """The tokens that the grammar allows."""
        import numpy as np

        assert self._grammar
        bits = np.frombuffer(self._grammar.mask(), dtype=np.uint8)
        return np.flatnonzero(np.unpackbits(bits, count=self._size, bitorder="little"))

    def _likeliest_allowed(self, logits: Any) -> int:
        allowed = self._allowed()
        return int(allowed[logits[allowed].argmax()])

    def _draw(self, logits: Any, allowed: Any) -> int:
        """One of the tokens by the chain; None: of all."""
        import numpy as np

        api = self._api
        if allowed is None:
            candidates = self._candidates.filled(logits)
        else:
            candidates = np.zeros(len(allowed), dtype=_CANDIDATE)
            candidates["id"], candidates["logit"] = allowed, logits[allowed]
        count = len(candidates)
        data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(api.llama_token_data))
        array = api.llama_token_data_array(data, count, -1, False)
        api.llama_sampler_apply(self._chain, array)
        chosen = int(array.data[array.selected].id)
        if self._keeps is not None and self._draws:
            self.left = self._most_probable(candidates[: array.size])
            self.chance = float(array.data[array.selected].p)
        elif self._keeps is not None:
            self.left = [(chosen, 1.0)]
        return chosen

    def _most_probable(self, left: Any) -> list[tuple[int, float]]:
        most = left[(-left["p"]).argsort(kind="stable")[: self._keeps]]
        return [(int(one["id"]), float(one["p"])) for one in most if one["p"] > 0]

    def close(self) -> None:
        self._api.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._grammar.close()
