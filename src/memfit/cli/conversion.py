"""The part of `memfit quantize` that is for checkpoints: converted to GGUF, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.cli.fetch import load_shown
from memfit.cli.progress import progress_of_bytes
from memfit.errors import ModelError
from memfit.hardware.folders import scratch_folder
from memfit.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.headers.model_spec import ModelSpec
    from memfit.hub.resolve import ResolvedModel

__all__ = ["ConversionJob"]

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class ConversionJob:
    def __init__(
        self,
        found: ResolvedModel,
        opened: ExitStack,
        output: Path,
        options: Mapping[str, Any],
        err: Console,
        ram_bytes: int,
    ) -> None:
        """`options` are the command's. What is temporary lasts as long as `opened`."""
        from memfit.quantize.conversion import PLAIN

        self._found, self._options, self._err, self._ram_bytes = found, options, err, ram_bytes
        self._model = found.read_hf_model()
        if (quantization := self._model.hf_config.quantization) is not None:
            raise ModelError(
                f"{found.source} is quantized already ({quantization.name}); a GGUF file is made from a "
                "checkpoint in 16 or 32 bits"
            )
        wanted = (options["type_name"] or "").upper()
        self.is_all = wanted in PLAIN  # nothing is left to quantize
        self._overwrites = self.is_all and options["overwrite"]
        if self.is_all:
            self._kind, self._output = wanted, output
        else:
            # Beside the output: the folder for temporary files may be small, or in RAM.
            room = opened.enter_context(scratch_folder(output.absolute().parent, ".memfit-"))
            self._kind = _STORED.get(self._model.hf_config.dtype or "", "BF16")
            self._output = room / "converted.gguf"

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """What --json shows, and the lines that others see."""
        from memfit.cli.render import speaker
        from memfit.quantize.conversion import convert
        from memfit.quantize.verification import compare

        say = speaker(self._err)
        with progress_of_bytes(self._err, say) as show:
            done = convert(
                self._model,
                self._found.path.parent,
                self._output,
                self._kind,
                ram_bytes=self._ram_bytes,
                trust_remote_code=self._options["trust_remote_code"],
                overwrite=self._overwrites,
                on_progress=show("converting"),
            )
        facts: dict[str, Any] = {
            "model": self._found.source,
            "converted_type": self._kind,
            "file_bytes": done.file_bytes,
            "output": str(self._output),
            "peak_bytes": done.peak_bytes,
            "ram_bytes": self._ram_bytes,
        }
        lines = [
            f"{self._found.source}: converted to {self._kind}, {format_bytes(done.file_bytes)}, with at most "
            f"{format_bytes(done.peak_bytes)} of {format_bytes(self._ram_bytes)} RAM"
        ]
        if self._options["verify"]:
            distance = compare(
                self._output,
                self._found.path.parent,
                ram=self._options["ram"],
                trust_remote_code=self._options["trust_remote_code"],
                load=lambda plan: load_shown(plan, self._err),
                say=say,
            )
            facts["verified_kl_divergence"] = distance.mean
            lines.append(f"verified: its predictions differ by a mean KL divergence of {distance.mean:.2g}")
        return facts, lines

    def read_spec(self) -> ModelSpec:
        """Of what was converted."""
        from memfit.headers.gguf_model import read_model

        return read_model(self._output, source=self._found.source)
