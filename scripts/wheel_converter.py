"""Puts llama.cpp's converter, where set-up has unpacked it, into the wheel: share/memfit/converter."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PLACE = "share/memfit/converter"


class WheelConverter(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        found = Path(self.root) / ".venv" / _PLACE
        if version == "standard" and found.is_dir():  # a checkout installed in place has it already
            build_data["shared_data"][str(found)] = _PLACE
