"""Loss over size as a picture, by matplotlib, which is loaded only for this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memfit.errors import OutputError, UsageError
from memfit.quantize.whole_file import require_free
from memfit.units import GIB

__all__ = ["draw", "require_plotting"]

_KINDS = (".png", ".svg")


def require_plotting(path: Path, sources: Sequence[Path]) -> None:
    """Before all that takes long. A picture is replaced; what is read is not.

    Raises:
        UsageError: no such picture can be drawn, or it is one of `sources`.
        OutputError: it cannot be written there.
    """
    require_free(path, sources, overwrite=True)
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"--plot {path}: the picture is {' or '.join(_KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'memfit[plot]'") from None


def draw(path: Path, models: Sequence[tuple[str, int, float]]) -> None:
    """`models`: name, bytes and mean KL of each, in nats a token. Raises OutputError."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.set_xlabel("weights, GiB")
    axes.set_ylabel("mean KL divergence from the first, nats a token")
    for name, size, loss in models:
        axes.plot(size / GIB, loss, "o", color="tab:blue")
        axes.annotate(Path(name).name, (size / GIB, loss), xytext=(6, 4), textcoords="offset points")
    axes.grid(alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)
