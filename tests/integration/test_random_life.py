"""Random sequences of what can happen to a farm: after each, what is paid for is owned, and every build has an answer.

``make soak`` runs many more of them.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from buildbot.worker.base import AbstractWorker
from buildbot_worker import base, pb, pbutil
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from twisted.internet import defer, reactor, threads
from twisted.trial.unittest import TestCase

from buildbot_ec2ud import starts, worker
from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.embedded import instances
from buildbot_ec2ud.fleet import background, watcher
from tests.integration.random_farm import BUILDERS, WORKERS, LightMachine, RandomFarm

#: Steps in all, and in one life of a farm.
STEPS = int(os.environ.get("SOAK_STEPS", "60"))
STEPS_OF_ONE = 30
#: Seconds in which each thing has to be done.
LIMIT = 90

#: Faults that do not take as long as a time limit.
FAULTS = ("throttled", "server-fault", "unavailable", "lost-reply", "reset", "truncated", "html")
ACTIONS = ("RunInstances", "DescribeInstances", "TerminateInstances")


class Unstoppable:
    """The reactor, for code that would stop it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def stop(self) -> None:
        pass


class Lives(TestCase):
    """hypothesis is not asynchronous: it runs in a thread, and the farm in the reactor's."""

    timeout = max(300, STEPS * 5)

    def setUp(self) -> None:
        # Everything takes as long as it does, but nothing waits for the sake of a cloud.
        for module, name, value in (
            (query, "LONGEST_BACKOFF", 0.05),
            (background, "FIRST_PAUSE", 0.05),
            (background, "LONGEST_PAUSE", 0.5),
            (watcher, "FIRST_LOOK", 0.05),
            (watcher, "CHANGING_INTERVAL", 0.3),
            (watcher, "STEADY_INTERVAL", 0.5),
            (watcher, "ABSENT_LIMIT", 2.0),
            (worker, "CHECK_INTERVAL", 0.1),
            (starts, "CONSOLE_TIMEOUT", 1.0),
            (instances, "Machine", LightMachine),
        ):
            self.patch(module, name, value)
        # PB's references tell the other side when they are collected, and that may be done in hypothesis's thread: the
        # reactor is not made for that.
        gc.disable()
        self.addCleanup(gc.enable)
        # A worker that cannot go on stops its process; here, that is everybody's.
        for module in (base, pb, pbutil):
            self.patch(module, "reactor", Unstoppable())
        self.patch(AbstractWorker, "quarantine_timeout", 0.05)
        self.patch(AbstractWorker, "quarantine_initial_timeout", 0.05)
        self.patch(AbstractWorker, "quarantine_max_timeout", 0.2)

    def test_random(self) -> Any:
        directories = iter(range(10**9))
        where = os.path.abspath(self.mktemp())

        def call(function: Any, *args: Any) -> Any:
            return threads.blockingCallFromThread(
                reactor, lambda: defer.maybeDeferred(function, *args).addTimeout(LIMIT, reactor)
            )

        class Machine(RuleBasedStateMachine):
            farm: RandomFarm | None = None

            @initialize()
            def begin(self) -> None:
                self.farm = RandomFarm(os.path.join(where, str(next(directories))))
                call(self.farm.start)

            @rule(builder=st.sampled_from(BUILDERS), then=st.sampled_from(("wait", "go on", "cancel", "cut", "kill")))
            def build(self, builder: str, then: str) -> None:
                call(self.farm.force, builder)
                actions = {"cancel": self.farm.cancel, "cut": self.farm.disconnect, "kill": self.farm.terminate}
                if then in actions:
                    call(actions[then])
                if then != "go on":
                    call(self.farm.settle)

            @rule(kind=st.sampled_from(FAULTS), action=st.sampled_from(ACTIONS))
            def fault(self, kind: str, action: str) -> None:
                self.farm.fault(kind, action)

            @rule()
            def change(self) -> None:
                call(self.farm.change)
                call(self.farm.settle)

            @rule(name=st.sampled_from(sorted(WORKERS)))
            def remove(self, name: str) -> None:
                call(self.farm.remove, name)
                call(self.farm.settle)

            @rule()
            def kill(self) -> None:
                call(self.farm.terminate)
                call(self.farm.settle)

            @rule()
            def restart(self) -> None:
                call(self.farm.restart)
                call(self.farm.settle)

            def teardown(self) -> None:
                if self.farm is not None:
                    call(self.farm.stop)
                    call(gc.collect)

        def run() -> None:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=max(1, STEPS // STEPS_OF_ONE),
                    stateful_step_count=STEPS_OF_ONE,
                    deadline=None,
                    database=None,
                    derandomize="SOAK_STEPS" not in os.environ,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate],
                ),
            )

        def done(result: Any) -> Any:
            # What goes wrong here is meant to; a worker that has lost its connection tries its old password.
            self.flushLoggedErrors()
            return result

        return threads.deferToThread(run).addBoth(done)
