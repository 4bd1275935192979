"""Looks for mistakes in scripts with what this machine has for that: the shell itself, and ShellCheck."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer, protocol
from twisted.internet.error import ProcessExitedAlready

from buildbot_ec2ud.settings import Settings
from buildbot_ec2ud.userdata.scripts import DEFAULT, FAMILIES, packaged

#: Seconds for one program.
TIMEOUT = 60.0
#: Shells whose option ``-n`` reads a script without running it.
_SHELLS = ("sh", "ash", "bash", "dash", "ksh")


@dataclass(frozen=True)
class Script:
    """A script to look at, as whoever wrote it has it.

    :ivar name: what it is called in what is found.
    """

    name: str
    text: str

    @property
    def shell(self) -> str | None:
        """The shell that runs it; None if that is no shell, or it has no ``#!``."""
        words = self.text.partition("\n")[0].removeprefix("#!").split() if self.text.startswith("#!") else []
        names = [
            os.path.basename(word) for word in words if not word.startswith("-") and os.path.basename(word) != "env"
        ]
        return names[0] if names and names[0] in _SHELLS else None


@dataclass(frozen=True)
class Linted:
    """What was found.

    :ivar tools: what has looked.
    :ivar findings: what is wrong, a line for each.
    :ivar notes: what was not looked at, and why.
    """

    tools: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def source(settings: Settings, directories: Sequence[str]) -> Script | str:
    """The script that somebody has written for a worker's user-data; or why there is none to look at.

    :param settings: the worker's.
    :param directories: where a relative path is looked for.
    :raises OSError: a file cannot be read; nor can it be when the user-data is made.
    """
    given = settings.bootstrap_script if settings.bootstraps else settings.user_data
    if not settings.bootstraps:
        text = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
        return (
            Script("user_data", text) if isinstance(text, str) and text.startswith("#!") else "user_data is no script"
        )
    given = DEFAULT if given is None else given
    if given.startswith("#!"):
        return Script("bootstrap_script", given)
    if "://" in given:
        return "the bootstrap script is at a URL: look at it there"
    if given in FAMILIES:
        path = packaged(FAMILIES[given])
    else:
        paths = [os.path.join(directory, given) for directory in directories]
        path = next(filter(os.path.isfile, paths), given)
    if path.lower().endswith(".ps1") or given.startswith("<"):
        return "the bootstrap script is for Windows: nothing here reads PowerShell or batch files"
    with open(path, encoding="utf-8") as file:
        return Script(path, file.read())


@defer.inlineCallbacks
def lint(scripts: Sequence[Script], written: Script | None, reactor: Any) -> Generator[Any, Any, Linted]:
    """Look for mistakes.

    :param scripts: what a shell has to be able to read.
    :param written: what ShellCheck looks at, if it is installed: the script that a person has written.
    :param reactor: Twisted's.
    :return: fires with :class:`Linted`.
    """
    tools: list[str] = []
    findings: list[str] = []
    notes: list[str] = []
    for script in scripts:
        shell = script.shell and shutil.which(script.shell)
        if shell is None:
            notes.append(f"{script.name}: no shell of this machine reads it")
            continue
        status, out, err = yield _run(reactor, shell, ["-n"], script.text)
        tools.append(f"{script.shell} -n")
        if status != 0:
            findings += [f"{script.name}: {line}" for line in (out + err).splitlines() if line.strip()] or [
                f"{script.name}: {shell} -n does not take it"
            ]
    if written is not None and written.shell is not None:
        shellcheck = shutil.which("shellcheck")
        if shellcheck is None:
            notes.append("shellcheck is not installed: it finds more than the shell itself")
        else:
            status, out, err = yield _run(reactor, shellcheck, ["-S", "warning", "-f", "json", "-"], written.text)
            tools.append("shellcheck")
            findings += _of_shellcheck(written.name, out) if status in (0, 1) else [f"shellcheck: {err.strip()}"]
    return Linted(tuple(dict.fromkeys(tools)), tuple(findings), tuple(notes))


def _of_shellcheck(name: str, output: str) -> list[str]:
    return [
        f"{name}: line {found['line']}: {found['message']} (SC{found['code']}, {found['level']})"
        for found in json.loads(output)
    ]


@defer.inlineCallbacks
def _run(reactor: Any, program: str, arguments: Sequence[str], text: str) -> Generator[Any, Any, tuple[int, str, str]]:
    """Run a program on *text*; it is killed after :data:`TIMEOUT`.

    :return: fires with its exit status (-1 where a signal has ended it), its output, and its errors.
    """
    running = _Program(text.encode("utf-8", "replace"))
    process = reactor.spawnProcess(running, program, [program, *arguments], env=os.environ)
    timer = reactor.callLater(TIMEOUT, _kill, process)
    status = yield running.ended
    if timer.active():
        timer.cancel()
    elif status == -1:
        running.errors.append(f"{program}: has not ended within {TIMEOUT:g} s\n".encode())
    out, err = (b"".join(parts).decode("utf-8", "replace") for parts in (running.output, running.errors))
    return status, out, err


def _kill(process: Any) -> None:
    with contextlib.suppress(ProcessExitedAlready):
        process.signalProcess("KILL")


class _Program(protocol.ProcessProtocol):
    """Gives a program its input, and keeps what it says."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.output: list[bytes] = []
        self.errors: list[bytes] = []
        self.ended: defer.Deferred[int] = defer.Deferred()
        self.outReceived = self.output.append
        self.errReceived = self.errors.append

    def connectionMade(self) -> None:
        self.transport.write(self._text)
        self.transport.closeStdin()

    def processEnded(self, reason: Any) -> None:
        code = reason.value.exitCode
        self.ended.callback(-1 if code is None else code)
