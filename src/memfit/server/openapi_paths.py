"""The path of the server's own document."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memfit.server.dialects import LLAMA, failure, json_response
from memfit.server.failures import RefusedError
from memfit.server.openapi import openapi_document
from memfit.server.service import Service

__all__ = ["openapi_routes"]

_LIMIT = re.compile("[1-9][0-9]{0,8}", re.ASCII)


def openapi_routes(service: Service) -> list[Route]:
    async def openapi(request: Request) -> Response:
        most = request.query_params.get("max_tokens")
        if most is not None and not _LIMIT.fullmatch(most):
            said = "max_tokens: needed a whole number above 0"
            return failure(RefusedError(400, "invalid_request_error", said, field="max_tokens"), LLAMA)
        settings = service.settings
        return json_response(
            openapi_document(
                names=settings.names,
                vocabulary=service.plan.spec.vocabulary,
                has_keys=bool(settings.api_keys),
                abilities=_abilities(service),
                most_tokens=int(most) if most else None,
            )
        )

    return [Route("/openapi.json", openapi, methods=["GET"])]


def _abilities(service: Service) -> set[str]:
    """What not every server can do, and this one can."""
    can = {
        "infill": service.served.fills_in,
        "embeddings": service.served.pooling not in (None, "rank"),
        "reranking": service.served.pooling == "rank",
        "slots": service.settings.shows_slots,
        "metrics": service.settings.shows_metrics,
    }
    return {name for name, able in can.items() if able}
