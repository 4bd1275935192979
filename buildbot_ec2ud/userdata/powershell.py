"""User-data for Windows images: EC2Launch v1 and v2 run what is between ``<powershell>`` and ``</powershell>``.

The agent's script registers two scheduled tasks of the system's and ends, so that it holds up nobody: one that runs the
bootstrap script, one that ends the machine when nobody needs it any more. All of it is ASCII, as agents differ in the
encoding that they take, and has no ``<`` but those of the tags, as agents look for tags everywhere. Nor has it a word that
makes PowerShell log a script, and so the password, without being told to (such as ``FromBase64String``): other letters
travel as ``\\u`` and four digits. Untested on Windows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from buildbot_ec2ud.userdata.compose import cut
from buildbot_ec2ud.userdata.posix import (
    LIMIT,
    TLS,
    TooLarge,
    UserDataError,
    check_environment,
    check_seconds,
    port_of,
)
from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript

#: Variables that Windows does not start a program without, or not the right one.
_RESERVED = ("PATH", "PATHEXT", "COMSPEC", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "PROGRAMDATA", "PSMODULEPATH")
#: Runs a batch file, whose lines have to end as on Windows.
_BATCH = r"""[IO.File]::WriteAllText("$PSScriptRoot\bootstrap.cmd", ({} -replace "`r?`n", "`r`n"))
& cmd.exe /d /c "$PSScriptRoot\bootstrap.cmd"
exit $LASTEXITCODE
"""
#: The line by which a bootstrap script says that it has no here-string to which comments and indentation matter.
_CUT = "# ec2ud: without comments"


class WindowsTooLarge(TooLarge):
    """User-data would be larger than EC2 takes; no agent of Windows unpacks any.

    :param size: bytes that it would have.
    """

    def __init__(self, size: int) -> None:
        UserDataError.__init__(
            self,
            f"bootstrap_script: the user-data would have {size:,} bytes, EC2 takes {LIMIT:,}: have the script served by "
            "this master (bb_www, and the plugin ec2_scripts in c['www']['plugins']), or put it on a web server and give "
            "its URL",
        )


@dataclass(frozen=True, repr=False)
class WindowsUserData:
    """What a start tells its Windows instance: as :class:`~buildbot_ec2ud.userdata.posix.UserData`, and as secret.

    :ivar master: ``host:port`` that the worker connects to.
    :ivar worker: the worker's name.
    :ivar password: the worker's password.
    :ivar environment: further variables for the bootstrap script. On Windows a variable that is empty is not there, and
        names do not differ by case.
    :ivar script: the bootstrap script, in PowerShell. One at a URL that is not ASCII needs a byte order mark.
    :ivar max_lifetime: seconds after which the instance powers off in any case; or None.
    :ivar orphan_timeout: seconds without a connection to the master after which it powers off; or None.
    :ivar spot: whether it looks out for a spot interruption, and then ends its worker in time.
    :ivar tls_certificates: certificates in PEM form that the worker trusts for the master, or ``system``; None for a
        connection without TLS.
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

    def render(self) -> bytes:
        """The text of the user-data.

        :raises UserDataError: a variable or a number of seconds cannot be given.
        :raises TooLarge: EC2 would not take it.
        """
        variables = "".join(f"{name} {_escape(value)}\n" for name, value in self._variables().items())
        parts = {
            "INSTANCE": quote(self._instance()),
            "WATCHES": quote(self._watches()),
            "SCRIPT": quote(program(self.script.text) if isinstance(self.script, InlineScript) else ""),
            # As it stands: whoever reads it turns each line back.
            "VARIABLES": _single(variables),
        }
        # In one go: what is put in may look like a mark itself.
        text = re.sub("'@([A-Z]+)@'", lambda mark: parts[mark[1]], _TEMPLATE)
        data = f"<powershell>\n{text}</powershell>\n".encode("ascii")
        if len(data) > LIMIT:
            raise WindowsTooLarge(len(data))
        return data

    def _variables(self) -> dict[str, str]:
        """The variables of the bootstrap script."""
        environment = check_environment(self.environment)
        seen: dict[str, str] = {}
        problems = []
        for name in environment:
            upper = name.upper()
            if upper in _RESERVED or upper.startswith("EC2UD_"):
                problems.append(f"bootstrap_env: {name} is not yours to set")
            elif upper in seen:
                problems.append(f"bootstrap_env: {seen[upper]} and {name} are one variable on Windows")
            seen[upper] = name
        own = {"BB_MASTER": self.master, "BB_NAME": self.worker, "BB_PASSWORD": self.password}
        if self.tls_certificates is not None:
            own[TLS] = self.tls_certificates
        if isinstance(self.script, RemoteScript):
            own.update(EC2UD_URL=self.script.url, EC2UD_SHA256=self.script.sha256 or "")
        problems.extend(
            f"bootstrap_env: {seen[name]} is not yours to set" for name in own if name in seen and name != seen[name]
        )
        if problems:
            raise UserDataError("\n".join(problems))
        return own | environment

    def _instance(self) -> str:
        """The program that runs the bootstrap script and ends the instance."""
        parts = (_FETCH if isinstance(self.script, RemoteScript) else "") + (_SPOT if self.spot else "")
        return _INSTANCE.replace("'@PARTS@'\n", parts)

    def _watches(self) -> str:
        """The arguments of the task that ends the instance by itself; none if nothing is to."""
        options = []
        if self.max_lifetime is not None:
            options.append(f"-Lifetime {check_seconds('max_lifetime', self.max_lifetime)}")
        if self.orphan_timeout is not None:
            options.append(f"-Orphan {check_seconds('orphan_timeout', self.orphan_timeout)}")
        if self.spot:
            options.append("-Spot")
        return " ".join([f"-Port {port_of(self.master)}", *options]) if options else ""


def program(script: str) -> str:
    """A bootstrap script as it travels: without the tags of an agent; one that says so, without comments and indentation.

    :param script: PowerShell, or what an agent would run: ``<powershell>...</powershell>``, ``<script>...</script>``.
    :raises UserDataError: there is more than one such element.
    """
    if script.startswith(("<powershell>", "<script>")):
        tagged = re.fullmatch(r"<(powershell|script)>(.*)</\1>\s*", script, re.DOTALL)
        if tagged is None:
            raise UserDataError(
                "bootstrap_script: there is something after its end, or no end: </powershell>, </script>"
            )
        return tagged[2] if tagged[1] == "powershell" else _BATCH.format(quote(tagged[2]))
    return cut(script) if _CUT in script.split("\n") else script


def quote(text: str) -> str:
    """An expression of PowerShell whose value is *text*, and that does nothing else; it is ASCII and has no ``<``.

    Lines end as they do in *text*, if nobody turns the whole script's ends of lines into others.
    """
    if re.fullmatch(r"[\t\n\x20-;=-~]*", text):
        return _single(text)
    escaped = "\n".join(_escape(line) for line in text.split("\n"))
    return f"([regex]::Unescape({_single(escaped)}))"


def _escape(text: str) -> str:
    """Write *text* in printable ASCII, so that .NET's ``Regex.Unescape`` turns it back."""
    return re.sub(r"[^\x20-;=-\[\]-~]", lambda letter: _units(letter[0]), text)


def _units(letter: str) -> str:
    """An escape for each UTF-16 code unit of a letter."""
    if letter == "\\":
        return "\\\\"
    units = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _single(text: str) -> str:
    """A string in single quotes, where a quote is all that has a meaning; those of typography would have it too."""
    return "'" + text.replace("'", "''") + "'"


def _packaged(name: str) -> str:
    return cut(files(__package__).joinpath(name).read_text(encoding="ascii"), head=True)


_TEMPLATE, _INSTANCE, _FETCH, _SPOT = map(_packaged, ("powershell.ps1", "instance.ps1", "fetch.ps1", "spot.ps1"))
