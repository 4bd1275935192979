"""Where a bootstrap script comes from: packaged, a file of the master, inline text, or a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

#: What a worker runs that names no bootstrap script.
DEFAULT = "generic.sh"

_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")


@dataclass(frozen=True)
class InlineScript:
    """A script that travels inside the user-data."""

    text: str


@dataclass(frozen=True)
class RemoteScript:
    """A script that the instance fetches.

    :ivar sha256: its checksum in hexadecimal, which the instance verifies; or None.
    """

    url: str
    sha256: str | None


class ScriptError(ValueError):
    """A bootstrap script cannot be used; the text begins with the name of the argument."""


def packaged(name: str) -> str:
    """The path of a bootstrap script that comes with this package, such as ``generic.sh``.

    :raises FileNotFoundError: there is none of that name.
    """
    path = files(__package__).joinpath("bootstrap", name)
    if not path.is_file():
        raise FileNotFoundError(f"no packaged bootstrap script {name!r}")
    return str(path)


def load(script: str | None, sha256: str | None, directories: Iterable[str]) -> InlineScript | RemoteScript:
    """Read what the arguments ``bootstrap_script`` and ``bootstrap_sha256`` name.

    :param script: a URL, text that starts with ``#!``, the path of a file, or None for the packaged generic script.
    :param sha256: checksum of the script at a URL.
    :param directories: where a relative path is looked for, in this order.
    :raises ScriptError: it cannot be used.
    """
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.match(sha256)):
        raise ScriptError(f"bootstrap_sha256: not a SHA-256 in hexadecimal: {sha256!r}")
    if script is None:
        script = packaged(DEFAULT)
    if not isinstance(script, str):
        raise ScriptError(f"bootstrap_script: not a URL, a path or a text: {script!r}")
    if script.startswith("#!"):
        return InlineScript(_checked(script, "the text", sha256))
    if "://" in script:
        return _remote(script, sha256)
    for directory in [""] if os.path.isabs(script) else directories:
        path = os.path.join(directory, script)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8", newline="") as file:
                    return InlineScript(_checked(file.read(), path, sha256))
            except (OSError, UnicodeDecodeError) as error:
                raise ScriptError(f"bootstrap_script: cannot read {path}: {error}") from error
    raise ScriptError(f"bootstrap_script: there is no file {script!r}")


def _remote(url: str, sha256: str | None) -> RemoteScript:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ScriptError(f"bootstrap_script: {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ScriptError(f"bootstrap_script: not an http or https URL: {url!r}")
    if parts.scheme == "http" and sha256 is None:
        raise ScriptError(
            "bootstrap_script: anybody on the way can change a script sent by plain http: "
            "use https, or give bootstrap_sha256"
        )
    return RemoteScript(url, sha256 and sha256.lower())


def _checked(text: str, name: str, sha256: str | None) -> str:
    if sha256 is not None:
        raise ScriptError("bootstrap_sha256: is for a script at a URL")
    if not text.startswith("#!"):
        raise ScriptError(f"bootstrap_script: {name} does not start with #!")
    if "\0" in text:
        raise ScriptError(f"bootstrap_script: {name} has a NUL in it")
    if "\r\n" in text:
        raise ScriptError(f"bootstrap_script: {name} has Windows line ends, no Unix would run it")
    return text
