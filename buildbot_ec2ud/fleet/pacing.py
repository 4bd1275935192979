"""Token buckets per EC2 action: calls wait here, rather than being refused there."""

from __future__ import annotations

import collections
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall

from buildbot_ec2ud.ec2.errors import ErrorClass
from buildbot_ec2ud.ec2.query import Attempt


@dataclass(frozen=True)
class Limit:
    """The size of a token bucket.

    :ivar burst: calls that may be made at once.
    :ivar per_second: calls that may be made in each second after that.
    """

    burst: float
    per_second: float


#: How many calls of an action AWS takes from an account in a region. Source: EC2 developer guide, "Request throttling".
#: ``DescribeInstances`` is in the larger bucket because it is never called without a filter or pages.
REQUESTS: Mapping[str, Limit] = {
    "AssociateAddress": Limit(50, 5),
    "AttachVolume": Limit(50, 5),
    "DescribeAddresses": Limit(100, 20),
    "DescribeImages": Limit(100, 20),
    "DescribeInstances": Limit(100, 20),
    "DescribeSpotPriceHistory": Limit(100, 20),
    "DescribeVolumes": Limit(100, 20),
    "DisassociateAddress": Limit(50, 5),
    "GetConsoleOutput": Limit(100, 20),
    "ModifyInstanceAttribute": Limit(50, 5),
    "RunInstances": Limit(5, 2),
    "TerminateInstances": Limit(100, 5),
}
#: How many instances AWS takes in the calls of an action. Same source.
INSTANCES: Mapping[str, Limit] = {
    "RunInstances": Limit(1000, 2),
    "TerminateInstances": Limit(1000, 20),
}
#: The buckets of any other action that only looks, and of any other that changes something. Same source.
LOOKING, CHANGING = Limit(100, 20), Limit(50, 5)

#: Calls of each bucket that are not used: for whoever else uses the account, and because calls that are sent with the
#: right distance do not arrive with it.
RESERVE = 1
#: The part of its speed that an action keeps when EC2 throttles it ...
SLOWDOWN = 0.5
#: ... down to this part of its limit ...
SLOWEST = 1 / 8
#: ... and the part of its limit that it regains with each call that EC2 takes.
RECOVERY = 0.1

# Below what a clock can tell: a wait that has just ended must be long enough.
_EPSILON = 1e-6


def request_limit(action: str) -> Limit:
    """The limit that AWS documents for the calls of *action*."""
    looking = action.startswith(("Describe", "Get"))
    return REQUESTS.get(action, LOOKING if looking else CHANGING)


def check_limits(limits: Any) -> Iterator[str]:
    """Tell what is wrong with limits that somebody has configured.

    :param limits: by action, calls at once and calls per second: ``{"RunInstances": (20, 5)}``.
    """
    if not isinstance(limits, Mapping):
        yield f"not a dict: {limits!r}"
        return
    for action, limit in limits.items():
        if action not in REQUESTS:
            near = difflib.get_close_matches(str(action), REQUESTS, n=1)
            yield f"unknown action {action!r}" + (f"; did you mean {near[0]}?" if near else "")
        numbers = limit if isinstance(limit, (list, tuple)) else ()
        if len(numbers) != 2 or not all(type(n) in (int, float) and 0 < n < float("inf") for n in numbers):
            yield f"{action}: not two numbers above 0, calls at once and calls per second: {limit!r}"
        elif numbers[0] <= RESERVE:
            yield f"{action}: {RESERVE} call of a bucket is left for others, so it must hold more: {limit!r}"


class Bucket:
    """A token bucket that is full at first.

    :param limit: its size and speed.
    :param now: the time, in seconds of any clock.
    """

    def __init__(self, limit: Limit, now: float) -> None:
        self._limit = limit
        self._tokens = limit.burst
        self._filled_at = now
        self._speed = 1.0

    def _fill(self, now: float) -> None:
        came_in = (now - self._filled_at) * self._limit.per_second * self._speed
        self._tokens = min(self._limit.burst, self._tokens + came_in)
        self._filled_at = now

    def wait(self, now: float, tokens: float = 1) -> float:
        """Seconds until *tokens* are there, 0 when they are; for more than it holds, until it is full."""
        self._fill(now)
        missing = min(tokens, self._limit.burst) - self._tokens
        return missing / (self._limit.per_second * self._speed) if missing > _EPSILON else 0.0

    def take(self, now: float, tokens: float = 1) -> bool:
        """Take *tokens*, if they are there.

        :return: whether they were.
        """
        if self.wait(now, tokens) > 0:
            return False
        self._tokens -= tokens
        return True

    def slow_down(self, now: float) -> None:
        """EC2's own bucket is empty: so is this one, and it fills more slowly from now on."""
        self._fill(now)
        self._tokens = min(self._tokens, 0.0)
        self._speed = max(SLOWEST, self._speed * SLOWDOWN)

    def speed_up(self, now: float) -> None:
        """EC2 has taken a call: fill a little faster, up to the limit."""
        self._fill(now)
        self._speed = min(1.0, self._speed + RECOVERY)


class _Turns:
    """The calls of one action that wait for their turn.

    :param clock: the reactor.
    :param requests: how many calls can be made.
    :param instances: how many instances they can be about.
    """

    def __init__(self, clock: Any, requests: Limit, instances: Limit | None) -> None:
        self._clock = clock
        self._requests = Bucket(Limit(requests.burst - RESERVE, requests.per_second), clock.seconds())
        self._instances = Bucket(instances, clock.seconds()) if instances else None
        # By caller, in the order in which they come next.
        self._waiting: dict[str, collections.deque[tuple[int, defer.Deferred[None]]]] = {}
        self._timer: IDelayedCall | None = None
        self._slowed_at = float("-inf")

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def join(self, caller: str, instances: int) -> defer.Deferred[None]:
        place: tuple[int, defer.Deferred[None]]

        def leave(_: Any) -> None:
            line = self._waiting[caller]
            line.remove(place)
            if not line:
                del self._waiting[caller]
            self._serve()

        place = (instances, defer.Deferred(leave))
        self._waiting.setdefault(caller, collections.deque()).append(place)
        self._serve()
        return place[1]

    def _serve(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            caller, line = next(iter(self._waiting.items()))
            instances, turn = line[0]
            now = self._clock.seconds()
            wait = self._requests.wait(now)
            if self._instances is not None:
                wait = max(wait, self._instances.wait(now, instances))
            if wait > 0:
                self._timer = self._clock.callLater(wait, self._time_has_come)
                return
            self._requests.take(now)
            if self._instances is not None:
                self._instances.take(now, instances)
            line.popleft()
            del self._waiting[caller]
            if line:
                self._waiting[caller] = line  # behind all others
            turn.callback(None)
            if self._timer is not None:
                return  # who had the turn has asked for another one, and so everybody has been served

    def _time_has_come(self) -> None:
        self._timer = None
        self._serve()

    def answered(self, attempt: Attempt) -> None:
        now = self._clock.seconds()
        if attempt.error is None:
            self._requests.speed_up(now)
        elif attempt.error.error_class is ErrorClass.THROTTLED and attempt.sent_at >= self._slowed_at:
            # Calls that were sent before the last time tell nothing new.
            self._requests.slow_down(now)
            self._slowed_at = now
        else:
            return
        self._serve()


class Pacer:
    """Lets calls through as fast as EC2 takes them. Callers take turns, however many calls each of them makes.

    :param clock: the reactor.
    :param limits: by action, limits of the calls that are not AWS's own.
    """

    def __init__(self, clock: Any, limits: Mapping[str, Limit]) -> None:
        self._clock = clock
        self._limits = limits
        self._turns: dict[str, _Turns] = {}

    def _turns_of(self, action: str) -> _Turns:
        if action not in self._turns:
            own, requests, instances = self._limits.get(action), request_limit(action), INSTANCES.get(action)
            if own is not None:
                requests = own
                if instances is not None:
                    # Each call is about one instance, at least.
                    instances = Limit(max(own.burst, instances.burst), max(own.per_second, instances.per_second))
            self._turns[action] = _Turns(self._clock, requests, instances)
        return self._turns[action]

    def admit(self, action: str, caller: str = "", instances: int = 1) -> defer.Deferred[None]:
        """Wait for the turn of a call.

        :param action: EC2's name of the call.
        :param caller: whom it is for.
        :param instances: how many instances it is about.
        :return: fires when the call may be sent. Cancelling it takes the call out.
        """
        return self._turns_of(action).join(caller, instances)

    def answered(self, attempt: Attempt) -> None:
        """Learn from EC2's answer to a call."""
        self._turns_of(attempt.action).answered(attempt)

    def waiting(self) -> dict[str, int]:
        """How many calls of each action wait for their turn; only of those of which some do."""
        return {action: len(turns) for action, turns in self._turns.items() if len(turns)}
