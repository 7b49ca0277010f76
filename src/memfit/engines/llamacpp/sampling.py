"""A request's sampling settings as llama.cpp's sampler chain, in llama.cpp's own order."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from typing import Any

from memfit.engines.protocol import Sampling
from memfit.errors import UsageError, readable

__all__ = ["Grammars", "Sampler"]

_PENALTY_TOKENS = 64  # how far back a repeated token is penalised; llama.cpp's default


class Sampler:
    """Chooses the next tokens of one request; a context manager."""

    def __init__(self, api: Any, sampling: Sampling, vocabulary_size: int, grammar: Any = None) -> None:
        """`grammar` is a sampler that refuses tokens; it is freed with this."""
        self._api = api
        self._size = vocabulary_size
        self._grammar = grammar
        self._penalises = sampling.repeat_penalty != 1.0
        # The largest logit is the choice, and nothing has to be remembered.
        self.is_greedy = sampling.temperature <= 0 and not self._penalises and grammar is None
        self._chain = self._build(sampling)

    def _build(self, sampling: Sampling) -> Any:
        api = self._api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        parts = []
        if self._penalises:
            parts.append(
                api.llama_sampler_init_penalties(
                    self._size, _PENALTY_TOKENS, sampling.repeat_penalty, 0.0, 0.0
                )
            )
        if sampling.temperature <= 0:
            parts.append(api.llama_sampler_init_greedy())
        else:
            parts += (
                api.llama_sampler_init_top_k(sampling.top_k),
                api.llama_sampler_init_top_p(sampling.top_p, 1),
                api.llama_sampler_init_min_p(sampling.min_p, 1),
                api.llama_sampler_init_temp(sampling.temperature),
                api.llama_sampler_init_dist(sampling.seed),
            )
        for part in parts:
            api.llama_sampler_chain_add(chain, part)
        return chain

    def choose(self, context: int, entry: int) -> int:
        """The next token, from the logits of a batch's entry; -1 is the last one.

        As llama.cpp does, a grammar is first asked about the one token that would be chosen without it,
        and about the whole vocabulary only where it refuses that.
        """
        api = self._api
        if self._grammar is None:
            return int(api.llama_sampler_sample(self._chain, context, entry))
        token = -1
        if not self._penalises:  # which would remember a token that is refused
            token = int(api.llama_sampler_sample(self._chain, context, entry))
        if token < 0 or not self._allows(token):
            token = self._choose_allowed(context, entry)
        api.llama_sampler_accept(self._grammar, token)
        return token

    def _allows(self, token: int) -> bool:
        api = self._api
        one = (api.llama_token_data * 1)()
        one[0].id, one[0].logit = token, 1.0
        api.llama_sampler_apply(self._grammar, api.llama_token_data_array(one, 1, -1, False))
        return bool(one[0].logit > float("-inf"))

    def _choose_allowed(self, context: int, entry: int) -> int:
        import numpy as np

        api, size = self._api, self._size
        logits = api.llama_get_logits_ith(context, entry)
        values: Any = (ctypes.c_float * size).from_address(ctypes.addressof(logits.contents))
        candidates = np.zeros(size, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
        candidates["id"] = np.arange(size)
        candidates["logit"] = np.frombuffer(values, dtype=np.float32)
        data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(api.llama_token_data))
        array = api.llama_token_data_array(data, size, -1, False)
        api.llama_sampler_apply(self._grammar, array)
        api.llama_sampler_apply(self._chain, array)
        token = int(array.data[array.selected].id)
        api.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        self._api.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._api.llama_sampler_free(self._grammar)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Grammars:
    """JSON schemas as samplers that allow what satisfies them: each is translated once."""

    def __init__(self, api: Any, vocabulary: int) -> None:
        self._api = api
        self._vocabulary = vocabulary
        self._known: dict[str, Any] = {}

    def sampler(self, schema: Mapping[str, Any]) -> Any:
        """A new sampler for a JSON schema.

        Raises:
            UsageError: it is not a schema, or has parts that cannot be translated.
        """
        text = json.dumps(schema, sort_keys=False)
        if text not in self._known:
            self._known[text] = self._translate(text)
        return self._api.llama_sampler_clone(self._known[text])

    def _translate(self, schema: str) -> Any:
        # The package's own translation; it needs nothing of the rest, so it does without its __init__ too.
        from llama_cpp.llama_grammar import json_schema_to_gbnf

        try:
            grammar = json_schema_to_gbnf(schema)
        except RecursionError:
            raise UsageError("the JSON schema is nested too deeply") from None
        except Exception as error:  # it asserts, and looks up what is not there
            raise UsageError(
                f"the JSON schema cannot be used: {readable(str(error) or repr(error), most=200, kept='')}"
            ) from None
        sampler = self._api.llama_sampler_init_grammar(self._vocabulary, grammar.encode(), b"root")
        if not sampler:
            raise UsageError("the engine refuses the grammar of the JSON schema")
        return sampler
