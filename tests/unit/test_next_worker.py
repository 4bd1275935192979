"""Which worker a build gets."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from buildbot.worker.base import Worker
from buildbot.worker.latent import States
from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.template.next_worker import prefer_running
from buildbot_ec2ud.worker import EC2UserDataLatentWorker


class Choice(SynchronousTestCase):
    """What is chosen of the available workers of a builder."""

    def worker(self, name: str, state: States | None = None) -> Any:
        """A worker of a builder; one that is not latent without a *state*."""
        if state is None:
            return SimpleNamespace(worker=Worker(name, "password"))
        worker = EC2UserDataLatentWorker(name, instance_type="t3.micro", ami="ami-1")
        worker.state = state
        return SimpleNamespace(worker=worker)

    def choose(self, workers: list[Any], unsuitable: tuple[str, ...] = ()) -> str | None:
        """The name of the chosen worker; the build can start on all but those called *unsuitable*."""
        self.asked: list[str] = []
        request = object()

        def can_start(candidate: Any, asked_for: object) -> defer.Deferred[bool]:
            self.assertIs(asked_for, request)
            self.asked.append(candidate.worker.name)
            return defer.succeed(candidate.worker.name not in unsuitable)

        chosen = self.successResultOf(prefer_running(SimpleNamespace(canStartBuild=can_start), workers, request))
        self.assertTrue(chosen is None or chosen in workers)
        return chosen and chosen.worker.name

    def test_running(self) -> None:
        """One that runs, and the first of those, whatever chance says."""
        workers = [
            self.worker("cold", States.NOT_SUBSTANTIATED),
            self.worker("a", States.SUBSTANTIATED),
            self.worker("b", States.SUBSTANTIATED),
        ]
        self.patch(random, "choice", lambda choice: self.fail("nothing is left to chance"))
        self.assertEqual(self.choose(workers), "a")
        self.assertEqual(self.asked, ["a"])

    def test_unsuitable(self) -> None:
        """One that runs but is of another shape is not chosen while there are others."""
        workers = [
            self.worker("a", States.SUBSTANTIATED),
            self.worker("cold", States.NOT_SUBSTANTIATED),
            self.worker("b", States.SUBSTANTIATED),
        ]
        self.assertEqual(self.choose(workers, ("a",)), "b")
        self.assertEqual(self.choose(workers, ("a", "b")), "cold")
        self.assertEqual(self.choose([workers[0]], ("a",)), "a")

    def test_cold(self) -> None:
        """If none runs, any; what is starting or ending does not run."""
        states = set(States) - {States.SUBSTANTIATED}
        self.assertGreater(len(states), 4)
        workers = [self.worker(state.name.lower().replace("_", "-"), state) for state in states]
        offered: list[Any] = []
        self.patch(random, "choice", lambda choice: (offered.append(list(choice)), choice[-1])[1])
        self.assertEqual(self.choose(workers), workers[-1].worker.name)
        self.assertEqual((offered, self.asked), ([workers], []))

    def test_not_latent(self) -> None:
        """A worker of any other kind runs: Buildbot offers it only while it is connected."""
        self.assertEqual(self.choose([self.worker("cold", States.NOT_SUBSTANTIATED), self.worker("own")]), "own")

    def test_none(self) -> None:
        self.assertIsNone(self.choose([]))
