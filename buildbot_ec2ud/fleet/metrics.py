"""How many calls were made to EC2, how long they took, and how they failed."""

from __future__ import annotations

import collections
from typing import Any

from buildbot_ec2ud.ec2.query import Attempt

#: Upper bounds in seconds of the classes that latencies are counted in; there is one more, without a bound.
BOUNDS = (0.1, 0.3, 1.0, 3.0, 10.0)


class _Seconds:
    """What is kept of many times."""

    def __init__(self) -> None:
        self._count = 0
        self._total = self._longest = 0.0
        self._classes = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float) -> None:
        self._count += 1
        self._total += seconds
        self._longest = max(self._longest, seconds)
        self._classes[sum(seconds > bound for bound in BOUNDS)] += 1

    def as_dict(self) -> dict[str, Any]:
        up_to = dict(zip([*map(str, BOUNDS), "more"], self._classes, strict=True))
        return {"count": self._count, "total": self._total, "longest": self._longest, "up_to": up_to}


class _Action:
    def __init__(self) -> None:
        self.calls = 0
        self.errors: collections.defaultdict[str, _Seconds] = collections.defaultdict(_Seconds)
        self.seconds = _Seconds()
        self.waited = _Seconds()


class Metrics:
    """Counts and latencies of calls, by action and by class of error."""

    def __init__(self) -> None:
        self._actions: collections.defaultdict[str, _Action] = collections.defaultdict(_Action)

    def answered(self, attempt: Attempt) -> None:
        """Take one attempt at a call into account; a call that is repeated counts each time, as at EC2."""
        action = self._actions[attempt.action]
        action.calls += 1
        action.seconds.add(attempt.seconds)
        action.waited.add(attempt.waited)
        if attempt.error is not None:
            kind = "cancelled" if attempt.cancelled else attempt.error.error_class.name.lower()
            action.errors[kind].add(attempt.seconds)

    def as_dict(self) -> dict[str, Any]:
        """All of it, in plain types that JSON knows.

        :return: by action: ``calls``; ``seconds``, how long EC2 took to answer; ``waited``, how long calls waited for their
            turn; ``errors``, how long those that failed took, by the name of the
            :class:`~buildbot_ec2ud.ec2.errors.ErrorClass`, such as ``throttled``, or ``cancelled``. Times have ``count``,
            ``total``, ``longest``, and ``up_to``, counts by the bounds of :data:`BOUNDS` and ``more``.
        """
        return {
            name: {
                "calls": action.calls,
                "errors": {kind: seconds.as_dict() for kind, seconds in action.errors.items()},
                "seconds": action.seconds.as_dict(),
                "waited": action.waited.as_dict(),
            }
            for name, action in self._actions.items()
        }
