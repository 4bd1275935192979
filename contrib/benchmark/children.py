"""Processes of the benchmark: they say where they listen in a line of JSON, and end when their standard input is closed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

from twisted.internet import stdio
from twisted.internet.protocol import Protocol

_HERE = Path(__file__).parent
#: Seconds that a process has to end by itself.
_PATIENCE = 10.0


@contextmanager
def child(script: str, *arguments: Any) -> Iterator[tuple[dict[str, Any], Popen[str]]]:
    """Run a script of this directory.

    :param script: its name.
    :param arguments: each is given as JSON.
    :return: what it said in its first line, and the process.
    :raises RuntimeError: it ended without a word.
    """
    command = [sys.executable, str(_HERE / script), *map(json.dumps, arguments)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            if not said:
                raise RuntimeError(f"{script} did not start: see above")
            yield json.loads(said), process
        finally:
            process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except TimeoutExpired:
                process.kill()


def run_until_closed(reactor: Any, said: dict[str, Any]) -> None:
    """The other end: say it, and run the reactor until standard input is closed."""

    class UntilClosed(Protocol):
        def connectionLost(self, reason: Any) -> None:
            if reactor.running:
                reactor.stop()

    print(json.dumps(said), flush=True)
    stdio.StandardIO(UntilClosed())
    reactor.run()
