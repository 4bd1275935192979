"""Where a master of the template has its secrets: files, and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from buildbot.plugins import secrets
from buildbot.secrets.providers.base import SecretProviderBase

#: What the names of variables with secrets begin with.
PREFIX = "BUILDBOT_SECRET_"


def variable(name: str) -> str:
    """The name of the environment variable of a secret: ``BUILDBOT_SECRET_WEB_ANNA`` for ``web-anna``."""
    return PREFIX + re.sub("[^A-Z0-9]", "_", name.upper())


class SecretInEnvironment(SecretProviderBase):
    """Secrets from the environment of the master's process, one variable for each: see :func:`variable`."""

    name = "SecretInEnvironment"  # type: ignore[assignment]

    def reconfigService(self, environment: Mapping[str, str] | None = None) -> None:
        """:param environment: where to look; by default the environment of this process."""
        self._environment = os.environ if environment is None else environment

    def get(self, entry: str) -> str | None:
        return self._environment.get(variable(entry))


def providers(directory: str) -> list[Any]:
    """For ``c["secretsProviders"]``: a file wins over the environment.

    :param directory: where the files are; the name of a file is that of its secret. It need not be there.
    :raises buildbot.config.ConfigErrors: a file can be read by others.
    """
    found: list[Any] = [secrets.SecretInAFile(dirname=directory)] if os.path.isdir(directory) else []
    return [*found, SecretInEnvironment()]


def check(directory: str, names: Iterable[str]) -> Iterator[str]:
    """Give a line for each secret that is nowhere, or empty.

    :param directory: where the files are.
    """
    for name in names:
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            if os.path.getsize(path) == 0:
                yield f"the secret {name!r} is empty: {path}"
        elif not os.environ.get(variable(name)):
            yield f"there is no secret {name!r}: neither a file {path} nor a variable {variable(name)}"
