"""`memfit quantize`: a smaller file of a model, by one of llama.cpp's types, or the best of a size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.json_output import json_option, write_json
from memfit.errors import UsageError
from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.headers.model_spec import ModelSpec
    from memfit.quantize.job import Quantized

__all__ = ["command"]


@click.command("quantize")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path), metavar="OUT.gguf")
@click.option("--type", "type_name", metavar="TYPE", help="One of llama.cpp's: Q4_K_M, IQ3_XXS.")
@click.option("--target-size", metavar="SIZE", help="The best file of at most this size: 4GiB. Needs --text.")
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE", help="What --save-recipe wrote, again."
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="UTF-8 text, over which --target-size measures what is lost.",
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An importance matrix in GGUF: memfit imatrix makes one.  [--target-size: collected over the text]",
)
@click.option(
    "--save-recipe",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Keep which type each tensor got with --target-size.",
)
@click.option("--ram", metavar="SIZE", help="At most so much RAM: 8GiB, 60%. Default: what is free.")
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Default: a thread for each core.")
@click.option("--dry-run", is_flag=True, help="Say what it becomes, to the byte, and write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.gguf where it is there.")
@json_option
def command(
    model: str,
    output: Path,
    type_name: str | None,
    target_size: str | None,
    recipe: Path | None,
    text: Path | None,
    imatrix: Path | None,
    save_recipe: Path | None,
    ram: str | None,
    threads: int | None,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a smaller file of MODEL.

    With --target-size each tensor gets a type of its own, so that least is lost: each tensor's part in that
    is measured over --text. Measuring needs the model in RAM; a recipe that was made of a smaller type of the
    same model does for a larger one.

    The file has its name once it is whole. With --dry-run a model that was not downloaded is enough.
    """
    from memfit.quantize.job import Quantizer, Recipe, file_type_named

    ways = {"--type": type_name, "--target-size": target_size, "--recipe": recipe}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UsageError(f"give one of {', '.join(ways)}; given: {got}", field="type", got=got)
    if (text is None) != (target_size is None):
        raise UsageError("--target-size and --text belong together: what is lost is measured over a text")
    if save_recipe and target_size is None:
        raise UsageError("--save-recipe is for --target-size, which makes one")
    named = Recipe(file_type=file_type_named(type_name), imatrix=imatrix) if type_name else None
    with Quantizer() as quantizer, TemporaryDirectory(prefix="memfit-quantize-") as room:
        from memfit.cli.progress import progress_of_bytes  # the engine is loaded meanwhile
        from memfit.cli.render import console, speaker
        from memfit.hardware.probe import probe
        from memfit.hub.resolve import resolve
        from memfit.planner.request import Budget

        err = console(stderr=True)
        say = speaker(err)
        found = resolve(model, say)
        spec = found.read_spec()
        if found.is_header_only and not (dry_run and target_size is None):
            raise UsageError(f"{model} is not here: memfit pull {model} downloads it, --dry-run does without")
        machine = probe()
        ram_bytes = Budget(ram=ram).ram_bytes(machine.ram)
        threads = threads or machine.cpu.threads
        facts: dict[str, Any] = {}
        if text and target_size:
            from memfit.cli.target import TargetSize, chosen_types
            from memfit.quantize.recipe_file import save_recipe as save

            chosen = chosen_types(
                quantizer,
                spec,
                TargetSize(text=target_size, over=text, imatrix=imatrix, room=Path(room)),
                ram=ram,
                threads=threads,
                out=err,
            )
            named, looked = chosen.recipe, chosen.looked
            if save_recipe:
                named = save(save_recipe, spec, chosen)
            facts["expected_kl_divergence"] = chosen.expected_loss
        else:
            if recipe:
                from memfit.quantize.recipe_file import read_recipe

                named = read_recipe(recipe, spec, imatrix=imatrix)
            assert named
            looked = quantizer.look(spec, named, threads=threads)
        for line in _notes(looked):
            say(line)
        facts = {**_facts(spec, named.file_type, looked), **facts}
        if not dry_run:
            with progress_of_bytes(err, say) as show:
                written = quantizer.write(
                    looked,
                    output,
                    ram_bytes=ram_bytes,
                    overwrite=overwrite,
                    on_progress=show("quantizing"),
                )
            facts |= {"output": str(output), "peak_bytes": written.peak_bytes, "ram_bytes": ram_bytes}
    if as_json:
        write_json(facts)
        return
    click.echo(_summary(spec, named.file_type, looked))
    if "expected_kl_divergence" in facts:
        click.echo(f"expected mean KL divergence {facts['expected_kl_divergence']:.4f}, over {text}")
    if not dry_run:
        click.echo(
            f"{output}: written, with at most {format_bytes(facts['peak_bytes'])} of "
            f"{format_bytes(ram_bytes)} RAM"
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
