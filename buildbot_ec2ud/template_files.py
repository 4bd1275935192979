"""The packaged master template: where it is, and masters that are made of it."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from buildbot_ec2ud.userdata import scripts

#: What a new master gets a copy of with ``buildbot-ec2ud init``, besides the bootstrap scripts.
FILES = ("master.cfg", "settings.toml", "platforms.toml")
#: The directory of those, in the master's.
SCRIPTS = "bootstrap"


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


def create_master(
    basedir: str | os.PathLike[str], config_file: str | None = None, db_url: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``buildbot create-master``, relocatable.

    :param basedir: the directory of the new master.
    :param config_file: path of the configuration; ``master.cfg`` in *basedir* unless given.
    :param db_url: the database; an SQLite file in *basedir* unless given.
    :return: the process that has ended: its status, and what it printed.
    """
    # Buildbot's command may not be on PATH, and there is no `python -m buildbot`.
    command = [sys.executable, "-c", "from buildbot.scripts.runner import run; run()", "create-master", "--relocatable"]
    if config_file is not None:
        command += ["--config", config_file]
    if db_url is not None:
        command += ["--db", db_url]
    done = subprocess.run(
        [*command, str(basedir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode == 0 and "buildmaster configured in" not in done.stdout:
        done.returncode = 1  # Buildbot 4.3 prints a traceback, and ends as if all were well
    return done


def sources() -> dict[str, Path]:
    """What a master's own copy is made of: by the path in its directory, the packaged file."""
    bootstrap = sorted(Path(scripts.packaged(name)) for name in scripts.FAMILIES.values())
    return {
        **{name: directory() / name for name in FILES},
        **{f"{SCRIPTS}/{path.name}": path for path in bootstrap},
    }


def copy(basedir: Path) -> Iterator[str]:
    """Put a copy of the template into a master's directory. What is there stays as it is.

    :param basedir: the master's directory.
    :return: a line for each file.
    """
    for name, source in sources().items():
        target = basedir / name
        if os.path.lexists(target):
            yield f"keeping {target}"
            continue
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        yield f"creating {target}"


def differences(basedir: Path) -> Iterator[str]:
    """What the packaged template has otherwise than a master's own copy: the lines of a unified diff.

    ``patch -d BASEDIR`` would make the copy like the packaged files.

    :param basedir: the master's directory. A file that it has no copy of is a file that is all new.
    :raises OSError: a file cannot be read.
    :raises UnicodeDecodeError: it is not UTF-8.
    """
    for name, source in sources().items():
        own = basedir / name
        there = own.exists()
        before = own.read_text(encoding="utf-8").splitlines(keepends=True) if there else []
        after = source.read_text(encoding="utf-8").splitlines(keepends=True)
        label = f"a/{name}" if there else "/dev/null"
        for line in difflib.unified_diff(before, after, label, f"b/{name}"):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
