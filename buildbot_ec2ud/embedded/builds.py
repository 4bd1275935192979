"""What became of a build, read from Buildbot's data API."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from buildbot.process.results import statusToString
from twisted.internet import defer


@dataclass(frozen=True)
class Log:
    """A log of a step."""

    name: str
    text: str
    complete: bool


@dataclass(frozen=True)
class Step:
    """A step of a build."""

    name: str
    results: int | None
    state: str
    logs: tuple[Log, ...]
    started_at: int | None
    complete_at: int | None


@dataclass(frozen=True)
class Build:
    """What became of a build.

    :ivar results: Buildbot's number: 0 is success.
    :ivar state: its one-line text.
    :ivar attempts: the builds of the same request before this one, which ended as RETRY.
    """

    number: int
    builder: str
    worker: str
    results: int | None
    state: str
    properties: Mapping[str, Any]
    steps: tuple[Step, ...]
    attempts: tuple[Build, ...] = field(default=())

    @property
    def outcome(self) -> str:
        """The result in words, such as ``success``."""
        return "not finished" if self.results is None else statusToString(self.results)

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def text(self) -> str:
        """All logs of all steps."""
        return "".join(log.text for step in self.steps for log in step.logs)


@defer.inlineCallbacks
def builds_of(master: Any, request: int) -> Generator[Any, Any, list[Build]]:
    """The builds of a build request, the first one first.

    :param master: Buildbot's.
    :param request: the id of the build request.
    """
    rows = yield master.data.get(("buildrequests", request, "builds"))
    builds: list[Build] = []
    for row in sorted(rows, key=lambda row: row["buildid"]):
        builds.append((yield _read(master.data.get, row, tuple(builds))))
    return builds


@defer.inlineCallbacks
def _read(get: Any, row: Mapping[str, Any], attempts: tuple[Build, ...]) -> Generator[Any, Any, Build]:
    builder = yield get(("builders", row["builderid"]))
    worker = yield get(("workers", row["workerid"]))
    properties = yield get(("builds", row["buildid"], "properties"))
    steps = []
    for step in (yield get(("builds", row["buildid"], "steps"))):
        logs = []
        for row_of_log in (yield get(("steps", step["stepid"], "logs"))):
            content = yield get(("logs", row_of_log["logid"], "contents"))
            text = _text(row_of_log["type"], content["content"])
            logs.append(Log(row_of_log["name"], text, row_of_log["complete"]))
        steps.append(
            Step(
                step["name"],
                step["results"],
                step["state_string"],
                tuple(logs),
                _seconds(step["started_at"]),
                _seconds(step["complete_at"]),
            )
        )
    return Build(
        row["number"],
        builder["name"],
        worker["name"],
        row["results"],
        row["state_string"],
        {name: value for name, (value, _) in properties.items()},
        tuple(steps),
        attempts,
    )


def _text(kind: str, content: str) -> str:
    """The text of a log; in those of commands (type ``s``), each line begins with the letter of its stream."""
    return "".join(line[1:] for line in content.splitlines(keepends=True)) if kind == "s" else content


def _seconds(when: Any) -> int | None:
    return when if when is None or isinstance(when, int) else int(when.timestamp())
