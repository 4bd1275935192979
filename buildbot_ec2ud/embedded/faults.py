"""What goes wrong in the embedded EC2, when it is asked to: which calls are hit, and by what."""

from __future__ import annotations

import collections
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.embedded.kinds import KINDS, Kind
from buildbot_ec2ud.fleet.pacing import INSTANCES, Bucket, request_limit

#: The settings, as they are written, and what they do.
SETTINGS: Mapping[str, str] = {
    "throttle": "EC2's own token buckets for each action",
    "visible-after=SECONDS": "a new instance is not found for that long",
    "latency=SECONDS": "every answer is that late",
}


class Faults:
    """What goes wrong in an :class:`~buildbot_ec2ud.embedded.EmbeddedEC2`: nothing, unless asked for.

    Everything can be changed while EC2 runs. A call is any request with an ``Action``.

    :param throttle: whether each action has the token buckets that EC2 documents, of calls and of instances, for each
        region: what they do not hold is refused as ``throttled``.
    :param visible_after: seconds for which a new instance is missing where instances are looked up: from
        ``DescribeInstances``, and with ``InvalidInstanceID.NotFound`` where its id is given, as to ``TerminateInstances``.
    :param latency: seconds by which every answer is late; what the call does is done before.
    :ivar hits: how many calls each kind of fault has hit.
    :raises ValueError: seconds that are none.
    """

    def __init__(self, throttle: bool = False, visible_after: float = 0.0, latency: float = 0.0) -> None:
        for name, seconds in (("visible_after", visible_after), ("latency", latency)):
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{name}: not seconds: {seconds!r}")
        self.throttle = throttle
        self.visible_after = visible_after
        self.latency = latency
        self.hits: collections.Counter[str] = collections.Counter()
        self._waiting: list[_Fault] = []
        self._buckets: dict[tuple[str, str, str], Bucket] = {}

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read faults from one line: ``throttle,lost-reply:RunInstances,html:DescribeInstances*3,latency=0.2``.

        Each part is a setting, or a kind of fault with an action (else any) and a count (else one call).

        :raises ValueError: a part that is none; the text says which, and what is known.
        """
        faults = cls()
        seen = set()
        for part in (part.strip() for part in text.split(",")):
            name, given, value = part.partition("=")
            if given or part in _SETTING_NAMES:
                if name in seen:
                    raise ValueError(f"{name} is given twice")
                seen.add(name)
                _set(faults, part, name, value if given else None)
                continue
            if not part:
                raise ValueError(f"an empty part in {text!r}")
            what, counted, count = part.partition("*")
            kind, limited, action = what.partition(":")
            if limited and not action:
                raise ValueError(f"no action after the colon in {part!r}")
            if counted and not re.fullmatch("[0-9]+", count):
                raise ValueError(f"not a count of calls in {part!r}: {count!r}")
            faults.add(kind, action, int(count) if counted else 1)
        return faults

    def add(self, kind: str, action: str = "", count: int = 1) -> Faults:
        """Let the next calls fail. Each call is hit by one fault, the one that was added first.

        :param kind: the name of one of :data:`KINDS`.
        :param action: hits only calls of this action of EC2's, such as ``RunInstances``; by default, of any.
        :param count: how many calls are hit.
        :return: these faults, for the next one.
        :raises ValueError: an unknown kind or action, or a count below 1.
        """
        if kind not in KINDS:
            raise ValueError(_unknown("kind of fault", kind, KINDS, [*KINDS, *SETTINGS]))
        if action and action not in shapes.actions():
            raise ValueError(_unknown("action", action, shapes.actions()))
        if count < 1:
            raise ValueError(f"{kind} is to hit {count} calls: not a count above 0")
        self._waiting.append(_Fault(KINDS[kind], action, count))
        return self

    def clear(self) -> None:
        """Take back what has been added and has not hit."""
        self._waiting.clear()

    @property
    def waiting(self) -> list[tuple[str, str, int]]:
        """What has been added and has not hit: kind, action (empty for any), and number of calls."""
        return [(fault.kind.name, fault.action, fault.left) for fault in self._waiting]

    def strike(self, action: str, parameters: Mapping[str, str], region: str, now: float) -> Kind | None:
        """A call has come.

        :param parameters: of the call, as EC2's query protocol has them.
        :param region: in which it is to be done.
        :param now: the time in seconds, of a clock that only moves forward.
        :return: the kind of fault that hits it, None for none.
        """
        # What is hit by another fault has taken its tokens, too.
        kind = KINDS["throttled"] if self.throttle and not self._take(action, parameters, region, now) else None
        for fault in self._waiting:
            if fault.action in ("", action):
                fault.left -= 1
                if not fault.left:
                    self._waiting.remove(fault)
                kind = fault.kind
                break
        if kind is not None:
            self.hits[kind.name] += 1
        return kind

    def _take(self, action: str, parameters: Mapping[str, str], region: str, now: float) -> bool:
        """Take the call's tokens out of the buckets of its action, if all are there."""
        wanted = [("calls", request_limit(action), 1)]
        if action in INSTANCES:
            wanted.append(("instances", INSTANCES[action], _instances(parameters)))
        for what, limit, tokens in wanted:
            bucket = self._buckets.setdefault((region, action, what), Bucket(limit, now))
            # Of a client's bucket, more than it holds can be taken, by waiting; of EC2's it cannot.
            if tokens > limit.burst or not bucket.take(now, tokens):
                return False
        return True


def describe() -> str:
    """What :meth:`Faults.parse` understands, as lines of text."""

    def lines(table: Mapping[str, str]) -> list[str]:
        return [f"  {name:<22} {text}" for name, text in table.items()]

    head = (
        "faults, separated by commas: KIND hits one call, KIND:ACTION one of that",
        "action, KIND*N and KIND:ACTION*N the first N",
    )
    kinds = {kind.name: kind.text for kind in KINDS.values()}
    return "\n".join([*head, *lines(kinds), "", "settings, for all calls", *lines(SETTINGS)])


@dataclass
class _Fault:
    kind: Kind
    action: str
    left: int


_SETTING_NAMES = tuple(setting.partition("=")[0] for setting in SETTINGS)


def _set(faults: Faults, part: str, name: str, value: str | None) -> None:
    """Make a setting of a part of the text.

    :param value: what stands after ``=``, None if there is no such.
    """
    if name not in _SETTING_NAMES:
        if re.split("[:*]", name)[0] in KINDS:
            raise ValueError(f"only settings have a value: {part!r}; they are {', '.join(SETTINGS)}")
        raise ValueError(_unknown("setting", name, _SETTING_NAMES, SETTINGS))
    if name == "throttle":
        if value is not None:
            raise ValueError(f"throttle has no value: {part!r}")
        faults.throttle = True
        return
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"not {name}=SECONDS: {part!r}")
    setattr(faults, name.replace("-", "_"), seconds)


def _unknown(what: str, name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The text about a name that is unknown.

    :param known: what it could have been.
    :param listed: what to list where nothing known is near; None: nothing.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"unknown {what} {name!r}; did you mean {near[0]}?"
    return f"unknown {what} {name!r}" + (f"; known are {', '.join(listed)}" if listed else "")


def _instances(parameters: Mapping[str, str]) -> int:
    """How many instances a call is about."""
    named = sum(name.startswith("InstanceId.") for name in parameters)
    wanted = parameters.get("MaxCount", "")
    return named or (int(wanted) if wanted.isdecimal() else 1)
