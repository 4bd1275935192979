"""What happens to the instances of the embedded EC2, over time: they start, run their user-data, fail, and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.internet.interfaces import IDelayedCall
from twisted.python import log

from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded.faults import Faults
from buildbot_ec2ud.embedded.machine import Machine

_SHUTDOWN_FROM_INSIDE = _moto.Reason(
    "Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown"
)
_ENDED = ("shutting-down", "terminated")


@dataclass
class Notice:
    """What EC2 lets a spot instance know of its end.

    :ivar advised_at: when EC2 has advised to look for another instance, in seconds of the wall clock; None: it has not.
    :ivar ends_at: when it takes the instance away; None: it has not given notice.
    """

    advised_at: float | None = None
    ends_at: float | None = None


class Instances:
    """All instances of an embedded EC2.

    :param reactor: Twisted's, or a clock, with which no user-data can be run.
    :param faults: gives what goes wrong.
    :param pending: seconds from a launch to ``running``, unless the faults say otherwise.
    :param shutting_down: seconds from a termination to ``terminated``, unless the faults say otherwise.
    :param tell: called with the id of an instance, what has happened to it, and details.
    """

    def __init__(
        self,
        reactor: Any,
        faults: Callable[[], Faults],
        pending: float,
        shutting_down: float,
        tell: Callable[[str, str, str], Any],
    ) -> None:
        self._reactor = reactor
        self._faults = faults
        self._pending = pending
        self._shutting_down = shutting_down
        self._tell = tell
        self._machines: dict[str, Machine] = {}
        self._notices: dict[str, Notice] = {}
        self._launched_at: dict[str, float] = {}
        self._work: set[defer.Deferred[Any]] = set()
        self._forgetting: set[IDelayedCall] = set()
        self._stopping = True

    def start(self, directory: Path, metadata_url: str) -> None:
        """From now on, take care of instances.

        :param directory: where theirs are made.
        :param metadata_url: of the metadata service; an instance's own is below it.
        """
        self._directory = directory
        self._metadata_url = metadata_url
        self._stopping = False

    @defer.inlineCallbacks
    def stop(self) -> Generator[Any, Any, None]:
        """End all processes of instances, and whatever waits."""
        self._stopping = True
        for work in list(self._work):
            work.cancel()
        for call in self._forgetting:
            call.cancel()
        self._forgetting.clear()
        yield defer.DeferredList([machine.end() for machine in self._machines.values()])

    def console(self, instance_id: str) -> bytes:
        """What an instance has printed. May be called in any thread."""
        machine = self._machines.get(instance_id)
        return b"" if machine is None else machine.console()

    def notice(self, instance_id: str) -> Notice:
        """What EC2 has let an instance know of its end."""
        return self._notices.get(instance_id, Notice())

    # Called in the threads of the requests

    def made(self, instance: _moto.Instance) -> None:
        """An instance has been made."""
        self._launched_at[instance.id] = self._reactor.seconds()
        self._in_reactor(self._launched, instance)

    def ending(self, instance: _moto.Instance, state: str) -> None:
        """An instance is on its way to *state*, ``stopped`` or ``terminated``."""
        self._in_reactor(self._end, instance, state)

    def started(self, instance: _moto.Instance) -> None:
        """A stopped instance is started again."""
        self._in_reactor(self._start_again, instance)

    def visible(self, instance_id: str) -> bool:
        """Whether those who look for an instance find it."""
        now = self._reactor.seconds()
        # Another thread may see an instance of which this object has not heard yet.
        return now >= self._launched_at.get(instance_id, now) + self._faults().visible_after

    def _in_reactor(self, function: Callable[..., defer.Deferred[Any]], *args: Any) -> None:
        self._reactor.callFromThread(self._spawn, function, *args)

    # Called in the reactor's

    def interrupt(self, instance: _moto.Instance, notice: float, advice: float | None) -> None:
        """Take a spot instance away: see :meth:`EmbeddedEC2.interrupt`."""
        if self.notice(instance.id).ends_at is None:
            self._spawn(self._interrupt, instance, notice, advice)

    def _spawn(self, function: Callable[..., defer.Deferred[Any]], *args: Any) -> None:
        if self._stopping:
            return
        work = function(*args)
        self._work.add(work)

        def done(result: Any) -> Any:
            self._work.discard(work)
            return result

        work.addBoth(done)
        work.addErrback(lambda failure: None if failure.check(defer.CancelledError) else log.err(failure))

    def _wait(self, seconds: float) -> defer.Deferred[Any]:
        return task.deferLater(self._reactor, max(0.0, seconds))

    def _until_running(self) -> defer.Deferred[Any]:
        pending = self._faults().pending
        return self._wait(self._pending if pending is None else pending)

    @defer.inlineCallbacks
    def _launched(self, instance: _moto.Instance) -> Generator[Any, Any, None]:
        failure = self._faults().take_launch_failure()
        self._tell(instance.id, "pending", "")
        yield self._until_running()
        if _moto.state_of(instance) != "pending":
            return
        if failure is not None:
            self._tell(instance.id, "fault", f"launch-failure of {instance.id}: {failure.message}")
            self._terminate(instance, failure)
            return
        self._set_state(instance, "running")
        url = f"{self._metadata_url}/{instance.id}"
        machine = Machine(
            self._reactor,
            instance.id,
            self._directory / instance.id,
            powered_off=lambda: self._powered_off(instance),
            finished=lambda status: self._tell(instance.id, "user-data ended", f"with status {status}"),
            # The first as AWS's own libraries know it.
            environment={"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "EC2UD_METADATA_URL": url},
        )
        self._machines[instance.id] = machine
        if machine.run(_moto.user_data(instance)):
            self._tell(instance.id, "user-data started", "")
        if _moto.pool_of(instance).market == "spot":
            self._spawn(self._perhaps_interrupt, instance)

    @defer.inlineCallbacks
    def _start_again(self, instance: _moto.Instance) -> Generator[Any, Any, None]:
        # User-data is run once in the life of an instance, as on EC2.
        self._tell(instance.id, "pending", "")
        yield self._until_running()
        if _moto.state_of(instance) == "pending":
            self._set_state(instance, "running")

    def _powered_off(self, instance: _moto.Instance) -> None:
        """The instance has shut itself down."""
        if _moto.state_of(instance) not in ("pending", "running"):
            return
        if _moto.shutdown_behavior(instance) == "terminate":
            instance.terminate()
        else:
            instance.stop()
        _moto.set_state(instance, _moto.state_of(instance), _SHUTDOWN_FROM_INSIDE)

    @defer.inlineCallbacks
    def _perhaps_interrupt(self, instance: _moto.Instance) -> Generator[Any, Any, None]:
        faults = self._faults()
        after = faults.take_interruption()
        if after is None:
            return
        yield self._wait(after)
        if _moto.state_of(instance) not in _ENDED:
            self._tell(instance.id, "fault", f"interruption of {instance.id}")
            self.interrupt(instance, faults.notice, None)

    @defer.inlineCallbacks
    def _interrupt(self, instance: _moto.Instance, notice: float, advice: float | None) -> Generator[Any, Any, None]:
        told = self._notices.setdefault(instance.id, Notice())
        if advice is not None:
            # What an instance is told is of the wall clock, which is its own.
            told.advised_at = time.time()
            self._tell(instance.id, "rebalance recommendation", "")
            yield self._wait(advice)
        if told.ends_at is not None or _moto.state_of(instance) in _ENDED:
            return
        told.ends_at = time.time() + notice
        self._tell(instance.id, "interruption notice", f"{notice:g} s ahead")
        yield self._wait(notice)
        if _moto.state_of(instance) not in _ENDED:
            # The form of the transition's reason: as it is seen in the field.
            now = time.strftime("%Y-%m-%d %H:%M:%S GMT", time.gmtime(time.time()))
            code = "Server.SpotInstanceTermination"
            reason = _moto.Reason(code, f"{code}: Spot instance termination", f"Service initiated ({now})")
            self._terminate(instance, reason)

    def _terminate(self, instance: _moto.Instance, reason: _moto.Reason) -> None:
        """End an instance for a reason of EC2's own."""
        instance.terminate()
        _moto.set_state(instance, _moto.state_of(instance), reason)

    @defer.inlineCallbacks
    def _end(self, instance: _moto.Instance, state: str) -> Generator[Any, Any, None]:
        ending = "stopping" if state == "stopped" else "shutting-down"
        self._tell(instance.id, ending, "")
        machine = self._machines.get(instance.id)
        shutting_down = self._faults().shutting_down
        ends = self._reactor.seconds() + (self._shutting_down if shutting_down is None else shutting_down)
        if machine is not None:
            yield machine.end()
        yield self._wait(ends - self._reactor.seconds())
        if _moto.state_of(instance) != ending:  # it was terminated while it stopped
            return
        self._set_state(instance, state)
        if state == "terminated":
            call = self._reactor.callLater(self._faults().vanish_after, lambda: self._forget(instance, call))
            self._forgetting.add(call)

    def _forget(self, instance: _moto.Instance, call: IDelayedCall) -> None:
        self._forgetting.discard(call)
        _moto.forget(instance)
        for known in (self._machines, self._notices, self._launched_at):
            known.pop(instance.id, None)

    def _set_state(self, instance: _moto.Instance, state: str) -> None:
        _moto.set_state(instance, state)
        self._tell(instance.id, state, "")
