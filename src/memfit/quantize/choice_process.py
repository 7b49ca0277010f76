"""Chooses types in a process of its own: the solver prints on stdout, and its memory ends with it.

`python -m memfit.quantize.choice_process` is that process: options in, types out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from memfit.processes.child import Parent
from memfit.processes.helper import Helper
from memfit.quantize.choice import Option, choose

__all__ = ["choose_apart"]


def choose_apart(options: Mapping[str, Mapping[str, Option]], cap_bytes: int) -> dict[str, str] | None:
    """As `choice.choose` does.

    Raises:
        WorkerDiedError: the process ended.
    """
    plain = {name: {kind: asdict(one) for kind, one in kinds.items()} for name, kinds in options.items()}
    with Helper("memfit.quantize.choice_process", name="the chooser of types", own_session=True) as helper:
        helper.send({"options": plain, "cap_bytes": cap_bytes})
        reply = helper.receive()
        if reply is None:
            raise helper.obituary()
    found: dict[str, str] | None = reply["types"]
    return found


def _serve() -> None:
    parent = Parent()
    for message in parent.messages():
        options = {
            name: {kind: Option(**one) for kind, one in kinds.items()}
            for name, kinds in message["options"].items()
        }
        parent.send("done", types=choose(options, message["cap_bytes"]))


if __name__ == "__main__":
    _serve()
