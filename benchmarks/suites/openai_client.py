"""The OpenAI client's own tests: chat and text completions, the list of models, embeddings.

Of the tests of embeddings those with the strict client want numbers where the client itself asks for base64;
no server passes them.
"""

from __future__ import annotations

from client_tests import Client, Part, run_part
from environments import CACHE
from limits import Limits
from results import Result
from servers import running
from stand_ins import encoder

CLIENT = Client(
    requirement="openai==3.57.0",
    needs=("pytest>=9.0.3", "pytest-asyncio>=1.4.0", "pytest-xdist>=3.6.1", "rich", "openai[aiohttp]"),
)
GENERATING = (
    Part(name="openai chat create", path="chat/test_completions.py", total=40, wanted="create"),
    Part(name="openai completions", path="test_completions.py", total=40),
    Part(name="openai models list", path="test_models.py", total=15, wanted="list"),
)
ENCODING = Part(name="openai embeddings", path="test_embeddings.py", total=20)


def run(server: str, limits: Limits) -> list[Result]:
    with running(server, context=2048, parallel=2) as one:
        results = [run_part(CLIENT, part, f"{one.base}/v1") for part in GENERATING]
    with running(server, str(encoder(CACHE / "models")), embeddings=True) as one:
        return [*results, run_part(CLIENT, ENCODING, f"{one.base}/v1")]
