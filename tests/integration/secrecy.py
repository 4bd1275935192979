"""Looks for a secret wherever it could have got to: a master's directory and answers, processes, an instance's files."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import stat
import threading
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor
from twisted.web.client import Agent, readBody

#: Larger files are nothing that a bootstrap has written.
_LARGE = 8 << 20
#: What is tried where a path of the data API has a number in it: there are not that many of anything in a test's master.
_NUMBERS = range(1, 4)
#: Commands that bootstrap scripts use. Some end within a millisecond: no look at /proc would see them.
_COMMANDS = (
    *(
        "awk",
        "basename",
        "base64",
        "cat",
        "chmod",
        "chown",
        "cp",
        "curl",
        "cut",
        "date",
        "dirname",
        "env",
        "expr",
        "grep",
    ),
    *("head", "id", "install", "ln", "ls", "mkdir", "mktemp", "mount", "mv", "openssl", "ps", "rm", "sed", "setsid"),
    *("sha256sum", "sleep", "sort", "stat", "su", "tail", "tee", "touch", "tr", "uname", "wc", "wget", "xargs"),
)
_RECORDER = """#!/bin/sh
[ ! -e {record}/on ] || {cat} /proc/$$/cmdline /proc/$$/environ >"$(TMPDIR=; {mktemp} {record}/{name}.XXXXXX)"
exec {real} "$@"
"""


def password_of(user_data: bytes) -> str:
    """The password that is made for a start, in the user-data that an instance was given."""
    found = re.search(rb"\bBB_PASSWORD(?:=['\"]?|[^\n]*\n)([A-Za-z0-9_-]{32})(?![\w-])", user_data)
    return found[1].decode()


def forms(secret: str) -> dict[str, bytes]:
    """What a secret looks like when it is written somewhere, by the name of the form; in base64, anywhere inside of it."""
    data = secret.encode()
    quoted = "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in secret)
    found = {
        "plain": data,
        "url": urllib.parse.quote(secret, safe="").encode(),
        "url-encoded": quoted.encode(),
        "url-encoded in lower case": re.sub("%..", lambda match: match[0].lower(), quoted).encode(),
        "hexadecimal": data.hex().encode(),
        "in hexadecimal capitals": data.hex().upper().encode(),
        "UTF-16": secret.encode("utf-16-le"),
        "reversed": data[::-1],
    }
    for encode, shift in itertools.product((base64.b64encode, base64.urlsafe_b64encode), range(3)):
        # What stands before and behind it has a part in the first and the last letters.
        encoded = encode(b"\0" * shift + data).rstrip(b"=")
        found[f"{encode.__name__} {shift}"] = encoded[4 if shift else 0 : -2]
    return found


def find(secret: str, haystack: Mapping[str, bytes]) -> list[str]:
    """Where a secret is, and in which form."""
    needles = forms(secret)
    return [
        f"{place}: {form}" for place, text in haystack.items() for form, needle in needles.items() if needle in text
    ]


def files(*roots: str | os.PathLike[str]) -> dict[str, bytes]:
    """The contents of all files under *roots*, and the names: those of links are what they point to."""
    found = {}
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    status = os.lstat(path)
                    content = b""
                    if stat.S_ISLNK(status.st_mode):
                        content = os.readlink(path).encode()
                    elif stat.S_ISREG(status.st_mode) and status.st_size <= _LARGE:
                        content = Path(path).read_bytes()
                except OSError:  # it is gone by now
                    continue
                found[path] = path.encode() + b"\0" + content
    return found


class Events:
    """Keeps what a master tells its web pages while they are open, as text.

    :param test: the test case, at whose end it stops.
    :param master: Buildbot's.
    """

    def __init__(self, test: Any, master: Any) -> None:
        self._said: list[str] = []
        produce = master.mq.produce

        def note(routing_key: Any, data: Any) -> Any:
            self._said.append(repr((routing_key, data)))
            return produce(routing_key, data)

        test.patch(master.mq, "produce", note)

    def text(self) -> bytes:
        return "\n".join(self._said).encode()


@defer.inlineCallbacks
def answers(embedded: Any) -> Any:
    """All that a master says to whoever may read its web UI, by where it says it.

    Each path of the data API is asked, for each of the first few numbers; and by HTTP its collections, logs and pages.

    :param embedded: the embedded master.
    """
    master, found = embedded.master, {}
    for pattern in sorted({pattern for pattern, _ in master.data.matcher.iterPatterns()}):
        names = [part.partition(":") for part in pattern]
        if any(colon and kind != "n" for kind, colon, _ in names):
            continue  # by name; what it gives has a number too
        holes = sum(bool(colon) for _, colon, _ in names)
        if not pattern or holes > 2:
            continue
        for numbers in itertools.product(_NUMBERS, repeat=holes):
            left = iter(numbers)
            path = tuple(next(left) if colon else kind for kind, colon, _ in names)
            try:
                answer = yield master.data.get(path)
            except Exception:  # no such thing, or nothing that can be read
                continue
            found["data " + "/".join(map(str, path))] = repr(answer).encode()
    pages = ["", "config.json"]
    collections = [pattern[0] for pattern, _ in master.data.matcher.iterPatterns() if len(pattern) == 1]
    pages += [f"api/v2/{name}" for name in collections if ":" not in name]
    for step in json.loads((yield fetch(embedded, "api/v2/steps"))).get("steps", ()):
        for log in json.loads((yield fetch(embedded, f"api/v2/steps/{step['stepid']}/logs")))["logs"]:
            pages += [f"api/v2/logs/{log['logid']}/{part}" for part in ("contents", "raw", "raw_inline")]
    for build in json.loads((yield fetch(embedded, "api/v2/builds")))["builds"]:
        pages.append(f"api/v2/builds/{build['buildid']}/properties")
    for page in pages:
        found[f"GET /{page}"] = yield fetch(embedded, page)
    return found


@defer.inlineCallbacks
def fetch(embedded: Any, path: str) -> Any:
    """The body of one page of the web UI."""
    response = yield Agent(reactor).request(b"GET", (embedded.www_url + path).encode())
    return (yield readBody(response))


class Watch:
    """Looks at the processes of this machine all the time, in a thread: their command lines and environments.

    And at each command of an instance that is found by ``PATH``, however short: there, a recorder stands before it.

    :param test: the test case, at whose end it stops.
    :param directory: a new directory, for what is recorded.
    :ivar seen: what was seen, by the process's number and command.
    """

    def __init__(self, test: Any, directory: Path) -> None:
        self.seen: dict[str, bytes] = {}
        self._own = {os.getpid(), os.getppid()}
        self._records = directory / "records"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._record(test, directory / "bin")
        self._thread.start()
        test.addCleanup(self.stop)

    def _record(self, test: Any, commands: Path) -> None:
        commands.mkdir(parents=True)
        self._records.mkdir()
        system = os.environ.get("PATH", os.defpath)
        places = {name: shutil.which(name, path=system) for name in (*_COMMANDS, "mktemp")}
        for name in _COMMANDS:
            if places[name] is not None:
                text = _RECORDER.format(
                    record=self._records, name=name, cat=places["cat"], mktemp=places["mktemp"], real=places[name]
                )
                (commands / name).write_text(text)
                (commands / name).chmod(0o755)
        (self._records / "on").touch()
        # An instance gets the PATH of this process behind its own commands.
        test.patch(os, "environ", {**os.environ, "PATH": f"{commands}{os.pathsep}{system}"})

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def recorded(self) -> dict[str, bytes]:
        """What the recorders have seen."""
        return {f"command {path.name}": path.read_bytes() for path in self._records.iterdir()}

    def _look(self) -> None:
        while not self._stopped.wait(0.05):
            for pid, command, environment in processes(self._own):
                # Of each state of a process one look is kept: exec makes another command of it.
                self.seen[f"{pid} {_words(command)}"] = command + b"\0" + environment


def processes(but: Iterable[int] = ()) -> list[tuple[int, bytes, bytes]]:
    """The processes of this machine: number, command line, environment at their last exec."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in but:
            try:
                command = Path("/proc", name, "cmdline").read_bytes()
                environment = Path("/proc", name, "environ").read_bytes()
                if Path("/proc", name, "cmdline").read_bytes() == command:  # else it has become another one meanwhile
                    found.append((int(name), command, environment))
            except OSError:  # it has ended
                continue
    return found


def _words(command: bytes) -> str:
    return command.replace(b"\0", b" ").decode("utf-8", "replace").strip()
