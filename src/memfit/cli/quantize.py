"""`memfit quantize`: a smaller file of a model, by one of llama.cpp's types, or the best of a size."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import InterruptedByUser, MemfitError, UsageError
from memfit.hardware.folders import scratch_folder
from memfit.quantize.room import PREFERENCES
from memfit.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from memfit.cli.target import TargetJob
    from memfit.evaluate.perplexity import Divergence
    from memfit.headers.model_spec import ModelSpec
    from memfit.quantize.job import Quantized, Quantizer, Recipe, Written

__all__ = ["command"]


def _file(name: str, metavar: str, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.Path(path_type=Path), metavar=metavar, help=text)


@click.command("quantize")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path), metavar="OUT.gguf")
@click.option("--type", "type_name", metavar="TYPE", help="One of llama.cpp's: Q4_K_M, IQ3_XXS.")
@click.option("--target-size", metavar="SIZE", help="The best file of at most this size: 4GiB. Needs --text.")
@click.option(
    "--for-budget",
    is_flag=True,
    help="The best file that --ram and --vram leave room for, at --ctx. Needs --text.",
)
@_file("--recipe", "FILE", "What --save-recipe wrote, again.")
@_file("--text", "FILE", "UTF-8 text, over which --target-size measures what is lost.")
@_file(
    "--imatrix",
    "FILE",
    "An importance matrix in GGUF: memfit imatrix makes one.  [--target-size: collected over the text]",
)
@_file("--save-recipe", "FILE.json", "Keep which type each tensor got with --target-size.")
@click.option(
    "--verify", is_flag=True, help="Of a checkpoint: compare the converted model's predictions with its own."
)
@_file(
    "--base",
    "DIR",
    "Of a LoRA adapter: the checkpoint that it was made for.  [the adapter's config names it]",
)
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the converter run the program that comes with a checkpoint; it may do anything you may.",
)
@click.option("--ram", metavar="SIZE", help="At most so much RAM: 8GiB, 60%. Default: what is free.")
@click.option(
    "--vram",
    multiple=True,
    metavar="[GPU=]SIZE",
    help="With --for-budget: as `memfit plan` has it; repeatable.",
)
@click.option("--ctx", type=int, metavar="N", help="With --for-budget: the context that is wanted.")
@click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    default=PREFERENCES[0],
    show_default=True,
    help="With --for-budget: fill RAM as well as GPUs, or GPUs alone.",
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Default: a thread for each core.")
@click.option("--dry-run", is_flag=True, help="Say what it becomes, to the byte, and write no model.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.gguf, and a recipe, where it is there.")
@json_option
def command(model: str, output: Path, as_json: bool, **options: Any) -> None:
    """Make a smaller file of MODEL, or a GGUF file of a checkpoint.

    With --target-size each tensor gets a type of its own, so that least is lost: each tensor's part in that
    is measured over --text. A model larger than RAM is read from the disk once for each tensor; a recipe that
    was made of a smaller type of the same model does for it as well.

    The file has its name once it is whole. With --dry-run a model that was not downloaded is enough.
    """
    _require_one_way(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half-written goes
    from memfit.quantize.job import Quantizer

    with Quantizer() as quantizer, ExitStack() as opened:  # it loads the engine meanwhile
        from memfit.cli.render import console

        facts, lines = _Job(quantizer, opened, output, options, console(stderr=True)).run(model)
    if as_json:
        write_json(facts)
    else:
        click.echo("\n".join(lines))


def _require_one_way(options: Mapping[str, Any]) -> None:
    ways = {
        "--type": "type_name",
        "--target-size": "target_size",
        "--for-budget": "for_budget",
        "--recipe": "recipe",
    }
    given = [name for name, key in ways.items() if options[key]]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UsageError(f"give one of {', '.join(ways)}; given: {got}", field="--type", got=got)
    measures = bool(options["target_size"] or options["for_budget"])
    if (options["text"] is not None) != measures:
        raise UsageError(
            "--text belongs together with --target-size or --for-budget: what is lost is measured over it"
        )
    if options["save_recipe"] and not measures:
        raise UsageError("--save-recipe is for --target-size and --for-budget, which make one")
    if not options["for_budget"] and (options["vram"] or options["ctx"] is not None):
        raise UsageError("--vram and --ctx are for --for-budget")
    if options["type_name"]:
        from memfit.quantize.job import file_type_named

        file_type_named(options["type_name"])


class _Job:
    """One call of the command."""

    def __init__(
        self,
        quantizer: Quantizer,
        opened: ExitStack,
        output: Path,
        options: Mapping[str, Any],
        err: Console,
    ) -> None:
        """What is temporary lasts as long as `opened`."""
        from memfit.cli.render import speaker
        from memfit.hardware.probe import probe
        from memfit.planner.request import Budget

        self._quantizer, self._opened, self._output = quantizer, opened, output
        self._options, self._err, self._say = options, err, speaker(err)
        machine = probe()
        self._ram_bytes = Budget(ram=options["ram"]).ram_bytes(machine.ram)
        self._threads = options["threads"] or machine.cpu.threads

    def run(self, model: str) -> tuple[dict[str, Any], list[str]]:
        """What --json shows, and the lines that others see."""
        from memfit.hub.resolve import resolve
        from memfit.quantize.conversion import is_adapter

        options = self._options
        if is_adapter(Path(model)):
            self._require_free(list(Path(model).iterdir()))
            return self._adapter(Path(model))
        found = resolve(model, self._say)
        spec = None if found.is_checkpoint else found.read_spec()
        self._require_free(spec.paths if spec else list(found.path.parent.iterdir()))
        if found.is_header_only and (options["text"] or not options["dry_run"]):
            raise UsageError(f"{model} is not here: memfit pull {model} downloads it, --dry-run does without")
        if spec:
            if options["verify"]:
                raise UsageError("--verify is for checkpoints; memfit perplexity --reference compares files")
            return self._quantized(spec)
        from memfit.cli.conversion import ConversionJob

        if options["dry_run"]:
            raise UsageError("--dry-run is for GGUF files: what a checkpoint becomes is known once it has")
        job = ConversionJob(found, self._opened, self._output, options, self._err, self._ram_bytes)
        if job.is_all:
            return job.run()
        facts, lines = job.run()
        more, others = self._quantized(job.read_spec())
        peak = max(facts["peak_bytes"], more["peak_bytes"])
        return {**facts, **more, "model": model, "peak_bytes": peak}, [*lines, *others]

    def _require_free(self, sources: Sequence[Path]) -> None:
        """Of what is written nothing is read, or is there and to be kept; before all that takes long."""
        from memfit.quantize.recipe_file import recipe_files
        from memfit.quantize.whole_file import require_free

        options = self._options
        outputs = () if options["dry_run"] else (self._output,)
        kept = recipe_files(options["save_recipe"]) if options["save_recipe"] else ()
        given = [options[name] for name in ("text", "imatrix", "recipe") if options[name]]
        written = (*outputs, *kept)
        for one in written:
            require_free(one, (*sources, *given), overwrite=options["overwrite"])
        if len({one.resolve() for one in written}) < len(written):
            raise UsageError("OUT.gguf and the files of --save-recipe need names of their own")

    def _adapter(self, folder: Path) -> tuple[dict[str, Any], list[str]]:
        from memfit.quantize.conversion import convert_adapter

        options = self._options
        if (options["type_name"] or "").upper() != "F16" or options["dry_run"] or options["verify"]:
            raise UsageError(f"{folder} is a LoRA adapter, which becomes GGUF with --type F16 alone")
        done = convert_adapter(
            folder, options["base"], self._output, ram_bytes=self._ram_bytes, overwrite=options["overwrite"]
        )
        facts = {
            "model": str(folder),
            "converted_type": "F16",
            "file_bytes": done.file_bytes,
            "output": str(self._output),
            "peak_bytes": done.peak_bytes,
            "ram_bytes": self._ram_bytes,
        }
        return facts, [f"{self._output}: a LoRA adapter in F16, {format_bytes(done.file_bytes)}"]

    def _quantized(self, spec: ModelSpec) -> tuple[dict[str, Any], list[str]]:
        options = self._options
        target = self._target(spec) if options["text"] else None
        chosen = target.choose(options["ctx"], options["prefer"]) if target else None
        recipe, looked = (chosen.recipe, chosen.looked) if chosen else self._recipe(spec)
        for line in _notes(looked):
            self._say(line)
        facts = _facts(spec, recipe.file_type, looked)
        lines = [_summary(spec, recipe.file_type, looked)]
        if chosen:
            facts["expected_kl_divergence"] = chosen.expected_loss
            lines.append(f"expected mean KL divergence {chosen.expected_loss:.4f}, over {options['text']}")
        if not options["dry_run"]:
            written = self._write(looked)
            facts |= {
                "output": str(self._output),
                "peak_bytes": written.peak_bytes,
                "ram_bytes": self._ram_bytes,
            }
            lines.append(
                f"{self._output}: written, with at most {format_bytes(written.peak_bytes)} of "
                f"{format_bytes(self._ram_bytes)} RAM"
            )
        if chosen and options["save_recipe"]:
            from memfit.quantize.recipe_file import save_recipe

            save_recipe(options["save_recipe"], spec, chosen, imatrix=options["imatrix"])
        if target and not options["dry_run"]:
            self._say(f"{self._output} is written and whole; what it loses is measured now")
            lost = self._lost(target)
            facts["measured_kl_divergence"] = lost and asdict(lost)
            if lost:
                lines.append(f"measured mean KL divergence {lost.mean:.4f} ± {lost.error:.4f}")
        return facts, lines

    def _lost(self, target: TargetJob) -> Divergence | None:
        """What the written file loses; None where that cannot be measured. The file stays in any case."""
        try:
            lost = target.measure_loss(self._output)
        except InterruptedByUser:
            raise
        except MemfitError as error:
            self._say(f"what it loses could not be measured: {error}")
            return None
        if lost is None:
            self._say("the text is too short to measure what it loses: 5 chunks of 512 tokens are enough")
        return lost

    def _target(self, spec: ModelSpec) -> TargetJob:
        from memfit.cli.target import TargetJob, TargetSize
        from memfit.quantize.recipe_file import recipe_files

        options = self._options
        room = self._opened.enter_context(scratch_folder(Path(gettempdir()), "memfit-quantize-"))
        kept = options["save_recipe"]
        name = recipe_files(kept)[-1].name if kept else "imatrix.gguf"  # which the file will note
        asked = TargetSize(
            size=options["target_size"],
            over=options["text"],
            imatrix=options["imatrix"],
            collected=room / name,
        )
        limits = {name: options[name] for name in ("ram", "vram")}
        return TargetJob(self._quantizer, spec, asked, limits, threads=self._threads, out=self._err)

    def _recipe(self, spec: ModelSpec) -> tuple[Recipe, Quantized]:
        """How each tensor is quantized, where that is not measured; and what the file will be."""
        from memfit.quantize.job import Recipe, file_type_named

        options = self._options
        if options["recipe"]:
            from memfit.quantize.recipe_file import read_recipe

            recipe = read_recipe(options["recipe"], spec, imatrix=options["imatrix"])
        else:
            recipe = Recipe(file_type=file_type_named(options["type_name"]), imatrix=options["imatrix"])
        return recipe, self._quantizer.look(spec, recipe, threads=self._threads)

    def _write(self, looked: Quantized) -> Written:
        from memfit.cli.progress import progress_of_bytes

        with progress_of_bytes(self._err, self._say) as show:
            return self._quantizer.write(
                looked,
                self._output,
                ram_bytes=self._ram_bytes,
                overwrite=self._options["overwrite"],
                on_progress=show("quantizing"),
            )


def _notes(looked: Quantized) -> Iterator[str]:
    yield from looked.warnings
    if looked.fallbacks:
        name, kind = next(iter(looked.fallbacks.items()))
        yield (
            f"{len(looked.fallbacks)} tensors have rows that their type does not divide, and take another: "
            f"{name} {looked.tensors[name]} instead of {kind}"
        )
    if looked.needs_imatrix:
        yield "this type needs an importance matrix: memfit imatrix makes one"


def _facts(spec: ModelSpec, file_type: str, looked: Quantized) -> dict[str, Any]:
    return {
        "model": spec.source,
        "type": file_type,
        "source_bytes": spec.file_bytes,
        "file_bytes": looked.file_bytes,
        "bits_per_weight": 8 * looked.file_bytes / spec.n_params,
        "needs_imatrix": looked.needs_imatrix,
        "tensors": dict(looked.tensors),
        "fallbacks": dict(looked.fallbacks),
    }


def _summary(spec: ModelSpec, file_type: str, looked: Quantized) -> str:
    bits = 8 * looked.file_bytes / spec.n_params
    return (
        f"{spec.source}: {format_bytes(spec.file_bytes)} in {spec.quantization} → "
        f"{format_bytes(looked.file_bytes)} in {file_type}, {bits:.2f} bits a weight"
    )
