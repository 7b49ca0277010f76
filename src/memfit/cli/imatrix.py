"""`memfit imatrix`: which columns of a model's matrices matter, for `memfit quantize --imatrix`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from memfit.cli.fetch import load_shown
from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import budget_options, engine_options, scoring_options, verbose_option
from memfit.cli.progress import progress_of_steps
from memfit.cli.texts import TextReader, text_option
from memfit.units import format_bytes

__all__ = ["command"]


@click.command("imatrix")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path), metavar="OUT.gguf")
@text_option
@click.option("--overwrite", is_flag=True, help="Replace OUT.gguf where it is there.")
@scoring_options
@budget_options
@engine_options
@json_option
@verbose_option
def command(
    model: str, output: Path, text: Path, overwrite: bool, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Collect MODEL's importance matrix over a text, inside a memory budget.

    For each matrix the mean square of what it is multiplied with, column by column, as llama-imatrix has it;
    quantizing with it keeps what matters. A model larger than RAM is read from the disk once for each chunk.
    """
    from memfit.cli.render import console, speaker
    from memfit.quantize.importance import collect_importance

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is half-written goes
    err = console(stderr=True)
    say = speaker(err)
    plan, tokens = TextReader(text, options, say, verbose=verbose).plan(model, importance=True)
    chunks = len(tokens.chunks)
    with progress_of_steps(err, say) as on_step:
        report = collect_importance(
            lambda one: load_shown(one, err, verbose=verbose),
            plan,
            tokens,
            text,
            output,
            overwrite=overwrite,
            on_chunk=lambda done: on_step("chunk", done, chunks),
        )
    peak_bytes = report.tiers[0].peak_bytes
    assert peak_bytes is not None, "RAM is always measured"
    if as_json:
        write_json(
            {
                "model": model,
                "output": str(output),
                "chunks": chunks,
                "tokens": chunks * tokens.context,
                "peak_bytes": peak_bytes,
                "within_budget": report.within_budget,
            }
        )
        return
    click.echo(
        f"{output}: written, of {chunks} chunks of {tokens.context} tokens, with at most "
        f"{format_bytes(peak_bytes)} RAM"
    )
