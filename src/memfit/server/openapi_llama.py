"""llama-server's paths in the server's document."""

from __future__ import annotations

from memfit.server.openapi_bodies import OBJECT
from memfit.server.openapi_schemas import (
    BOOLEAN,
    ApiOperation,
    Schema,
    either,
    integer,
    list_of,
    named,
    optional,
    record,
    request,
    text,
)

__all__ = ["LLAMA_COMPONENTS", "LLAMA_OPERATIONS"]

_EVENTS = "text/event-stream"
_ASKED = (400, 408, 413, 429, 500, 503, 504)
_READ = (400, 408, 413, 500, 503)
_COMPLETED = either(OBJECT, list_of(OBJECT))  # response_fields names what is wanted
_SLOT = record({"id": integer(0), "n_ctx": integer(0), "speculative": BOOLEAN, "is_processing": BOOLEAN})

LLAMA_COMPONENTS: dict[str, Schema] = {
    "Tokenize": {
        "type": "object",
        "properties": {
            "content": text(),
            "add_special": optional(BOOLEAN),
            "add_special_tokens": optional(BOOLEAN),
        },
    },
    "Detokenize": request({"tokens": list_of(named("Token"), minItems=1, maxItems=1_000_000)}),
}

LLAMA_OPERATIONS = (
    *(
        ApiOperation(
            path=path,
            summary="Continue prompts, as llama-server does",
            method="post",
            body="LlamaCompletion",
            examples=({"prompt": "Once upon a time", "n_predict": 8},),
            answer=_COMPLETED,
            stream=_EVENTS,
            errors=_ASKED,
        )
        for path in ("/completion", "/completions")
    ),
    ApiOperation(
        path="/infill",
        needs="infill",
        summary="Fill in what stands between two texts, where the model can",
        method="post",
        body="Infill",
        answer=_COMPLETED,
        stream=_EVENTS,
        errors=_ASKED,
    ),
    ApiOperation(
        path="/apply-template",
        summary="The prompt that a chat becomes",
        method="post",
        body="Chat",
        examples=(
            {
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 8,
                "logprobs": True,
                "top_logprobs": 2,
            },
        ),
        answer=record({"prompt": text()}),
        errors=_READ,
    ),
    ApiOperation(
        path="/tokenize",
        summary="A text's tokens",
        method="post",
        body="Tokenize",
        examples=({"content": "Hello"},),
        answer=record(
            {
                "tokens": list_of(
                    either(
                        integer(0),
                        record({"id": integer(0), "piece": either(text(), list_of(integer(0, 255)))}),
                    )
                )
            }
        ),
        errors=_READ,
    ),
    ApiOperation(
        path="/detokenize",
        summary="The text of tokens",
        method="post",
        body="Detokenize",
        examples=({"tokens": [1]},),
        answer=record({"content": text(), "prompt": text()}),
        errors=_READ,
    ),
    ApiOperation(
        path="/tokenizer_info",
        summary="The tokenizer's own tokens and the chat template",
        answer=record(
            dict.fromkeys(("bos_token", "eos_token", "pad_token", "chat_template"), optional(text()))
        ),
    ),
    ApiOperation(
        path="/props",
        summary="The model and the server's defaults",
        answer=record(
            {
                "default_generation_settings": record({"params": OBJECT, "n_ctx": integer(0)}),
                "total_slots": integer(1),
                **dict.fromkeys(("model_alias", "model_path", "chat_template"), text()),
                **dict.fromkeys(("bos_token", "eos_token", "build_info", "memfit"), text()),
                "modalities": record({"vision": BOOLEAN, "audio": BOOLEAN}),
                "is_sleeping": BOOLEAN,
            }
        ),
    ),
    ApiOperation(
        path="/slots",
        needs="slots",
        summary="The sequences, and which of them run",
        answer=list_of(_SLOT),
        errors=(501,),
    ),
)
