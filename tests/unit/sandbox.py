"""A directory that a user-data script takes for the root of its machine.

The script sees no command of the real machine but those that are linked here, and for what would touch it (``shutdown``,
``logger``, ``sleep``) it finds recorders. What it leaves running ends with the test.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet import defer, utils

from buildbot_ec2ud.userdata.posix import UserData
from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript
from tests.unit.files import directory, write

MASTER, WORKER, PASSWORD = "master.example.org:9989", "worker-1", "p4ssw0rd-of-this-start"

#: Shells that are ``/bin/sh`` somewhere.
SHELLS = {"sh": ["/bin/sh"]}
for _name, _arguments in (("busybox", ["sh"]), ("bash", ["--posix"])):
    if _path := shutil.which(_name):
        SHELLS[_name] = [_path, *_arguments]

_COMMANDS = ("cat", "chmod", "date", "grep", "ls", "mkdir", "sed", "setsid", "sh", "sort", "tr")
_RECORDERS = ("logger", "sleep")
#: Whoever switches a machine off is gone with it. Of this signal, no shell tells on the console.
POWER_OFF = "kill -PIPE $PPID"


class Sandbox:
    """What a script runs in.

    :ivar root: the directory.
    :ivar bin: the directory of commands.
    :ivar url: where the metadata service is.
    :ivar console: what was printed on the console by others than the script itself.
    """

    def __init__(self, test: Any) -> None:
        self.root = directory(test)
        self.url = "http://127.0.0.1:1"  # where nobody answers
        self.bin = os.path.join(self.root, "bin")
        os.mkdir(self.bin)
        self.link(*_COMMANDS)
        for name in _RECORDERS:
            self.record(name)
        for name in ("poweroff", "shutdown"):
            self.record(name, POWER_OFF)
        os.mkdir(self.path("dev"))
        write(self.root, "dev/console", "")
        test.addCleanup(self.end)

    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def link(self, *names: str) -> bool:
        """Let scripts have commands of the machine; tells whether it has them all."""
        paths = [shutil.which(name) for name in names]
        for name, path in zip(names, paths, strict=True):
            if path:
                os.symlink(path, os.path.join(self.bin, name))
        return all(paths)

    def record(self, name: str, then: str = "") -> None:
        """Let scripts have a command that notes its arguments, and then does *then*."""
        calls = self.path(f"{name}.calls")
        write(self.bin, name, f"#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{calls}'\n{then}\n", 0o755)

    def calls(self, name: str) -> list[str]:
        """The arguments of each call of a recorder."""
        return self.read(f"{name}.calls").splitlines() if os.path.exists(self.path(f"{name}.calls")) else []

    def read(self, *names: str) -> str:
        with open(self.path(*names), encoding="utf-8", newline="") as file:
            return file.read()

    def exists(self, *names: str) -> bool:
        return os.path.exists(self.path(*names))

    @property
    def log(self) -> str:
        return self.read("var/log/buildbot-ec2ud.log")

    @property
    def console(self) -> list[str]:
        return self.read("dev/console").splitlines()

    def processes(self) -> list[int]:
        """The processes of this machine: those with its directory in their environment."""
        # One look can miss what has just been forked by one that has ended, or that is about to exec.
        return self._look_for_processes() or self._look_for_processes() or self._look_for_processes()

    def _look_for_processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has just ended
                if f"EC2UD_ROOT={self.root}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return sorted(found)

    def end(self) -> None:
        """Kill whatever runs on this machine."""
        while processes := self.processes():
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": self.bin, "EC2UD_ROOT": self.root, "EC2UD_METADATA_URL": self.url, **more}

    def _render(
        self, script: InlineScript | RemoteScript | str, password: str, environment: dict[str, Any], **watches: Any
    ) -> bytes:
        if isinstance(script, str):
            script = InlineScript(script)
        return UserData(MASTER, WORKER, password, environment, script, **watches).render()

    def use(self, shell: list[str]) -> None:
        """Let *shell* be what scripts find as ``sh``."""
        path = os.path.join(self.bin, "sh")
        os.unlink(path)
        write(self.bin, "sh", f'#!/bin/sh\nexec {shlex.join(shell)} "$@"\n', 0o755)

    def run(
        self, script: InlineScript | str, shell: str = "sh", password: str = PASSWORD, **environment: Any
    ) -> list[str]:
        """Run user-data with the bootstrap *script*; gives the lines on its console."""
        return self.execute(SHELLS[shell], self._render(script, password, environment))

    def execute(self, shell: list[str], data: bytes) -> list[str]:
        """Run user-data; gives the lines on its console."""
        self.use(shell)
        done = subprocess.run(
            [*shell, write(self.root, "user-data", data)],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.root,
            timeout=30,
            check=False,
        )
        # Not splitlines(), which has more ends of lines than a shell.
        return done.stdout.decode().removesuffix("\n").split("\n")

    def start(
        self, script: RemoteScript | str, shell: str = "sh", max_lifetime: int | None = None, **environment: Any
    ) -> defer.Deferred[list[str]]:
        """As :meth:`run`, while the reactor goes on."""
        command, *arguments = SHELLS[shell]
        data = self._render(script, PASSWORD, environment, max_lifetime=max_lifetime)
        path = write(self.root, "user-data", data)
        done = utils.getProcessOutputAndValue(command, [*arguments, path], env=self.environment(), path=self.root)
        return done.addCallback(lambda result: result[0].decode().removesuffix("\n").split("\n"))
