"""What goes wrong in the embedded EC2, when it is asked to: which calls and instances are hit, and by what."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.embedded._moto import Reason
from buildbot_ec2ud.embedded.capacity import Capacity
from buildbot_ec2ud.embedded.fault_list import SETTINGS, describe, read, unknown
from buildbot_ec2ud.embedded.kinds import KINDS, LAUNCH_FAILURES, Kind
from buildbot_ec2ud.fleet.pacing import INSTANCES, Bucket, request_limit

__all__ = ["SETTINGS", "Faults", "check_seconds", "describe"]


class Faults:
    """What goes wrong in an :class:`~buildbot_ec2ud.embedded.EmbeddedEC2`: nothing, unless asked for.

    Everything can be changed while EC2 runs. A call is any request with an ``Action``.

    :param throttle: whether each action has the token buckets that EC2 documents, of calls and of instances, for each
        region: what they do not hold is refused as ``throttled``.
    :param visible_after: seconds for which a new instance is missing where instances are looked up: from
        ``DescribeInstances``, and with ``InvalidInstanceID.NotFound`` where its id is given, as to ``TerminateInstances``.
    :param latency: seconds by which every answer is late; what the call does is done before.
    :param pending: seconds from a launch to ``running``; None: as long as the EC2 has it.
    :param shutting_down: seconds from a termination to ``terminated``; None: as long as the EC2 has it.
    :param vanish_after: seconds after which an instance that has become ``terminated`` is not found any more; about an hour
        on AWS, says the EC2 API reference of ``TerminateInstances``.
    :param notice: seconds of notice that an interrupted spot instance gets. Source of the default: EC2 user guide, "Spot
        Instance interruption notices".
    :ivar capacity: the capacity, the quotas and prices that there are: see its methods.
    :ivar hits: how many times each kind of fault has hit, a call or an instance; of a launch for which there is no capacity,
        the kind is EC2's error code.
    :raises ValueError: seconds that are none.
    """

    def __init__(
        self,
        throttle: bool = False,
        visible_after: float = 0.0,
        latency: float = 0.0,
        pending: float | None = None,
        shutting_down: float | None = None,
        vanish_after: float = 3600.0,
        notice: float = 120.0,
    ) -> None:
        seconds = {"visible_after": visible_after, "latency": latency, "vanish_after": vanish_after, "notice": notice}
        for name, value in {**seconds, "pending": pending or 0.0, "shutting_down": shutting_down or 0.0}.items():
            check_seconds(name, value)
        self.throttle = throttle
        self.visible_after = visible_after
        self.latency = latency
        self.pending = pending
        self.shutting_down = shutting_down
        self.vanish_after = vanish_after
        self.notice = notice
        self.capacity = Capacity()
        self.hits: collections.Counter[str] = collections.Counter()
        self._waiting: list[_Fault] = []
        self._failures: list[_Failure] = []
        self._interruptions: list[_Interruption] = []
        self._buckets: dict[tuple[str, str, str], Bucket] = {}

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read faults from one line: ``throttle,lost-reply:RunInstances,html:DescribeInstances*3,latency=0.2``.

        Each part is a setting, or a kind of fault with an action (else any) and a count (else one call): see
        :func:`describe`.

        :raises ValueError: a part that is none; the text says which, and what is known.
        """
        faults = cls()
        read(faults, text)
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
            raise ValueError(unknown("kind of fault", kind, KINDS, [*KINDS, *SETTINGS]))
        if action and action not in shapes.actions():
            raise ValueError(unknown("action", action, shapes.actions()))
        _check_count(kind, count, "calls")
        self._waiting.append(_Fault(KINDS[kind], action, count))
        return self

    def fail_launches(self, code: str, count: int = 1, message: str = "") -> Faults:
        """Let the next instances end instead of running, with that state reason.

        :param code: of the state reason, such as ``Server.InternalError``.
        :param count: how many instances.
        :param message: of the state reason; by default, what EC2 says with this code. The two may disagree, as they do where
            an encrypted volume is one too many: ``Server.InternalError``, ``Client.VolumeLimitExceeded: ...``.
        :return: these faults, for the next one.
        :raises ValueError: a code that is not known and has no message, or a count below 1.
        """
        if not message and code not in LAUNCH_FAILURES:
            raise ValueError(unknown("failure of a launch", code, LAUNCH_FAILURES, LAUNCH_FAILURES))
        _check_count("launch-failure", count, "instances")
        self._failures.append(_Failure(Reason(code, message or f"{code}: {LAUNCH_FAILURES[code]}"), count))
        return self

    def interrupt(self, after: float, count: int = 1) -> Faults:
        """Let the next spot instances that run be taken away, each with :attr:`notice`.

        :param after: seconds from ``running`` to the notice.
        :param count: how many instances.
        :return: these faults, for the next one.
        :raises ValueError: seconds that are none, or a count below 1.
        """
        check_seconds("interruption", after)
        _check_count("interruption", count, "instances")
        self._interruptions.append(_Interruption(after, count))
        return self

    def clear(self) -> None:
        """Take back what has been added and has not hit; the settings, and the capacity, stay."""
        for waiting in (self._waiting, self._failures, self._interruptions):
            waiting.clear()

    @property
    def waiting(self) -> list[tuple[str, str, int]]:
        """What has been added and has not hit: kind, action (empty for any), and number of calls; of the kinds that hit
        instances, ``launch-failure`` with its code and ``interruption`` with its seconds, the number of these.
        """
        return [
            *((fault.kind.name, fault.action, fault.left) for fault in self._waiting),
            *(("launch-failure", failure.reason.code, failure.left) for failure in self._failures),
            *(("interruption", f"{each.after:g}", each.left) for each in self._interruptions),
        ]

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
                _take_one(self._waiting, fault)
                kind = fault.kind
                break
        if kind is not None:
            self.hits[kind.name] += 1
        return kind

    def take_launch_failure(self) -> Reason | None:
        """An instance has been launched: why it will not run, None if it will."""
        if not self._failures:
            return None
        self.hits["launch-failure"] += 1
        return _take_one(self._failures, self._failures[0]).reason

    def take_interruption(self) -> float | None:
        """A spot instance runs: the seconds after which it gets notice, None for never."""
        if not self._interruptions:
            return None
        self.hits["interruption"] += 1
        return _take_one(self._interruptions, self._interruptions[0]).after

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


def check_seconds(name: str, seconds: float) -> None:
    """Check what is to be a time.

    :raises ValueError: it is none.
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name}: not seconds: {seconds!r}")


@dataclass
class _Fault:
    kind: Kind
    action: str
    left: int


@dataclass
class _Failure:
    reason: Reason
    left: int


@dataclass
class _Interruption:
    after: float
    left: int


_T = TypeVar("_T", _Fault, _Failure, _Interruption)


def _take_one(waiting: list[_T], fault: _T) -> _T:
    """Let *fault*, which waits, hit once."""
    fault.left -= 1
    if not fault.left:
        waiting.remove(fault)
    return fault


def _check_count(kind: str, count: int, what: str) -> None:
    if count < 1:
        raise ValueError(f"{kind} is to hit {count} {what}: not a count above 0")


def _instances(parameters: Mapping[str, str]) -> int:
    """How many instances a call is about."""
    named = sum(name.startswith("InstanceId.") for name in parameters)
    wanted = parameters.get("MaxCount", "")
    return named or (int(wanted) if wanted.isdecimal() else 1)
