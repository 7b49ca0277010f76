"""Paths of embeddings and rerankings in the server's document."""

from __future__ import annotations

from typing import Any

from memfit.server.openapi_bodies import OBJECT
from memfit.server.openapi_schemas import (
    ApiOperation,
    Schema,
    either,
    integer,
    list_of,
    named,
    number,
    record,
    request,
    text,
    words,
)

__all__ = ["EMBEDDING_COMPONENTS", "EMBEDDING_OPERATIONS"]

_NUMBERS = list_of(number())
_USAGE = record(dict.fromkeys(("prompt_tokens", "total_tokens"), integer(0)))
_FIELDS: dict[str, Schema] = {
    "encoding_format": words("float", "base64"),
    "dimensions": integer(1, 2**63 - 1),
    "embd_normalize": words(-1, 2),
}
_TEXTS = list_of(either(text(), request({"text": text()})), minItems=1, maxItems=4096)
_TOP = {"top_n": integer(1, 2**63 - 1)}

EMBEDDING_COMPONENTS: dict[str, Schema] = {
    "Embeddings": either(
        request({"input": named("Prompts")}, _FIELDS), request({"content": named("Prompts")}, _FIELDS)
    ),
    "Rerank": either(
        request({"query": text(), "documents": _TEXTS}, _TOP),
        request({"query": text(), "texts": _TEXTS}, _TOP),
    ),
    "OllamaEmbed": request(
        {},
        {
            "model": text(),
            "input": either(text(), list_of(text())),
            "dimensions": integer(0, 2**63 - 1),
            "truncate": {"type": "boolean"},
        },
    ),
    "OllamaEmbeddings": request({}, {"model": text(), "prompt": text()}),
}


def _embeds(
    path: str, summary: str, body: str, answer: Schema, example: dict[str, Any], **changes: Any
) -> ApiOperation:
    return ApiOperation(
        path=path,
        summary=summary,
        method="post",
        body=body,
        examples=(example,),
        answer=answer,
        errors=(400, 408, 413, 429, 500, 501, 503, 504),
        **{"needs": "embeddings", **changes},
    )


_EXAMPLE = {"input": ["Hello"]}
_DOCUMENTS = {"query": "sky", "documents": ["The sky is blue.", "Bread is brown."]}
_RANKED = either(
    record({"object": words("list"), "results": list_of(OBJECT), "usage": _USAGE}), list_of(OBJECT)
)

EMBEDDING_OPERATIONS = (
    _embeds(
        "/v1/embeddings",
        "Embeddings of texts",
        "Embeddings",
        record(
            {
                "object": words("list"),
                "data": list_of(record({"index": integer(0), "embedding": either(_NUMBERS, text())})),
                "model": text(),
                "usage": _USAGE,
            }
        ),
        _EXAMPLE,
    ),
    *(
        _embeds(
            path,
            "Embeddings as llama-server writes them",
            "Embeddings",
            list_of(record({"index": integer(0), "embedding": list_of(_NUMBERS)})),
            _EXAMPLE,
        )
        for path in ("/embeddings", "/embedding")
    ),
    *(
        _embeds(
            path,
            "Documents by how well they answer a query",
            "Rerank",
            _RANKED,
            _DOCUMENTS,
            prefixes=("/v1", ""),
            needs="reranking",
        )
        for path in ("/rerank", "/reranking")
    ),
    _embeds(
        "/api/embed",
        "Embeddings as Ollama writes them",
        "OllamaEmbed",
        record({"model": text(), "embeddings": list_of(_NUMBERS)}),
        {"model": "any", **_EXAMPLE},
        error="OllamaError",
    ),
    _embeds(
        "/api/embeddings",
        "The embedding of one text",
        "OllamaEmbeddings",
        record({"embedding": _NUMBERS}),
        {"model": "any", "prompt": "Hello"},
        error="OllamaError",
    ),
)
