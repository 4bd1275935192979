"""Starting a worker's instance: what becomes of it, and what the build's page tells of that."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from typing import Any

from buildbot.interfaces import LatentWorkerFailedToSubstantiate, LatentWorkerSubstantiatiationCancelled
from buildbot.worker.latent import States
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure

from buildbot_ec2ud import story
from buildbot_ec2ud.ec2.errors import EC2CallError, classify_end
from buildbot_ec2ud.fleet.rental import FleetEvent, Rental
from buildbot_ec2ud.launch import LaunchError
from buildbot_ec2ud.life import Life, Record, new_life
from buildbot_ec2ud.preparation import prepare
from buildbot_ec2ud.userdata.posix import UserDataError
from buildbot_ec2ud.userdata.scripts import ScriptError

#: Seconds that the console of an instance which has failed to boot is waited for.
CONSOLE_TIMEOUT = 15.0

#: What each event of a fleet is in the life of an instance.
_EVENTS = {
    "request": "ask",
    "refused": "refuse",
    "skipped": "refuse",
    "launch": "accept",
    "pending": "report",
    "running": "run",
    "trouble": "report",
    "terminate": "stop",
    "shutting-down": "fade",
    "stopping": "fade",
    "stopped": "fade",
    "terminated": "vanish",
}
#: Which events are shown beside the step, until the next one is.
_SAID = {
    "request": "asking EC2 for {text}",
    "refused": "{text}",
    "skipped": "{text}",
    "launch": "instance {instance_id} is starting",
    "running": "instance {instance_id} runs; waiting for its worker",
}


class Lifeline:
    """Follows one launch and its instance: keeps its life, and writes the build's page.

    :param fleet: the fleet that launches.
    :param clock: the reactor.
    :param build: whose page is written.
    :param died: called when the instance has come to its end before this master wanted that.
    :ivar launch_id: what only this launch has.
    :ivar page: the page.
    :ivar life: where each event has to be possible.
    :ivar record: its state.
    """

    def __init__(self, fleet: Any, clock: Any, build: Any, died: Callable[[], Any]) -> None:
        self.launch_id = uuid.uuid4().hex
        self.page = story.Page(clock, build)
        self.record = Record(self.page.tell)
        self.life: Life = new_life(self.record)
        self._fleet = fleet
        self._died = died
        fleet.follow(self.launch_id, self._happened)

    def _happened(self, event: FleetEvent) -> None:
        text = " ".join(filter(None, (event.kind, event.instance_id, event.text)))
        was_dead = self.record.died
        getattr(self.life, _EVENTS[event.kind])(text)
        if self.record.died and not was_dead:
            self._died()
        if (said := _SAID.get(event.kind)) is not None:
            self.page.say(said.format(text=event.text, instance_id=event.instance_id))
        if event.kind == "launch" and event.instance_id is not None:
            self.page.link(event.instance_id, story.console_url(self._fleet.region, event.instance_id))

    def none(self, text: str, certain: bool) -> defer.Deferred[None]:
        """There is no instance that anybody wants.

        :param certain: whether it is certain that there is none at all.
        :return: fires when the page is finished.
        """
        if certain:
            self._fleet.unfollow(self.launch_id)
            self.life.vanish(text)
        else:
            self.life.stop(text)
        return self.page.finish()


class StartsMixin:
    """The part of a latent worker that starts instances.

    A subclass has ``fleet``, ``settings``, ``instance_died``, and what :func:`~buildbot_ec2ud.preparation.prepare` needs.
    """

    rental: Rental | None = None
    lifeline: Lifeline | None = None
    _starting: defer.Deferred[Any] | None = None
    _failures = 0

    def start_instance(self, build: Any) -> defer.Deferred[bool]:
        self._starting = self._start(build)
        return self._starting

    def _cancel_start(self) -> None:
        """Cancel a start that is pending; one that has ended is not touched."""
        if self._starting is not None:
            self._starting.cancel()

    @defer.inlineCallbacks
    def _start(self, build: Any) -> Generator[Any, Any, bool]:
        if build is not None and build.stopped:
            # Cancelled before it came here, by a stopping master for one; Buildbot starts its worker all the same, and
            # then waits for a worker that a stopping master does not let in.
            raise LatentWorkerSubstantiatiationCancelled()
        if self.rental is not None:
            raise LatentWorkerFailedToSubstantiate(self.name, f"{self.rental!r} is still there")
        # A reconfig may bring another one meanwhile.
        fleet = self.fleet
        self.lifeline = lifeline = Lifeline(fleet, self.master.reactor, build, self.instance_died)
        start = None
        try:
            start = yield prepare(self, fleet, build, lifeline.launch_id)
            lifeline.page.hide(self.password)
            self.rental = yield fleet.launch(self.name, lifeline.launch_id, start.offers, start.attachments)
            yield self._tell_properties(build, self.rental)
            return True
        except defer.CancelledError:
            yield lifeline.none("cancelled", certain=start is None)
            raise LatentWorkerSubstantiatiationCancelled() from None
        except (EC2CallError, LaunchError, UserDataError, ScriptError) as error:
            certain = not (isinstance(error, EC2CallError) and error.outcome_unknown)
            yield lifeline.none(f"no instance: {error}", certain)
            self._failed(error)
            raise story.refusal(self.name, error) from None

    @defer.inlineCallbacks
    def _tell_properties(self, build: Any, rental: Rental) -> Generator[Any, Any, None]:
        story.mark(self.properties, rental)
        if build is not None:
            # Into this one, Buildbot has copied them before the instance was known; and it stores them at the first step,
            # to which a build need not come.
            story.mark(build.getProperties(), rental)
            yield self.master.data.updates.setBuildProperties(build.buildid, build)

    @defer.inlineCallbacks
    def check_instance(self) -> Generator[Any, Any, tuple[bool, str]]:
        rental = self.rental
        if rental is None or (rental.alive and rental.trouble is None):
            return True, ""
        text = yield self._explain(rental, story.end(rental))
        error = rental.trouble or EC2CallError(text)
        if rental.trouble is None:
            error.error_class = classify_end(*rental.instance.state_reason)
        self._failed(error)
        if story.is_final(error):
            # Whatever is raised or returned here makes Buildbot try again.
            self._substantiation_failed(Failure(story.refusal(self.name, error)))
            return True, ""
        return False, text

    @defer.inlineCallbacks
    def _missing_timer_fired(self) -> Generator[Any, Any, None]:
        """The worker has not attached in time: as Buildbot's own, but it says what the instance has done instead."""
        self.missing_timer = None
        rental, lifeline = self.rental, self.lifeline
        waiting = self.state in (States.SUBSTANTIATING, States.SUBSTANTIATING_STARTING)
        if rental is None or not waiting:
            self._substantiation_failed(defer.TimeoutError())
            return
        text = f"the worker on instance {rental.instance_id} has not connected within {self.missing_timeout:g} s"
        text = yield self._explain(rental, text)
        if self.lifeline is lifeline and self.state == States.SUBSTANTIATING_STARTING:  # else it came after all
            self._failed(EC2CallError(text))
            self._substantiation_failed(Failure(LatentWorkerFailedToSubstantiate(self.name, text)))

    @defer.inlineCallbacks
    def _explain(self, rental: Rental, text: str) -> Generator[Any, Any, str]:
        """Put the console of an instance that has failed to boot on the build's page, before the instance goes.

        :return: fires with *text*, and what the console says of the boot.
        """
        page = self.lifeline.page if self.lifeline is not None else story.Page(self.master.reactor, None)
        console = yield self.console(rental)
        if phase := story.last_phase(console):
            text = f"{text}; {phase}"
        page.tell(text)
        page.console(console)
        yield page.finish()
        return page.clean(text)

    @defer.inlineCallbacks
    def console(self, rental: Rental) -> Generator[Any, Any, str]:
        """The console as it is now where the instance's type has that, else as EC2 last recorded it; empty without one."""
        for latest in (True, False):
            asked = rental.fleet.client.get_console_output(rental.instance_id, latest)
            asked.addTimeout(CONSOLE_TIMEOUT, self.master.reactor)
            try:
                console = yield asked
            except (EC2CallError, defer.TimeoutError) as error:
                log.msg(f"no console of {rental!r}: {error!r}")
                continue
            if console:
                return console
        return ""

    def _failed(self, error: Exception) -> None:
        """Count a start that has failed, and pause when there are too many in a row: each of them may cost."""
        self._failures += 1
        limit = self.settings.max_launch_failures
        if limit and self._failures >= limit and not story.is_final(error):
            self.pause(f"{self._failures} starts in a row have failed, the last one: {error}")
            self._failures = 0

    def insubstantiate(self, fast: bool = False, force_substantiation_build: Any = None) -> defer.Deferred[None]:
        # Buildbot waits for a pending start here, which can take as long as EC2 likes.
        self._cancel_start()
        return super().insubstantiate(fast, force_substantiation_build)
