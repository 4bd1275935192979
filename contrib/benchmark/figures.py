"""What of a run is told, and under which name; medians, spread and ratios of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Run = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    :ivar name: what it is.
    :ivar unit: ``s``, ``ms``, ``MB``, or nothing for a count.
    :ivar get: takes it from a run; a ``KeyError`` where the run has no such part, None where it never came to that.
    """

    name: str
    unit: str
    get: Callable[[Run], float | None]

    def of(self, runs: Sequence[Run]) -> list[float] | None:
        """The figure in each of *runs*; None where one of them lacks it."""
        try:
            found = [self.get(run) for run in runs]
        except KeyError:
            return None
        return [value for value in found if value is not None] if runs and None not in found else None

    def text(self, values: Sequence[float] | None) -> str:
        """The median, and the least and the most where there are several."""
        if values is None:
            return "-"
        middle = self._number(statistics.median(values))
        if len(values) > 1:
            middle += f" ({self._number(min(values))}..{self._number(max(values))})"
        return f"{middle} {self.unit}".strip()

    def _number(self, value: float) -> str:
        value *= 1000 if self.unit == "ms" else 1
        return f"{value:.0f}" if self.unit == "" or value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _calls(run: Run, *actions: str) -> float:
    """How many calls were made from the first start to the last stop."""
    parts = [run[name]["calls"] for name in ("start", "stop")]
    return sum(count for calls in parts for action, count in calls.items() if not actions or action in actions)


def _failed(run: Run) -> float:
    return sum(count for result, count in run["start"]["results"].items() if result != "0")


FIGURES = (
    Figure("configuration: time blocked", "s", lambda run: run["configure"]["seconds"]),
    Figure("configuration: CPU", "s", lambda run: run["configure"]["cpu"]),
    Figure(
        "configuration: memory, more than before",
        "MB",
        lambda run: run["memory"]["configured"] - run["memory"]["before"],
    ),
    Figure("memory of the master in all, at most", "MB", lambda run: run["memory"]["most"]),
    Figure("instances alone: asked until all run", "s", lambda run: run["launch"]["ec2 last running"]),
    Figure("instances alone: until the master knows", "s", lambda run: run["launch"]["running"]),
    Figure("instances alone: told to stop until all ended", "s", lambda run: run["end"]["ec2 last terminated"]),
    Figure("instances alone: CPU of start and stop", "s", lambda run: run["launch"]["cpu"] + run["end"]["cpu"]),
    Figure("builds: asked until all instances run", "s", lambda run: run["start"]["ec2 last running"]),
    Figure("builds: until all workers are attached", "s", lambda run: run["start"]["attached"]),
    Figure("builds: CPU of start and stop", "s", lambda run: run["start"]["cpu"] + run["stop"]["cpu"]),
    Figure("builds that failed", "", _failed),
    Figure("stop until all instances ended", "s", lambda run: run["stop"]["ec2 last terminated"]),
    Figure("stop until the master knows", "s", lambda run: run["stop"]["ended"]),
    Figure("GET /api/v2/workers meanwhile, median", "ms", lambda run: run["start"]["rest"]["median"]),
    Figure("GET /api/v2/workers meanwhile, longest", "ms", lambda run: run["start"]["rest"]["most"]),
    Figure("longest stall while instances start", "ms", lambda run: run["launch"]["stall"]),
    Figure("longest stall while builds start", "ms", lambda run: run["start"]["stall"]),
    Figure("longest stall while all are watched", "ms", lambda run: run["watch"]["stall"]),
    Figure("calls to EC2, start to stop", "", _calls),
    Figure("  DescribeInstances", "", lambda run: _calls(run, "DescribeInstances")),
    Figure("calls that EC2 refused", "", lambda run: sum(run["start"]["refused"].values())),
)


def ratio(ours: Sequence[float] | None, theirs: Sequence[float] | None) -> str:
    """How many times less ours is, of medians."""
    if not ours or not theirs or not statistics.median(ours):
        return ""
    return f"{statistics.median(theirs) / statistics.median(ours):.1f}"


def table(ours: Sequence[Run], theirs: Sequence[Run] | None) -> list[str]:
    """A table in Markdown of runs with the same number of workers.

    :param theirs: None where there is nothing to compare with.
    """
    heads = ["figure", "EC2UserDataLatentWorker"] + (["EC2LatentWorker", "ratio"] if theirs is not None else [])
    rows = []
    for figure in FIGURES:
        mine, other = figure.of(ours), figure.of(theirs or [])
        if mine is None and other is None:
            continue
        row = [figure.name.strip(), figure.text(mine)]
        rows.append(row + ([figure.text(other), ratio(mine, other)] if theirs is not None else []))
    return _markdown(heads, rows)


def overview(columns: Mapping[str, Sequence[Run]]) -> list[str]:
    """A table in Markdown of medians.

    :param columns: what stands above a column, and its runs.
    """
    rows = []
    for figure in FIGURES:
        found = [figure.of(runs) for runs in columns.values()]
        if any(found):
            medians = [[statistics.median(values)] if values else None for values in found]
            rows.append([figure.name.strip(), *map(figure.text, medians)])
    return _markdown(["medians", *columns], rows)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
