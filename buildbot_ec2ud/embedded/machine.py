"""An instance that runs its user-data: a process group with a directory of its own."""

from __future__ import annotations

import collections
import contextlib
import gzip
import os
import signal
import stat
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import abstract, defer, main, protocol, task
from twisted.python import log
from twisted.python.failure import Failure

#: Bytes of console output that EC2 keeps.
CONSOLE_LIMIT = 64 * 1024
#: Seconds between SIGTERM and SIGKILL.
GRACE = 1.0
#: Seconds to wait for killed processes to be gone.
KILL_TIMEOUT = 5.0

# A session of its own: a Ctrl-C at the terminal is not for the instances.
_OWN_SESSION = "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"

# Stands first on the instance's PATH, under the names that switch a machine off.
_POWER_OFF = """#!/bin/sh
# Tells the embedded EC2 to end this instance. Knows "now", "+MINUTES" and "-c".
# The FIFO is opened with <>, which does not wait for a reader that may be gone.
when=now
for argument in "$@"; do
    case $argument in
        -r | --reboot) echo "this instance cannot reboot" >&2; exit 1 ;;
        -c) when=never ;;
        now | +*) when=$argument ;;
    esac
done
pending=$EC2UD_ROOT/run/shutdown.pid
if [ -f "$pending" ]; then
    kill "$(cat "$pending")" 2>/dev/null
    rm -f "$pending"
fi
case $when in
    never) ;;
    now | +0) echo 1<>"$EC2UD_ROOT/run/power" ;;
    *) (sleep "$((${when#+} * 60))" && echo 1<>"$EC2UD_ROOT/run/power") >/dev/null 2>&1 & echo $! >"$pending" ;;
esac
"""
_LOGGER = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        -t | -p) shift ;;
        --) shift; break ;;
        *) break ;;
    esac
    shift
done
echo "$*" >>"$EC2UD_ROOT/var/log/syslog"
"""
_PROC = Path("/proc")
_COMMANDS = {"shutdown": _POWER_OFF, "poweroff": _POWER_OFF, "halt": _POWER_OFF, "logger": _LOGGER}


class _PowerButton(abstract.FileDescriptor):
    """Calls *pressed* when something is written to the FIFO at *path*."""

    def __init__(self, reactor: Any, path: Path, pressed: Callable[[], Any]) -> None:
        super().__init__(reactor)
        os.mkfifo(path, 0o600)
        # For reading and writing: with no writer left, it would be at its end for ever.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pressed = pressed

    def fileno(self) -> int:
        return self._fd

    def doRead(self) -> None:
        os.read(self._fd, 1024)
        self._pressed()

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Console(protocol.ProcessProtocol):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._machine.wrote(data)

    def processExited(self, reason: Failure) -> None:
        self._machine.exited(reason)


class Machine:
    """The inside of one instance.

    What it runs is code of whoever may launch instances, with the rights of this process: the endpoint must be reachable
    from this machine only.

    :param reactor: Twisted's reactor.
    :param name: the instance's id.
    :param directory: a directory for this instance, which must not exist yet.
    :param powered_off: called when the instance shuts itself down.
    :param finished: called with the exit status (None after a signal) when the user-data has ended by itself.
    :param environment: further variables that its user-data finds.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        directory: Path,
        powered_off: Callable[[], Any],
        finished: Callable[[int | None], Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._directory = directory
        self._powered_off = powered_off
        self._finished = finished
        self._environment = dict(environment or {})
        self._console: collections.deque[bytes] = collections.deque()
        self._console_size = 0
        self._ending = False
        self._button: _PowerButton | None = None
        self._pid: int | None = None
        self._exited = False
        self._marker = f"EC2UD_MACHINE={self._directory}"

    def console(self) -> bytes:
        """The last 64 KiB that the user-data has printed. May be called in any thread."""
        return b"".join(list(self._console))[-CONSOLE_LIMIT:]

    def wrote(self, data: bytes) -> None:
        self._console.append(data)
        self._console_size += len(data)
        while self._console_size - len(self._console[0]) >= CONSOLE_LIMIT:
            self._console_size -= len(self._console.popleft())

    def run(self, user_data: bytes) -> bool:
        """Run *user_data*, as an image's agent would.

        :return: whether it was something to run: it starts with ``#!``, after gunzip if need be.
        """
        if user_data.startswith(b"\x1f\x8b"):
            user_data = gzip.decompress(user_data)
        if not user_data.startswith(b"#!"):
            return False
        commands = self._directory / "bin"
        for name in (".", "bin", "run", "home", "tmp", "var/log"):
            (self._directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in _COMMANDS.items():
            _write_executable(commands / name, text.encode())
        script = self._directory / "user-data"
        _write_executable(script, user_data)
        self._button = _PowerButton(self._reactor, self._directory / "run" / "power", self._powered_off)
        self._button.startReading()
        system = [path for path in os.environ.get("PATH", os.defpath).split(os.pathsep) if path]
        process = self._reactor.spawnProcess(
            _Console(self),
            sys.executable,
            [sys.executable, "-S", "-E", "-c", _OWN_SESSION, str(script)],
            env={
                # Of this process's environment, only the way to the commands: an instance knows nothing of its master.
                "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), *system]),
                "HOME": str(self._directory / "home"),
                "TMPDIR": str(self._directory / "tmp"),
                "LANG": "C.UTF-8",
                "EC2UD_ROOT": str(self._directory),
                **self._environment,
                **dict([self._marker.split("=", 1)]),
            },
            path=str(self._directory),
        )
        self._pid = process.pid
        return True

    def exited(self, reason: Failure) -> None:
        self._exited = True
        if not self._ending:
            self._finished(reason.value.exitCode)

    @defer.inlineCallbacks
    def end(self) -> Generator[Any, Any, None]:
        """End all its processes: politely, then not.

        :return: fires when none is left.
        """
        self._ending = True
        if self._button is not None:
            self._button.stopReading()
            self._button.connectionLost(Failure(main.CONNECTION_DONE))
            self._button = None
        if self._pid is None:
            return
        self._signal(signal.SIGTERM)
        yield self._wait(GRACE)
        self._signal(signal.SIGKILL)
        yield self._wait(KILL_TIMEOUT)
        if any(self._processes()):
            log.msg(f"embedded EC2: processes of {self._name} do not end")
        else:
            self._pid = None  # another process may get that number

    @defer.inlineCallbacks
    def _wait(self, seconds: float) -> Generator[Any, Any, None]:
        deadline = self._reactor.seconds() + seconds
        while any(self._processes()) and self._reactor.seconds() < deadline:
            yield task.deferLater(self._reactor, 0.02)

    def _signal(self, number: int) -> None:
        for pid in list(self._processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self) -> Iterator[int]:
        """Its processes: the group of the user-data, and those that have left it but kept their environment.

        Where there is no ``/proc``, the group is all that can be found; it is given as a negative number, as for kill().
        """
        if not _PROC.joinpath("self", "stat").exists():
            with contextlib.suppress(ProcessLookupError):
                if self._pid is not None:
                    os.killpg(self._pid, 0)
                    yield -self._pid
            return
        marker = self._marker.encode()
        for entry in _PROC.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                state, _, group = entry.joinpath("stat").read_bytes().rpartition(b")")[2].split()[:3]
                if state == b"Z":
                    continue
                # Before its first exec, the user-data's process has neither its own group nor environment.
                newborn = not self._exited and int(entry.name) == self._pid
                if newborn or int(group) == self._pid or marker in entry.joinpath("environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:  # it has just ended, or is somebody else's
                continue


def _write_executable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(stat.S_IRWXU)
