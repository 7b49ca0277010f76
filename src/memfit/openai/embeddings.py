"""Embeddings and rerankings: OpenAI's, llama-server's and Jina's bodies → texts, and rows → their answers."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from memfit.engines.embedding import Embedding
from memfit.errors import UsageError
from memfit.openai.chat import Prompt, read_prompts
from memfit.openai.contents import read_content
from memfit.openai.fields import read_integer, read_list, read_text
from memfit.strict_json import refusal

__all__ = [
    "EmbeddingAsk",
    "RerankAsk",
    "embeddings_body",
    "llama_embeddings_body",
    "normalised",
    "read_embeddings",
    "read_rerank",
    "rerank_body",
]

_MOST_TEXTS = 4096
_EUCLIDEAN = 2  # llama-server's word for a length of 1; -1 leaves rows as they are
_NORMS = (-1, _EUCLIDEAN)
_TEXTS = {"text": "text"}


@dataclass(frozen=True, kw_only=True)
class EmbeddingAsk:
    """Texts of which embeddings are wanted."""

    prompts: tuple[Prompt, ...]
    as_base64: bool = False
    dimensions: int | None = None  # only the first; None: all
    normalises: bool = True


@dataclass(frozen=True, kw_only=True)
class RerankAsk:
    """Documents whose answers to a query are compared."""

    query: str
    documents: tuple[str, ...]
    top: int
    returns_texts: bool = False
    as_list: bool = False  # of text-embeddings-inference, whose field for documents is "texts"


def read_embeddings(body: Mapping[str, Any]) -> EmbeddingAsk:
    """Raises UsageError: a field that is wrong."""
    name = "input" if "input" in body or "content" not in body else "content"
    prompts = read_prompts(_plain(body.get(name), name), name)
    encoding = "float" if body.get("encoding_format") is None else body["encoding_format"]
    if encoding not in ("float", "base64"):
        raise refusal("encoding_format", encoding, "float or base64")
    dimensions = body.get("dimensions")
    if dimensions is not None and read_integer(dimensions, "dimensions") < 1:
        raise refusal("dimensions", dimensions, "a number above 0")
    norm = body.get("embd_normalize")
    if norm is not None and norm not in _NORMS:
        raise refusal("embd_normalize", norm, "-1 or 2")
    return EmbeddingAsk(
        prompts=prompts,
        as_base64=encoding == "base64",
        dimensions=dimensions,
        normalises=norm in (None, _EUCLIDEAN),
    )


def read_rerank(body: Mapping[str, Any]) -> RerankAsk:
    """Raises UsageError: a field that is wrong."""
    as_list = "documents" not in body and "texts" in body
    name = "texts" if as_list else "documents"
    given = read_list(body.get(name), name, "a list of texts")
    if not 0 < len(given) <= _MOST_TEXTS:
        raise refusal(name, given, f"1 to {_MOST_TEXTS} texts")
    documents = tuple(_document(each, f"{name}[{index}]") for index, each in enumerate(given))
    top = body.get("top_n")
    if top is not None and read_integer(top, "top_n") < 1:
        raise refusal("top_n", top, "a number above 0")
    return RerankAsk(
        query=read_text(body.get("query"), "query"),
        documents=documents,
        top=min(len(documents), top or len(documents)),
        returns_texts=bool(body.get("return_documents") or body.get("return_text")),
        as_list=as_list,
    )


def normalised(embedding: Embedding, dimensions: int | None = None) -> list[float]:
    """A text's row at length 1."""
    row = embedding.vector[:dimensions]
    length = hypot(*row)
    return [value / length for value in row] if length else row


def embeddings_body(
    ask: EmbeddingAsk, found: Sequence[Embedding], *, model: str, pools: bool
) -> dict[str, Any]:
    """OpenAI's.

    Raises:
        UsageError: nothing `pools` the tokens, so that a text has no single row.
    """
    if not pools:
        raise UsageError("this server does not pool embeddings; ask /embeddings for each token's")
    tokens = sum(one.prompt_tokens for one in found)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(ask, one)}
            for index, one in enumerate(found)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def llama_embeddings_body(ask: EmbeddingAsk, found: Sequence[Embedding]) -> list[dict[str, Any]]:
    """llama-server's: rows for every text, one or each token's, which stay as they come out of the model."""
    return [{"index": index, "embedding": _rows(ask, one)} for index, one in enumerate(found)]


def rerank_body(ask: RerankAsk, found: Sequence[Embedding], *, model: str) -> Any:
    """The best first."""
    order = sorted(range(len(found)), key=lambda index: -found[index].score)[: ask.top]
    if ask.as_list:
        return [
            {
                "index": index,
                "score": found[index].score,
                **({"text": ask.documents[index]} if ask.returns_texts else {}),
            }
            for index in order
        ]
    tokens = sum(one.prompt_tokens for one in found)
    return {
        "model": model,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": [
            {
                "index": index,
                "relevance_score": found[index].score,
                **({"document": {"text": ask.documents[index]}} if ask.returns_texts else {}),
            }
            for index in order
        ],
    }


def _plain(value: Any, path: str) -> Any:
    """Parts of type text as texts, which llama-server takes too."""
    if isinstance(value, list):
        return [_plain(each, f"{path}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, dict) and "content" in value:
        parts = read_list(value["content"], f"{path}.content", "a list of parts")
        return "".join(read_content([part], f"{path}.content", _TEXTS) for part in parts)
    return value


def _document(value: Any, path: str) -> str:
    return read_text(value.get("text") if isinstance(value, dict) else value, path)


def _encoded(ask: EmbeddingAsk, embedding: Embedding) -> list[float] | str:
    row = normalised(embedding, ask.dimensions) if ask.normalises else embedding.vector[: ask.dimensions]
    if not ask.as_base64:
        return row
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def _rows(ask: EmbeddingAsk, embedding: Embedding) -> Any:
    rows: Any = embedding.values.tolist()
    return [normalised(embedding)] if len(rows) == 1 and ask.normalises else rows
