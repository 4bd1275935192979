"""Time and memory against the number of workers, as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from figures import FIGURES, Figure
from sides import SIDES

_SHOWN = (
    "configuration: time blocked",
    "instances alone: asked until all run",
    "instances alone: CPU of start and stop",
    "memory of the master in all, at most",
)


def plot(found: dict[str, Any], path: Path) -> Path:
    """Draw what :mod:`compare` has found.

    :param found: runs by number of workers and side under ``compare``, ours alone under ``alone``.
    :return: *path*, of the PNG.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    named = {figure.name: figure for figure in FIGURES}
    for name, axis in zip(_SHOWN, axes.flat, strict=True):
        figure = named[name]
        for side, style in (("theirs", "s--"), ("ours", "o-")):
            points = sorted(_points(found, side, figure))
            if points:
                axis.plot(*zip(*points, strict=True), style, label=SIDES[side].title)
        axis.set_title(name)
        axis.set_xlabel("workers")
        axis.set_ylabel(figure.unit)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(True, alpha=0.3)
        axis.legend()
    drawing.savefig(path, dpi=100)
    pyplot.close(drawing)
    return path


def _points(found: dict[str, Any], side: str, figure: Figure) -> list[tuple[int, float]]:
    runs = [(int(count), both[side]) for count, both in found["compare"].items()]
    if side == "ours":
        runs += [(int(count), alone) for count, alone in found["alone"].items()]
    points = ((count, figure.of(several)) for count, several in runs)
    return [(count, statistics.median(values)) for count, values in points if values]
