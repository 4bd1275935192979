"""Faults of the embedded EC2 as one writes them in a line: ``throttle,lost-reply:RunInstances,capacity=spot:0``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from buildbot_ec2ud.embedded.kinds import KINDS

if TYPE_CHECKING:
    from buildbot_ec2ud.embedded.faults import Faults

#: The settings, as they are written, and what they do.
SETTINGS: Mapping[str, str] = {
    "throttle": "EC2's own token buckets for each action",
    "visible-after=SECONDS": "a new instance is not found for that long",
    "latency=SECONDS": "every answer is that late",
    "pending=SECONDS": "an instance takes that long to run",
    "shutting-down=SECONDS": "an instance takes that long to end",
    "vanish-after=SECONDS": "a terminated instance is found for that long",
    "capacity=POOL:N": "capacity for N instances there",
    "quota=MARKET:N": "a quota of N instances, spot or on-demand",
    "spot-price=POOL:PRICE": "dollars per hour of a spot instance there, at least",
    "not-offered=POOL": "there is no such thing there",
    "full-subnet=SUBNET": "no address is free in it, or in those of a zone",
    "launch-failure=CODE*N": "the first N instances end while pending",
    "interruption=SECONDS*N": "the first N spot instances get notice after that",
    "notice=SECONDS": "how long that notice is; 120 by default",
}

_NAMES = {setting.partition("=")[0]: setting for setting in SETTINGS}
#: The settings that may be given more than once.
_SEVERAL = ("capacity", "quota", "spot-price", "not-offered", "full-subnet", "launch-failure", "interruption")


def read(faults: Faults, text: str) -> None:
    """Add what *text* says: see :meth:`Faults.parse`."""
    seen = set()
    for part in (part.strip() for part in text.split(",")):
        name, given, value = part.partition("=")
        if given or part in _NAMES:
            # Of those, only the value for one pool is given once.
            once = part.rpartition(":")[0] if name in ("capacity", "quota", "spot-price") else name
            if once in seen:
                raise ValueError(f"{once} is given twice")
            if name not in _SEVERAL or once != name:
                seen.add(once)
            _set(faults, part, name, value if given else None)
            continue
        if not part:
            raise ValueError(f"an empty part in {text!r}")
        what, count = _counted(part, part, "calls")
        kind, limited, action = what.partition(":")
        if limited and not action:
            raise ValueError(f"no action after the colon in {part!r}")
        faults.add(kind, action, count)


def describe() -> str:
    """What :meth:`Faults.parse` understands, as lines of text."""

    def lines(table: Mapping[str, str]) -> list[str]:
        return [f"  {name:<22} {text}" for name, text in table.items()]

    head = (
        "faults, separated by commas: KIND hits one call, KIND:ACTION one of that",
        "action, KIND*N and KIND:ACTION*N the first N",
    )
    pools = (
        "settings; POOL is an instance type, an availability zone or a market, or",
        "several of them: t3.micro/us-east-1a/spot; * is all",
    )
    kinds = {kind.name: kind.text for kind in KINDS.values()}
    return "\n".join([*head, *lines(kinds), "", *pools, *lines(SETTINGS)])


def unknown(what: str, name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The text about a name that is unknown.

    :param known: what it could have been.
    :param listed: what to list where nothing known is near; None: nothing.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"unknown {what} {name!r}; did you mean {near[0]}?"
    return f"unknown {what} {name!r}" + (f"; known are {', '.join(listed)}" if listed else "")


def _set(faults: Faults, part: str, name: str, value: str | None) -> None:
    """Make a setting of a part of the text.

    :param value: what stands after ``=``, None if there is no such.
    """
    if name not in _NAMES:
        if re.split("[:*]", name)[0] in KINDS:
            raise ValueError(f"only settings have a value: {part!r}; they are {', '.join(SETTINGS)}")
        raise ValueError(unknown("setting", name, _NAMES, SETTINGS))
    if name == "throttle":
        if value is not None:
            raise ValueError(f"throttle has no value: {part!r}")
        faults.throttle = True
        return
    if not value:
        raise ValueError(f"not {_NAMES[name]}: {part!r}")
    if name not in _SEVERAL:
        setattr(faults, name.replace("-", "_"), _number(part, name, value))
        return
    capacity = faults.capacity
    setters: Mapping[str, Callable[[], object]] = {
        "capacity": lambda: capacity.limit(*_valued(part, name, value, _count)),
        "quota": lambda: capacity.quota(*_valued(part, name, value, _count)),
        "spot-price": lambda: capacity.price(*_valued(part, name, value, _number)),
        "not-offered": lambda: capacity.not_offered(value),
        "full-subnet": lambda: capacity.full(value),
        "launch-failure": lambda: faults.fail_launches(*_counted(part, value, "instances")),
        "interruption": lambda: _interrupt(faults, part, value),
    }
    try:
        setters[name]()
    except ValueError as error:
        raise ValueError(str(error) if repr(part) in str(error) else f"{error}: {part!r}") from None


def _interrupt(faults: Faults, part: str, value: str) -> None:
    seconds, count = _counted(part, value, "instances")
    faults.interrupt(_number(part, "interruption", seconds), count)


def _counted(part: str, text: str, what: str) -> tuple[str, int]:
    """Take apart what may end with ``*N``, a count of *what*."""
    head, counted, count = text.partition("*")
    if counted and not re.fullmatch("[0-9]+", count):
        raise ValueError(f"not a count of {what} in {part!r}: {count!r}")
    return head, int(count) if counted else 1


def _valued(part: str, name: str, text: str, read_value: Callable[[str, str, str], float]) -> tuple[str, float]:
    """Take apart what has a value after its last colon."""
    head, valued, value = text.rpartition(":")
    if not (head and valued):
        raise ValueError(f"not {_NAMES[name]}: {part!r}")
    return head, read_value(part, name, value)


def _count(part: str, name: str, text: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise ValueError(f"not {_NAMES[name]}: {part!r}")
    return int(text)


def _number(part: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"not {_NAMES[name]}: {part!r}")
    return number
