"""How long a reactor does nothing else."""

from __future__ import annotations

import time

from twisted.internet import task

#: Seconds between two looks.
TICK = 0.002


class Stalls:
    """Watches the reactor from now on.

    :ivar longest: the longest time, in seconds, by which it was late.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.perf_counter()
        self._loop = task.LoopingCall(self._look)
        self._loop.start(TICK)

    def _look(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last - TICK)
        self._last = now

    def stop(self) -> float:
        """Watch no more.

        :return: the longest stall.
        """
        self._loop.stop()
        return self.longest
