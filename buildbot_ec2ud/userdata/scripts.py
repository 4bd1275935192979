"""Where a bootstrap script comes from: packaged, a file of the master, inline text, or a URL."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

from buildbot_ec2ud.userdata.compose import ComposeError, compose, cut

#: What comes with this package, by the names that people use, and what a worker runs that names no bootstrap script.
FAMILIES = {
    **{name: f"{name}.sh" for name in ("generic", "debian", "redhat", "suse", "alpine", "freebsd", "macos")},
    "windows": "windows.ps1",
}
DEFAULT = "generic"

_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
#: What a script for Windows begins with that is no file.
_WINDOWS_TAGS = ("<powershell>", "<script>")


@dataclass(frozen=True)
class InlineScript:
    """A script that travels inside the user-data.

    :ivar windows: whether it is for Windows.
    """

    text: str
    windows: bool = False


@dataclass(frozen=True)
class RemoteScript:
    """A script that the instance fetches.

    :ivar sha256: its checksum in hexadecimal, which the instance verifies; or None.
    :ivar windows: whether it is for Windows.
    """

    url: str
    sha256: str | None
    windows: bool = False


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


def load(
    script: str | None, sha256: str | None, directories: Iterable[str], insecure: bool = False
) -> InlineScript | RemoteScript:
    """Read what the arguments ``bootstrap_script`` and ``bootstrap_sha256`` name.

    :param script: the name of a packaged script, without a suffix; a URL; text that starts with ``#!``, or with
        ``<powershell>`` or ``<script>`` for Windows; the path of a file, which is for Windows when it ends with ``.ps1``; or
        None for the packaged generic script.
    :param sha256: checksum of the script at a URL.
    :param directories: where a relative path is looked for, in this order.
    :param insecure: whether a script may come by plain http, and without a checksum.
    :raises ScriptError: it cannot be used.
    """
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.match(sha256)):
        raise ScriptError(f"bootstrap_sha256: not a SHA-256 in hexadecimal: {sha256!r}")
    if script is None:
        script = DEFAULT
    if not isinstance(script, str):
        raise ScriptError(f"bootstrap_script: not a name, a URL, a path or a text: {script!r}")
    if script.startswith(("#!", *_WINDOWS_TAGS)):
        return _inline(script, "the text", sha256, script.startswith(_WINDOWS_TAGS))
    if "://" in script:
        return _remote(script, sha256, insecure)
    if (name := FAMILIES.get(script)) is not None:
        # It is our own: its comments need not travel.
        found = _inline(_read(packaged(name)), name, sha256, name.endswith(".ps1"))
        return found if found.windows else InlineScript(_without_comments(found.text))
    for directory in [""] if os.path.isabs(script) else directories:
        path = os.path.join(directory, script)
        if os.path.isfile(path):
            return _inline(_read(path), path, sha256, path.lower().endswith(".ps1"))
    near = difflib.get_close_matches(script, FAMILIES, n=1)
    raise ScriptError(f"bootstrap_script: there is no file {script!r}" + (f"; did you mean {near[0]}?" if near else ""))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"bootstrap_script: cannot read {path}: {error}") from error


def _without_comments(text: str) -> str:
    first, end, rest = text.partition("\n")
    return first + end + cut(rest)


def _remote(url: str, sha256: str | None, insecure: bool) -> RemoteScript:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ScriptError(f"bootstrap_script: {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ScriptError(f"bootstrap_script: not an http or https URL: {url!r}")
    if parts.scheme == "http" and sha256 is None and not insecure:
        raise ScriptError(
            "bootstrap_script: anybody on the way can change a script sent by plain http: "
            "use https, or give bootstrap_sha256; bootstrap_insecure=True takes it all the same"
        )
    return RemoteScript(url, sha256 and sha256.lower(), parts.path.lower().endswith(".ps1"))


def _inline(text: str, name: str, sha256: str | None, windows: bool) -> InlineScript:
    """Check the text that is called *name*, and put the parts into it that it includes."""
    if sha256 is not None:
        raise ScriptError("bootstrap_sha256: is for a script at a URL")
    if "\0" in text:
        raise ScriptError(f"bootstrap_script: {name} has a NUL in it")
    if windows:
        return InlineScript(text, windows=True)
    if not text.startswith("#!"):
        raise ScriptError(f"bootstrap_script: {name} does not start with #!")
    if "\r\n" in text:
        raise ScriptError(f"bootstrap_script: {name} has Windows line ends, no Unix would run it")
    try:
        return InlineScript(compose(text))
    except ComposeError as error:
        raise ScriptError(f"bootstrap_script: {name}, {error}") from error
