"""A worker that is lost: what has become of its instance is told to those whose builds it ran, and it is ended at once."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from buildbot.worker.latent import States
from twisted.internet import defer

from buildbot_ec2ud import story
from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.fleet.rental import Rental

#: Seconds that EC2 may take to say what has become of an instance.
LOOK_TIMEOUT = 10.0
#: Seconds that a build may take to end when its worker is lost; its text would be Buildbot's after that.
FINISH_TIMEOUT = 60.0


class LossesMixin:
    """The part of a latent worker that notices, and tells, that its instance is lost.

    A subclass has ``rental``, ``lifeline``, ``console``, ``idle``, ``finish_broken`` and
    ``forget_shutdown``.
    """

    rental: Rental | None
    lifeline: Any

    def instance_died(self) -> None:
        """EC2 says that the instance has come to its end, and this master has not wanted it."""
        if self.state != States.SUBSTANTIATED:
            return  # one that was starting is looked at every few seconds
        if self.conn is None:
            self._end_lost()
        elif (mind := getattr(self.conn, "mind", None)) is not None:
            # A machine that is gone closes no connection: TCP would find out in hours.
            mind.broker.transport.abortConnection()
        else:
            self.conn.loseConnection()

    @defer.inlineCallbacks
    def detached(self) -> Generator[Any, Any, None]:
        rental, builds = self.rental, self.builds_under_way()
        if rental is not None and builds:
            if rental.instance.lifecycle == "spot":
                rental.fleet.capacity.lost({request.id for build in builds for request in build.requests})
            rental.fleet.background.run(self._tell_loss(rental, builds, self.lifeline.page.hidden))
        if builds:
            self._deferwaiter.add(self.finish_broken(builds))
        yield super().detached()
        self.forget_shutdown()
        self._end_lost()

    def builds_under_way(self) -> list[Any]:
        """The builds that run here."""
        return [
            build
            for builder in self.botmaster.getBuildersForWorker(self.name)
            for build in builder.building
            if build.workerforbuilder is not None and build.workerforbuilder.worker is self
        ]

    def buildFinished(self, wfb: Any) -> None:
        super().buildFinished(wfb)
        # Later: the next build may have begun, and then it ends the instance itself.
        self.master.reactor.callLater(0, self._end_lost)

    def _end_lost(self) -> None:
        """End the instance, if it has lost its worker and nobody's build: no other worker could log in from it."""
        if self.conn is None and self.idle():
            self._deferwaiter.add(self._soft_disconnect())

    @defer.inlineCallbacks
    def _tell_loss(self, rental: Rental, builds: list[Any], hidden: set[str]) -> Generator[Any, Any, None]:
        """Say on the pages of *builds* what has become of the instance that they ran on."""
        # Both at once, and now: when this master has ended it, that is the reason that EC2 gives.
        looks = [self._look(rental), self.console(rental)]
        why, console = yield defer.gatherResults(looks, consumeErrors=True)
        text = "; ".join(filter(None, (f"the worker was lost: {why}", *story.last_words(console))))
        for build in builds:
            page = story.Page(self.master.reactor, build, story.LOSS_LOG)
            page.hidden |= hidden  # the password of the start, which is void by now
            page.write(f"{text}\n")
            page.console(console)
            yield page.finish()
            yield build.waitUntilFinished().addTimeout(FINISH_TIMEOUT, self.master.reactor)
            yield self.master.data.updates.setBuildStateString(build.buildid, page.clean(text))

    @defer.inlineCallbacks
    def _look(self, rental: Rental) -> Generator[Any, Any, str]:
        """In which state EC2 says that an instance is, and why."""
        asked = rental.fleet.client.describe_instances(rental.instance_id)
        asked.addTimeout(LOOK_TIMEOUT, self.master.reactor)
        try:
            found = yield asked
        except (EC2CallError, defer.TimeoutError) as error:
            why = f"no answer within {LOOK_TIMEOUT:g} s" if isinstance(error, defer.TimeoutError) else error
            return f"EC2 does not say what has become of instance {rental.instance_id}: {why}"
        rental.fleet.watcher.hurry(rental)
        states = [story.state(instance.instance_id, instance.instance_state, instance.why()) for instance in found]
        return "; ".join(states) or f"EC2 does not know instance {rental.instance_id} any more"
