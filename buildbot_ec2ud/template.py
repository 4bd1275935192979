"""The packaged master template: where it is, and how its settings and platforms are read."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from buildbot import config

#: What a new master gets a copy of with ``buildbot-ec2ud init``.
FILES = ("master.cfg", "settings.toml", "platforms.toml")

SETTINGS: dict[str, type] = {
    "title": str,
    "www_port": str,
    "www_url": str,
    "pb_port": str,
    "bb_master": str,
    "repository": str,
    "branch": str,
    "poll_interval": int,
    "nightly_hour": int,
    "collapse_requests": bool,
    "db_url": str,
}

_KINDS = {str: "a text", int: "a number", bool: "true or false"}


def directory() -> Path:
    """The directory of the template: in the installed package, or at the top of the source tree."""
    package = Path(str(files("buildbot_ec2ud")))
    for path in (package / "master_template", package.parent / "master_template"):
        if path.joinpath("master.cfg").is_file():
            return path
    raise FileNotFoundError("this installation of buildbot-ec2ud has no master_template")


def find(basedir: str, name: str) -> str:
    """The path of a file of the template: the master's own, if it has one, else the packaged one."""
    own = os.path.join(basedir, name)
    return own if os.path.isfile(own) else str(directory() / name)


def create_master(basedir: str | os.PathLike[str], config_file: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``buildbot create-master``, relocatable.

    :param basedir: the directory of the new master.
    :param config_file: path of the configuration; ``master.cfg`` in *basedir* unless given.
    :return: the process that has ended: its status, and what it printed.
    """
    # Buildbot's command may not be on PATH, and there is no `python -m buildbot`.
    command = [sys.executable, "-c", "from buildbot.scripts.runner import run; run()", "create-master", "--relocatable"]
    if config_file is not None:
        command += ["--config", config_file]
    done = subprocess.run(
        [*command, str(basedir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode == 0 and "buildmaster configured in" not in done.stdout:
        done.returncode = 1  # Buildbot 4.3 prints a traceback, and ends as if all were well
    return done


@dataclass(frozen=True)
class Platform:
    """One platform of ``platforms.toml``.

    :ivar count: how many workers.
    :ivar build: shell commands, a step for each.
    :ivar worker: arguments of each ``EC2UserDataLatentWorker``.
    """

    name: str
    count: int
    build: tuple[str, ...]
    worker: Mapping[str, Any]

    @property
    def workers(self) -> list[str]:
        """The names that :func:`buildbot_ec2ud.worker.ec2_fleet` gives its workers."""
        return [f"{self.name}-{number}" for number in range(1, self.count + 1)]


def _read(basedir: str, name: str) -> dict[str, Any]:
    path = find(basedir, name)
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError) as error:  # not there, not UTF-8, or not TOML
        raise config.ConfigErrors([f"{path}: {error}"]) from None


def load_settings(basedir: str) -> dict[str, Any]:
    """Read ``settings.toml``; what the master's own does not say is as in the packaged one.

    :param basedir: the master's directory.
    :raises buildbot.config.ConfigErrors: all that is wrong.
    """
    own = _read(basedir, "settings.toml")
    path = find(basedir, "settings.toml")
    errors = [f"{path}: unknown setting {name!r}" for name in own if name not in SETTINGS]
    errors += [
        f"{path}: {name} must be {_KINDS[kind]}, not {own[name]!r}"
        for name, kind in SETTINGS.items()
        if name in own and type(own[name]) is not kind
    ]
    if errors:
        raise config.ConfigErrors(errors)
    packaged = tomllib.loads(directory().joinpath("settings.toml").read_text(encoding="utf-8"))
    return {**packaged, **own}


def load_platforms(basedir: str) -> list[Platform]:
    """Read ``platforms.toml``.

    :param basedir: the master's directory.
    :raises buildbot.config.ConfigErrors: all that is wrong with its form; the arguments of the workers are checked by
        the workers themselves.
    """
    content = _read(basedir, "platforms.toml")
    path = find(basedir, "platforms.toml")
    errors = [f"{path}: unknown table {name!r}" for name in content if name not in ("defaults", "platforms")]
    tables = content.get("platforms")
    if not isinstance(tables, dict) or not tables:
        errors.append(f"{path}: there is no [platforms.NAME] in it")
        tables = {}
    defaults = content.get("defaults", {})
    if not isinstance(defaults, dict):
        errors.append(f"{path}: defaults is not a table: {defaults!r}")
        defaults = {}
    platforms = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            errors.append(f"{path}: platform {name} is not a table: {table!r}")
            continue
        arguments = {**defaults, **table}
        count, build = arguments.pop("count", 1), arguments.pop("build", [])
        if type(count) is not int or count < 1:
            errors.append(f"{path}: platform {name}: count must be a number above 0, not {count!r}")
        elif not isinstance(build, list) or not all(isinstance(command, str) for command in build):
            errors.append(f"{path}: platform {name}: build must be a list of shell commands, not {build!r}")
        else:
            platforms.append(Platform(name, count, tuple(build), arguments))
    if errors:
        raise config.ConfigErrors(errors)
    return platforms
