"""User-data for images that run a ``#!`` script: POSIX sh, and nothing that a minimal system lacks."""

from __future__ import annotations

import os
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript

#: Bytes of user-data that EC2 takes, before base64 (EC2 user guide, "Run commands when you launch an instance").
LIMIT = 16384

#: Variables that have a meaning of their own for every script.
CONTRACT = ("BB_MASTER", "BB_NAME", "BB_PASSWORD")
_RESERVED = (*CONTRACT, "PATH", "IFS", "ENV", "PWD", "HOME")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class UserDataError(ValueError):
    """User-data cannot be made; the text begins with the name of the argument."""


@dataclass(frozen=True, repr=False)
class UserData:
    """What a start tells its instance. It has a secret in it: it has no ``repr``, and is not to be logged.

    :ivar master: ``host:port`` that the worker connects to.
    :ivar worker: the worker's name.
    :ivar password: the worker's password.
    :ivar environment: further variables for the bootstrap script.
    :ivar script: the bootstrap script.
    """

    master: str
    worker: str
    password: str
    environment: Mapping[str, Any]
    script: InlineScript | RemoteScript

    def render(self) -> bytes:
        """The text of the user-data.

        :raises UserDataError: a variable cannot be given, or the text is larger than EC2 takes.
        """
        variables = dict(zip(CONTRACT, (self.master, self.worker, self.password), strict=True))
        variables.update(check_environment(self.environment))
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        # In one go: what is put in may look like a mark itself.
        before, between, after = re.split("@EXPORTS@\n|@BOOTSTRAP@\n", _TEMPLATE)
        text = "".join((before, exports, between, _bootstrap(self.script), after))
        data = text.encode("utf-8")
        if len(data) > LIMIT:
            raise UserDataError(
                f"bootstrap_script: the user-data would have {len(data):,} bytes, EC2 takes {LIMIT:,}: "
                "put the script on a web server and give its URL"
            )
        return data


def check_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    """Give the variables of ``bootstrap_env`` as text.

    :raises UserDataError: names or values cannot be shell variables; a line for each.
    """
    if not isinstance(environment, Mapping):
        raise UserDataError(f"bootstrap_env: not a dict: {environment!r}")
    problems = [problem for name, value in environment.items() if (problem := _problem(name, value))]
    if problems:
        raise UserDataError("\n".join(f"bootstrap_env: {problem}" for problem in problems))
    return {name: str(value) for name, value in environment.items()}


def _problem(name: Any, value: Any) -> str | None:
    """What keeps a variable of ``bootstrap_env`` from being a shell variable."""
    if not isinstance(name, str) or not _NAME.match(name):
        return f"{name!r} is not the name of a shell variable"
    if name in _RESERVED or name.startswith("EC2UD_"):
        return f"{name} is not yours to set"
    if not isinstance(value, (str, int)):
        return f"{name} is not a text: {type(value).__name__}"
    if "\0" in str(value):
        return f"{name} has a NUL in it"
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name} is no text that UTF-8 can write: {error.reason}"
    return None


def _bootstrap(script: InlineScript | RemoteScript) -> str:
    """The part of the user-data that puts the bootstrap script into ``$ec2ud_script``."""
    if isinstance(script, RemoteScript):
        return f"ec2ud_fetch {shlex.quote(script.url)} {script.sha256 or '-'} || return 1\n"
    text = script.text if script.text.endswith("\n") else script.text + "\n"
    end = next((end for end in _ENDS if _is_free(end, text)), None)
    if end is None:
        raise UserDataError("bootstrap_script: no text is left to mark its end with")
    return f"cat >\"$ec2ud_script\" <<'{end}' || return 1\n{text}{end}\n"


#: What may mark the end of a script; no two begin alike.
_ENDS = [f"{first}_EC2UD_END" for first in string.ascii_uppercase + string.ascii_lowercase + string.digits]


def _is_free(end: str, text: str) -> bool:
    """Whether *end* can mark the end of *text*.

    There must be no such line; and none that begins as *end* does and goes on with a letter that is not ASCII: dash 0.5.12,
    the sh of Debian 12, loses the first byte of that.
    """
    for line in text.split("\n"):
        common = len(os.path.commonprefix((line, end)))
        if line == end or (common and not line[common : common + 1].isascii()):
            return False
    return True


_TEMPLATE = files(__package__).joinpath("posix.sh").read_text(encoding="utf-8")
