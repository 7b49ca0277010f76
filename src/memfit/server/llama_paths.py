"""llama-server's own paths, as its clients and lm-eval call them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.engines.requests import PromptText
from memfit.engines.requests import Request as ModelRequest
from memfit.errors import MemfitError, UsageError
from memfit.openai.chat import read_chat
from memfit.openai.fields import read_flag, read_integer
from memfit.openai.llama_answers import LlamaWriter
from memfit.openai.llama_asks import read_infill, read_llama_completion, response_fields
from memfit.server.answering import describe
from memfit.server.bodies import read_body
from memfit.server.dialects import LLAMA, failure, json_response
from memfit.server.facts import props, slots
from memfit.server.failures import RefusedError
from memfit.server.service import Service
from memfit.strict_json import refusal

__all__ = ["llama_routes"]

_MOST_TOKENS = 1_000_000


def llama_routes(service: Service) -> list[Route]:
    return [*_completing(service), *_describing(service), *_showing(service)]


def _completing(service: Service) -> list[Route]:
    defaults = service.settings.sampling

    async def completion(request: Request) -> Response:
        return await service.respond(
            request,
            lambda body: service.with_ends(read_llama_completion(body, defaults=defaults)),
            lambda body, ask: LlamaWriter(ask, service.model, response_fields(body)),
            LLAMA,
        )

    async def infill(request: Request) -> Response:
        return await service.respond(
            request,
            lambda body: service.with_ends(service.filled_in(read_infill(body, defaults=defaults))),
            lambda body, ask: LlamaWriter(ask, service.model, response_fields(body)),
            LLAMA,
        )

    return [
        Route("/completion", completion, methods=["POST"]),
        Route("/completions", completion, methods=["POST"]),
        Route("/infill", infill, methods=["POST"]),
    ]


def _describing(service: Service) -> list[Route]:
    """What the model reads, without asking it."""
    defaults = service.settings.sampling

    async def apply_template(request: Request) -> Response:
        return await _described(
            service,
            request,
            lambda body: service.templated(read_chat(body, defaults=defaults)),
            lambda body, prompt: {"prompt": prompt.text},
        )

    async def tokenize(request: Request) -> Response:
        return await _described(service, request, _to_tokenize, _tokens)

    async def detokenize(request: Request) -> Response:
        return await _described(service, request, _to_detokenize, _text)

    return [
        Route("/apply-template", apply_template, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


def _showing(service: Service) -> list[Route]:
    async def tokenizer_info(request: Request) -> Response:
        del request
        served = service.served
        return json_response(
            {
                "bos_token": served.bos or None,
                "eos_token": served.eos or None,
                "pad_token": served.eos or None,
                "chat_template": served.template,
            }
        )

    async def show_props(request: Request) -> Response:
        del request
        return json_response(props(service))

    async def show_slots(request: Request) -> Response:
        del request
        if not service.settings.shows_slots:
            return failure(RefusedError(501, "not_supported_error", "slots are not shown here"), LLAMA)
        return json_response(slots(service))

    return [
        Route("/tokenizer_info", tokenizer_info, methods=["GET"]),
        Route("/props", show_props, methods=["GET"]),
        Route("/slots", show_slots, methods=["GET"]),
    ]


async def _described(service: Service, request: Request, read: Any, written: Any) -> Response:
    """A prompt as the model reads it: `read` makes the request of a body, `written` the answer."""
    try:
        body = await read_body(request, service.limits.of_descriptions)
        prompt = await service.unless_left(request, describe(service.host, read(body)))
        return json_response(written(body, prompt))
    except MemfitError as error:
        return failure(error, LLAMA)


def _to_tokenize(body: dict[str, Any]) -> ModelRequest:
    """llama.cpp calls the text "content", lm-eval "prompt", and wants special tokens unless it says so."""
    name = "content" if "content" in body or "prompt" not in body else "prompt"
    text = body.get(name, "")
    if not isinstance(text, str):
        raise refusal(name, text, "a text")
    special = read_flag(body, "add_special")
    if "add_special_tokens" in body or name == "prompt":
        special = read_flag(body, "add_special_tokens", default=True)
    return ModelRequest(prompt=text, describes=True, adds_special=special)


def _tokens(body: dict[str, Any], prompt: PromptText) -> dict[str, Any]:
    if not body.get("with_pieces"):
        return {"tokens": list(prompt.tokens)}
    pieces = zip(prompt.tokens, prompt.pieces, strict=True)
    return {"tokens": [{"id": token, "piece": _piece(piece)} for token, piece in pieces]}


def _piece(piece: bytes) -> str | list[int]:
    """A text where it is one, else its bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _to_detokenize(body: dict[str, Any]) -> ModelRequest:
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or len(tokens) > _MOST_TOKENS:
        raise refusal("tokens", tokens, "a list of tokens")
    for index, token in enumerate(tokens):
        read_integer(token, f"tokens[{index}]")
    if not tokens:
        raise UsageError("tokens: there are none", field="tokens")
    return ModelRequest(prompt=tuple(tokens), describes=True)


def _text(body: dict[str, Any], prompt: PromptText) -> dict[str, Any]:
    del body
    text = b"".join(prompt.pieces).decode("utf-8", errors="replace")
    return {"content": text, "prompt": text}
