"""Directories that are gone after the test."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any

#: How often a directory is tried to be removed, and the seconds between two attempts.
ATTEMPTS, PAUSE = 40, 0.05


def directory(test: Any) -> str:
    """Make a directory that lasts as long as *test*."""
    path = os.path.realpath(tempfile.mkdtemp(prefix="ec2ud-"))
    test.addCleanup(remove, path)
    return path


def remove(path: str) -> None:
    """Remove a directory, in which a process that is about to end may make files meanwhile."""
    for _ in range(ATTEMPTS - 1):
        try:
            return shutil.rmtree(path)
        except OSError:
            time.sleep(PAUSE)
    return shutil.rmtree(path)


def write(directory: str, name: str, content: str | bytes, mode: int = 0o644) -> str:
    """Make a file, never through a link: that may lead to a command of this machine. Gives its path."""
    path = os.path.join(directory, name)
    if os.path.islink(path):
        os.unlink(path)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    os.chmod(path, mode)
    return path
