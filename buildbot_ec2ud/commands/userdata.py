"""``buildbot-ec2ud userdata``: what an instance of a worker would get, shown and looked over; nothing is launched."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.commands.lint import Linted, Script, lint, source
from buildbot_ec2ud.configured import Configured, Unusable
from buildbot_ec2ud.preview import Preview, Previews
from buildbot_ec2ud.userdata.posix import LIMIT

#: Exit statuses: all is fine; something is wrong.
FINE, WRONG = 0, 1

_WAYS = {
    "inline": "inline: the user-data has the bootstrap script in it",
    "gzip": "gzip: packed, for cloud-init to unpack; shown unpacked",
    "served": "served: the instance fetches the bootstrap script from this master",
    "url": "url: the instance fetches the bootstrap script",
    "as it is": "as it is: the argument user_data",
    "none": "none: the instance gets no user-data",
}


@defer.inlineCallbacks
def show(reactor: Any, directory: str, name: str, as_json: bool = False, raw: bool = False) -> Generator[Any, Any, int]:
    """Print what an instance of a worker would get, and what is wrong with it.

    :param reactor: Twisted's.
    :param directory: path of the master's directory.
    :param name: of the worker.
    :param as_json: print an object, instead of a text.
    :param raw: print the user-data only; what is wrong goes to stderr.
    :return: fires with the exit status.
    """
    try:
        configured = Configured(directory)
        (worker,) = configured.select([name])
    except Unusable as error:
        print(error, file=sys.stderr)
        return WRONG
    preview = (yield Previews.of(configured, [worker], reactor)).of_worker(worker)
    linted = Linted()
    if not preview.troubles:
        linted = yield _lint(worker.settings, preview, configured.master.basedir, reactor)
    if as_json:
        print(json.dumps(_object(name, preview, linted), indent=2))
    elif raw:
        print(preview.text, end="")
        for line in (*preview.troubles, *linted.findings):
            print(line, file=sys.stderr)
    else:
        _print(name, preview, linted)
    return WRONG if preview.troubles or linted.findings else FINE


@defer.inlineCallbacks
def _lint(settings: Any, preview: Preview, directory: str, reactor: Any) -> Generator[Any, Any, Linted]:
    written = source(settings, (directory,))
    scripts = []
    if preview.text.startswith("#!") and settings.bootstraps:
        scripts.append(Script("user-data", preview.text))
    if isinstance(written, Script):
        scripts.append(written)
    linted = yield lint(scripts, written if isinstance(written, Script) else None, reactor)
    notes = (written,) if isinstance(written, str) and preview.text else ()
    return Linted(linted.tools, linted.findings, (*notes, *linted.notes))


def _object(name: str, preview: Preview, linted: Linted) -> dict[str, Any]:
    """What is told, by the names of the JSON."""
    return {
        "worker": name,
        "way": preview.way,
        "size": preview.size,
        "limit": LIMIT,
        "windows": preview.windows,
        "problems": [*preview.troubles, *linted.findings],
        "notes": [*preview.notes, *linted.notes],
        "checked_by": list(linted.tools),
        "text": preview.text,
    }


def _print(name: str, preview: Preview, linted: Linted) -> None:
    print(f"worker {name}, {_WAYS[preview.way]}" if not preview.troubles else f"worker {name}")
    if preview.size is not None and not preview.troubles:
        print(f"size: {preview.size:,} of the {LIMIT:,} bytes that EC2 takes")
    for line in (*preview.notes, *linted.notes):
        print(f"note: {line}")
    for line in (*preview.troubles, *linted.findings):
        print(f"problem: {line}")
    if not preview.troubles and not linted.findings:
        print(f"no problem found by this package{''.join(f', {tool}' for tool in linted.tools)}")
    if preview.text:
        print(f"\n{preview.text}", end="" if preview.text.endswith("\n") else "\n")
