"""A model's vocabulary and chat template: from texts to tokens and back. Runs in the worker."""

from __future__ import annotations

import ctypes
import functools
import re
from typing import TYPE_CHECKING, Any

from memfit.engines.llamacpp.markers import find_markers, longest_piece, pieces_of
from memfit.errors import EngineError

if TYPE_CHECKING:
    from memfit.engines.chat_format import ChatFormat

__all__ = ["Vocabulary"]


class Vocabulary:
    """What LlamaModel knows of texts; the model itself has set what stands here first."""

    _api: Any
    _pointer: int  # llama_model
    vocabulary: int  # llama_vocab
    vocabulary_size: int
    own_template: str | None  # instead of the model's
    form: ChatFormat | None  # how answers are written, where somebody asked for it

    def tokenize(self, text: str, *, add_special: bool, reads_special: bool = True) -> list[int]:
        """Tokens of a text; special tokens written in it are recognised, or stay text."""
        tokens: list[int] = []
        for index, piece in enumerate(pieces_of(text, lambda: self._markers)):
            special = add_special and index == 0
            tokens += self._tokenize(piece, add_special=special, reads_special=reads_special)
        return tokens

    def _tokenize(self, text: str, *, add_special: bool, reads_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="surrogateescape")
        room = len(data) + 8  # a token is a byte at least; the rest is for BOS and EOS
        array = (ctypes.c_int32 * room)()
        flags = add_special, reads_special
        count = self._api.llama_tokenize(self.vocabulary, data, len(data), array, room, *flags)
        if count < 0:
            raise EngineError(f"the engine could not tokenize a text of {len(data)} bytes")
        return list(array[:count])

    @functools.cached_property
    def _markers(self) -> re.Pattern[str] | None:
        return find_markers(self._api, self.vocabulary)

    @property
    def longest_piece(self) -> int:
        """Bytes of text that one token stands for at most; 0: any number."""
        return longest_piece(self._api, self.vocabulary)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; part of a character, perhaps. Control tokens are empty."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._api.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def is_end(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self.vocabulary, token))

    @functools.cached_property
    def end_tokens(self) -> list[int]:
        """Those that end an answer."""
        return list(filter(self.is_end, range(self.vocabulary_size)))

    @functools.cached_property
    def control_tokens(self) -> dict[int, str]:
        """Tokens that are no text of an answer, with their names."""
        is_control = self._api.llama_vocab_is_control
        return {
            token: self.piece(token, special=True).decode("utf-8", errors="replace")
            for token in range(self.vocabulary_size)
            if is_control(self.vocabulary, token)
        }

    @functools.cached_property
    def shown_tokens(self) -> frozenset[int]:
        """The control tokens that an answer is read by."""
        form = self.form
        return frozenset(token for token, name in self.control_tokens.items() if form and form.shows(name))

    @property
    def fill_tokens(self) -> list[int]:
        """Those before a prefix, before a suffix and before what is filled in; none where one is missing."""
        api, vocabulary = self._api, self.vocabulary
        kinds = (api.llama_vocab_fim_pre, api.llama_vocab_fim_suf, api.llama_vocab_fim_mid)
        tokens = [kind(vocabulary) for kind in kinds]
        return tokens if min(tokens) >= 0 else []

    def chat_template(self, name: str | None = None) -> str | None:
        """The template that was given instead of the model's, or the one in its metadata, or the one of a
        name there; None where there is none."""
        if name is None and self.own_template is not None:
            return self.own_template
        text = self._api.llama_model_chat_template(self._pointer, name and name.encode())
        return text.decode("utf-8", errors="replace") if text is not None else None

    def added_tokens(self) -> dict[str, list[int]]:
        """What the vocabulary adds to a text, "bos" before it, "eos" and "sep" after it: a token or none."""
        api, vocabulary = self._api, self.vocabulary
        bos, eos, sep = (getattr(api, f"llama_vocab_{name}")(vocabulary) for name in ("bos", "eos", "sep"))
        return {
            "bos": [bos] if api.llama_vocab_get_add_bos(vocabulary) else [],
            "eos": [sep if eos < 0 else eos] if api.llama_vocab_get_add_eos(vocabulary) else [],
            "sep": [sep] if api.llama_vocab_get_add_sep(vocabulary) else [],
        }

    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token` as text, empty where the vocabulary has none."""
        tokens = {
            "bos_token": self._api.llama_vocab_bos(self.vocabulary),
            "eos_token": self._api.llama_vocab_eos(self.vocabulary),
        }
        return {
            name: self.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""
            for name, token in tokens.items()
        }
