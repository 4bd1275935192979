"""Which worker a build gets: one whose instance runs already, before one that has to be started."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import Any

from buildbot.worker.latent import AbstractLatentWorker, States
from twisted.internet import defer


@defer.inlineCallbacks
def prefer_running(builder: Any, workers: Sequence[Any], request: Any) -> Generator[Any, Any, Any]:
    """For ``nextWorker`` of a builder's configuration, or ``c["select_next_worker"]``.

    The first running worker that the build can start on, in the builder's order: so the others have nothing to do, and their
    instances go. If there is none, any worker without an instance: not always the same one, which might be in trouble.

    :param builder: Buildbot's builder.
    :param workers: the available workers, as ``WorkerForBuilder``.
    :param request: the build request.
    :return: fires with one of *workers*, or None if there are none.
    """
    running = [each for each in workers if _runs(each.worker)]
    for candidate in running:
        if (yield builder.canStartBuild(candidate, request)):
            return candidate
    others = [each for each in workers if each not in running]
    # An instance that does not suit this build may be ended for it: Buildbot has to ask for that worker.
    choice = others or running
    return random.choice(choice) if choice else None


def _runs(worker: Any) -> bool:
    return not isinstance(worker, AbstractLatentWorker) or worker.state == States.SUBSTANTIATED
