"""User-data for images that run a ``#!`` script: POSIX sh, and nothing that a minimal system lacks."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from buildbot_ec2ud.userdata.compose import cut
from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript

#: Bytes of user-data that EC2 takes, before base64 (EC2 user guide, "Run commands when you launch an instance").
LIMIT = 16384

#: Variables that have a meaning of their own for every script.
CONTRACT = ("BB_MASTER", "BB_NAME", "BB_PASSWORD")
#: What the metadata service says of the instance; empty where it does not answer.
FACTS = ("BB_INSTANCE_ID", "BB_AMI_ID", "BB_REGION", "BB_AVAILABILITY_ZONE", "BB_LOCAL_IPV4", "BB_HOSTNAME")
#: The certificates to trust for the master.
TLS = "BB_TLS_CERT"
#: A shell would not let these be set, or not to any text.
_SHELLS = ("UID", "EUID", "PPID", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO", "OPTIND")
_RESERVED = (*CONTRACT, *FACTS, TLS, "PATH", "IFS", "ENV", "PWD", "HOME", *_SHELLS)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class UserDataError(ValueError):
    """User-data cannot be made; the text begins with the name of the argument."""


class TooLarge(UserDataError):
    """User-data would be larger than EC2 takes.

    :param size: bytes that it would have.
    """

    def __init__(self, size: int) -> None:
        super().__init__(
            f"bootstrap_script: the user-data would have {size:,} bytes, EC2 takes {LIMIT:,}: give "
            "gzip_user_data=True where the image's cloud-init runs it, have it served by this master (bb_www, and "
            "the plugin ec2_scripts in c['www']['plugins']), or put the script on a web server and give its URL"
        )


@dataclass(frozen=True, repr=False)
class UserData:
    """What a start tells its instance. It has a secret in it: it has no ``repr``, and is not to be logged.

    :ivar master: ``host:port`` that the worker connects to.
    :ivar worker: the worker's name.
    :ivar password: the worker's password.
    :ivar environment: further variables for the bootstrap script.
    :ivar script: the bootstrap script.
    :ivar max_lifetime: seconds after which the instance powers off in any case; or None.
    :ivar orphan_timeout: seconds without a connection to the master after which it powers off; or None. They count from
        its start on: the master has to give it time to boot.
    :ivar spot: whether it looks out for a spot interruption, and then ends its worker early enough for the master to
        hear of it.
    :ivar tls_certificates: certificates in PEM form that the worker trusts for the master, or ``system`` for those of the
        system; None for a connection without TLS.
    :ivar gzip: whether what is larger than EC2 takes is packed; nobody unpacks it but cloud-init.
    """

    master: str
    worker: str
    password: str
    environment: Mapping[str, Any]
    script: InlineScript | RemoteScript
    max_lifetime: int | None = None
    orphan_timeout: int | None = None
    spot: bool = False
    tls_certificates: str | None = None
    gzip: bool = False

    def render(self) -> bytes:
        """The text of the user-data.

        :raises UserDataError: a variable or a number of seconds cannot be given.
        :raises TooLarge: EC2 would not take it.
        """
        variables = {"BB_MASTER": self.master, "BB_NAME": self.worker}
        if self.tls_certificates is not None:
            variables[TLS] = self.tls_certificates
        variables.update(check_environment(self.environment))
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        parts = {
            "WATCHES": self._watches(),
            "EXPORTS": exports,
            "BOOTSTRAP": _bootstrap(self.script),
            "SECRET": _secret(self.password),
        }
        # In one go: what is put in may look like a mark itself.
        data = re.sub("@([A-Z]+)@\n", lambda mark: parts[mark[1]], _TEMPLATE).encode("utf-8")
        if self.gzip and len(data) > LIMIT:
            data = gzip.compress(data, mtime=0)
        if len(data) > LIMIT:
            raise TooLarge(len(data))
        return data

    def _watches(self) -> str:
        """The part of the user-data that starts what ends the instance by itself."""
        text = _file("switch", _SWITCH) + _file("imds", _IMDS)
        if self.max_lifetime is not None:
            text += f"ec2ud_watch switch lifetime {check_seconds('max_lifetime', self.max_lifetime)}\n"
        if self.orphan_timeout is not None:
            seconds = check_seconds("orphan_timeout", self.orphan_timeout)
            text += f"ec2ud_watch switch orphan {seconds} {port_of(self.master)}\n"
        if self.spot:
            text += _file("spot", _SPOT) + f"ec2ud_watch spot {port_of(self.master)}\n"
        return text


def check_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    """Give the variables of ``bootstrap_env`` as text.

    :raises UserDataError: names or values cannot be shell variables; a line for each.
    """
    if not isinstance(environment, Mapping):
        raise UserDataError(f"bootstrap_env: not a dict: {type(environment).__name__}")
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


def check_seconds(name: str, value: Any) -> int:
    """Give *value*, which has to be a number of seconds.

    :param name: of the argument.
    :raises UserDataError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserDataError(f"{name}: not a number of seconds: {value!r}")
    return value


def port_of(master: str) -> int:
    """The port by which an instance knows its connections to the master.

    :param master: ``host:port``.
    :raises UserDataError: it has no port.
    """
    port = master.rpartition(":")[2]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserDataError(f"bb_master: has no port: {master!r}")
    return int(port)


def _file(name: str, text: str) -> str:
    """The part of the user-data that makes a script of this package."""
    return f"cat >\"$ec2ud_dir/{name}\" <<'EC2UD_END'\n{text}EC2UD_END\n"


def _bootstrap(script: InlineScript | RemoteScript) -> str:
    """The part of the user-data that puts the bootstrap script into ``$ec2ud_script``."""
    if isinstance(script, RemoteScript):
        return f"{_FETCH}ec2ud_fetch {shlex.quote(script.url)} {script.sha256 or '-'} || return 1\n"
    return f'cat >"$ec2ud_script" {_here(script.text, "bootstrap_script", " || return 1")}'


def _secret(password: str) -> str:
    """The part of the user-data that puts the password into ``$BB_PASSWORD``. No shell shows it that traces (``sh -x``)."""
    if "\n" in password or "\0" in password:
        raise UserDataError("password: is more than a line")
    return f"IFS= read -r BB_PASSWORD {_here(password, 'password')}"


def _here(text: str, argument: str, rest: str = "") -> str:
    """A here-document of *text*, and the *rest* of the command that reads it."""
    text = text if text.endswith("\n") else text + "\n"
    end = next((end for end in _ENDS if _is_free(end, text)), None)
    if end is None:
        raise UserDataError(f"{argument}: no text is left to mark its end with")
    return f"<<'{end}'{rest}\n{text}{end}\n"


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


def _packaged(name: str, head: bool = False) -> str:
    """A script of this package, cut, maybe but for the comments at its head."""
    return cut(files(__package__).joinpath(name).read_text(encoding="utf-8"), head)


_TEMPLATE = _packaged("posix.sh", head=True)
_SWITCH, _IMDS, _SPOT, _FETCH = map(_packaged, ("switch.sh", "imds.sh", "spot.sh", "fetch.sh"))
