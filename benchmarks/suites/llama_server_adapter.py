"""llama-server as its own tests start it, with stand-ins for the models that they name.

The suite puts this program where `LLAMA_SERVER_BIN_PATH` points. For llama-server only the model's name is
replaced; for memfit its flags are translated too, and a name of its built-in chat templates becomes a file of
chat_templates/. It answers no request, except /health where it is started
without a model, which is llama-server's router and not served yet. A flag it does not know ends it by name.

MEMFIT_SUITES_SERVER  memfit or llama-server
MEMFIT_SUITES_COMMAND  the program and its first arguments, as JSON
MEMFIT_SUITES_MODELS  the files of "causal", "encoder", "reranker" and the router's "preset", as JSON
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

# llama-server's flag → memfit's. Flags of the second table have no value.
_VALUES = {
    "--api-key": "--api-key",
    "--chat-template-file": "--chat-template-file",
    "--cors-origins": "--cors",
    "--ctx-size": "--ctx",
    "--parallel": "--parallel",
    "--pooling": "--pooling",
    "--port": "--port",
    "--reasoning": "--reasoning",
    "--seed": "--seed",
    "--tags": "--tags",
    "--temp": "--temperature",
    "--threads": "--threads",
}
_SWITCHES = {
    "--embedding": "--embeddings",
    "--kv-unified": "--kv-unified",
    "--metrics": "--metrics",
    "--no-slots": "--no-slots",
    "--reranking": "--reranking",
    "--slots": "--slots",
    "--verbose": "--verbose",
}
# What llama-server computes with or reads, and memfit always does, never does, or chooses.
_WITHOUT_MEANING = ("--cont-batching", "--backend_sampling", "--jinja", "--no-jinja", "--offline", "-fa")
_MODEL = ("--model", "--model-url", "--hf-repo", "--hf-file")
_BATCHES = ("--batch-size", "--ubatch-size")
# What llama-server does where a flag is absent, and memfit does not.
_ABSENT = {
    "--cors-origins": ("--cors", "*"),
    "--kv-unified": ("--no-kv-unified",),
    "--metrics": ("--no-metrics",),
}
_OTHERS = ("--alias", "--chat-template", "--host", "--n-predict", "--reasoning-format", "-fa", "--tools")
_TEMPLATES = Path(__file__).resolve().parent / "chat_templates"
_STAND_INS = {"bert-bge": "encoder", "reranker": "reranker"}  # part of a name → which; others are causal


def parsed(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Flag and value, "" for a flag without."""
    with_value = {*_VALUES, *_MODEL, *_BATCHES, *_OTHERS}
    rest = iter(arguments)
    for flag in rest:
        yield flag, next(rest) if flag in with_value else ""


def model_of(flags: dict[str, str]) -> str | None:
    """Which stand-in serves for the model that is named; None where none is."""
    named = " ".join(flags[flag] for flag in _MODEL if flag in flags)
    return next((which for part, which in _STAND_INS.items() if part in named), "causal") if named else None


def for_llama_server(arguments: list[str], model: str | None, files: dict[str, str]) -> list[str]:
    replaced = {*_MODEL, "--offline"}
    kept = [(flag, value) for flag, value in parsed(arguments) if flag not in replaced]
    named = ["--models-preset", files["preset"]] if model is None else ["--model", files[model]]
    return [*named, *(word for pair in kept for word in pair if word)]


def for_memfit(flags: dict[str, str], file: str) -> list[str]:
    words = [file]
    for flag, value in flags.items():
        if flag in _VALUES:
            words += [_VALUES[flag], value]
        elif flag in _SWITCHES:
            words.append(_SWITCHES[flag])
        elif flag in _RESPELLED:
            words += _RESPELLED[flag](value)
        elif flag not in (*_MODEL, *_BATCHES, *_WITHOUT_MEANING):
            sys.exit(f"llama_server_adapter: memfit has nothing for {flag}")
    batches = [int(flags[flag]) for flag in _BATCHES if flag in flags]
    if batches:  # tokens of a prompt per pass
        words += ["--ubatch", str(min(batches))]
    for flag, default in _ABSENT.items():
        if flag not in flags:
            words += default
    return words


# Flags whose value memfit spells in another way.
_RESPELLED: dict[str, Callable[[str], list[str]]] = {
    # Where it has several it answers with the first of their alphabet.
    "--alias": lambda names: ["--alias", ",".join(sorted(names.split(",")))],
    "--chat-template": lambda name: ["--chat-template-file", str(_TEMPLATES / f"{name}.jinja")],
    "--host": lambda hosts: [word for host in hosts.split(",") for word in ("--host", host)],
    "--n-predict": lambda most: [] if most == "-1" else ["--max-tokens", most],
    "--reasoning-format": lambda form: ["--reasoning-format", "none" if form == "none" else "auto"],
}


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 501)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Quiet."""


def main() -> None:
    arguments = sys.argv[1:]
    flags = dict(parsed(arguments))
    command = json.loads(os.environ["MEMFIT_SUITES_COMMAND"])
    files = json.loads(os.environ["MEMFIT_SUITES_MODELS"])
    model = model_of(flags)
    if os.environ["MEMFIT_SUITES_SERVER"] == "llama-server":
        words = for_llama_server(arguments, model, files)
    elif model is None:
        HTTPServer((flags["--host"], int(flags["--port"])), _Healthy).serve_forever()
    else:
        words = for_memfit(flags, files[model])
    print("llama_server_adapter:", *command, *words, flush=True)
    os.execv(command[0], [*command, *words])


if __name__ == "__main__":
    main()
