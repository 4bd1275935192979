"""``platforms.toml``: what to build on. Each platform becomes a builder and its workers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from buildbot import config
from buildbot.config.errors import capture_config_errors

from buildbot_ec2ud.reporting import report
from buildbot_ec2ud.template.toml_lines import TomlFile
from buildbot_ec2ud.template_files import find
from buildbot_ec2ud.worker import EC2UserDataLatentWorker, ec2_fleet

NAME = "platforms.toml"
#: When a platform is built, besides when somebody asks for it.
WHEN = ("commit", "after", "night")
#: Tables that a platform has together with [defaults]: of a key that both have, the platform's value counts.
_MERGED = ("bootstrap_env", "tags", "launch_options", "properties", "defaultProperties")


@dataclass(frozen=True)
class Platform:
    """One platform.

    :ivar count: how many workers.
    :ivar build: shell commands, a step for each.
    :ivar worker: arguments of each ``EC2UserDataLatentWorker``.
    :ivar when: ``commit``: on each commit, and each night; ``after``: when a commit has built on all of those; ``night``:
        each night only.
    """

    name: str
    count: int
    build: tuple[str, ...]
    worker: Mapping[str, Any]
    when: str = "commit"
    file: TomlFile | None = field(default=None, compare=False, repr=False)

    @property
    def workers(self) -> list[str]:
        """The names that :func:`buildbot_ec2ud.worker.ec2_fleet` gives its workers."""
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]

    def make_workers(self, **arguments: Any) -> list[EC2UserDataLatentWorker]:
        """Make its workers. What is wrong with their arguments is told once, with the line in the file.

        :param arguments: those that the platform does not have itself; None is as if not given.
        :raises buildbot.config.ConfigErrors: all that is wrong, unless a configuration is being loaded, which collects it.
        """
        with capture_config_errors() as found:
            workers = ec2_fleet(self.name, self.count, **{**arguments, **self.worker})
        first = f"worker {self.workers[0]}: "
        others = tuple(f"worker {name}: " for name in self.workers[1:])
        report([self._located(error.removeprefix(first)) for error in found.errors if not error.startswith(others)])
        return workers

    def _located(self, error: str) -> str:
        """What is wrong with an argument, with the line of it, or of the platform if it is not there."""
        if self.file is None:
            return f"platform {self.name}: {error}"
        own = ("platforms", self.name)
        argument, _, text = error.partition(": ")
        # An argument that is a table may have a line for the key that is meant.
        keys = [(argument, key) for key in re.findall("'([^']+)'", text)] + [(argument,)]
        places = [(*table, *key) for key in keys for table in (own, ("defaults",))]
        place = next((each for each in places if self.file.line(*each) is not None), own)
        return f"{self.file.where(*place)}: platform {self.name}: {error}"


def load_platforms(basedir: str) -> list[Platform]:
    """Read ``platforms.toml``.

    :param basedir: the master's directory.
    :raises buildbot.config.ConfigErrors: all that is wrong with its form; the arguments of the workers are checked by
        the workers themselves, see :meth:`Platform.make_workers`.
    """
    file = TomlFile(find(basedir, NAME))
    content, errors = file.content, []
    errors += [
        f"{file.where(name)}: unknown table {name!r}" for name in content if name not in ("defaults", "platforms")
    ]
    tables = content.get("platforms")
    if not isinstance(tables, dict) or not tables:
        errors.append(f"{file.where('platforms')}: there is no [platforms.NAME] in it")
        tables = {}
    defaults = content.get("defaults", {})
    if not isinstance(defaults, dict):
        errors.append(f"{file.where('defaults')}: defaults is not a table: {defaults!r}")
        defaults = {}
    platforms = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            errors.append(f"{file.where('platforms', name)}: platform {name} is not a table: {table!r}")
            continue
        arguments = _inherit(defaults, table)
        count, build = arguments.pop("count", 1), arguments.pop("build", [])
        when = arguments.pop("when", WHEN[0])
        wrong = list(_check(count, build, when))
        for key, text in wrong:
            place = ("platforms", name) if key in table else ("defaults",)
            errors.append(f"{file.where(*place, key)}: platform {name}: {key} must be {text}")
        if not wrong:
            platforms.append(Platform(name, count, tuple(build), arguments, when, file))
    if platforms and not errors and any(p.when == "after" for p in platforms):
        errors += _nothing_before(platforms, file)
    if errors:
        raise config.ConfigErrors(errors)
    return platforms


def _check(count: Any, build: Any, when: Any) -> Iterator[tuple[str, str]]:
    """Give the key of each thing that is wrong with what is no argument of a worker, and what it must be."""
    if type(count) is not int or count < 1:
        yield "count", f"a number above 0, not {count!r}"
    if not isinstance(build, list) or not all(isinstance(command, str) for command in build):
        yield "build", f"a list of shell commands, not {build!r}"
    if when not in WHEN:
        yield "when", f"one of {', '.join(map(repr, WHEN))}, not {when!r}"


def _nothing_before(platforms: list[Platform], file: TomlFile) -> Iterator[str]:
    if any(platform.when == "commit" for platform in platforms):
        return
    for platform in platforms:
        if platform.when == "after":
            yield (
                f"{file.where('platforms', platform.name, 'when')}: platform {platform.name}: when is 'after', "
                "and no platform is built on a commit"
            )


def _inherit(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """What a platform has: its own, and of [defaults] what it does not say otherwise."""
    merged = {
        key: {**defaults[key], **table[key]}
        for key in _MERGED
        if isinstance(defaults.get(key), Mapping) and isinstance(table.get(key), Mapping)
    }
    return {**defaults, **table, **merged}
