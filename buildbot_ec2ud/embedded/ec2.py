"""An EC2 on this machine: moto's API, served by Twisted, with instances that take their time and run their user-data."""

from __future__ import annotations

import collections
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.protocols.policies import WrappingFactory
from twisted.python import log
from twisted.python.threadpool import ThreadPool
from twisted.web.wsgi import WSGIResource

from buildbot_ec2ud.ec2.threads import in_thread
from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded.faults import Faults
from buildbot_ec2ud.embedded.kinds import Kind
from buildbot_ec2ud.embedded.launches import Launches
from buildbot_ec2ud.embedded.machine import Machine
from buildbot_ec2ud.embedded.wire import FaultySite
from buildbot_ec2ud.userdata.scripts import packaged

#: Threads that answer requests. moto is bound by the GIL: more would only take turns.
THREADS = 2
#: Seconds of the interpreter's switch interval while moto runs: at CPython's own 5 ms, each answer of moto's holds the
#: reactor up that long.
SWITCH_INTERVAL = 0.0005

_SHUTDOWN_FROM_INSIDE = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")

#: Called with the instance's id, what happened (a state of EC2's, ``user-data started``, ``user-data ended``), and details;
#: of a fault that has hit a call, with no id, ``fault``, and what it was.
Listener = Callable[[str, str, str], Any]


class EmbeddedEC2:
    """An EC2 for one process, on loopback. Only one can run at a time: moto has one set of accounts.

    :param directory: where the instances' directories are made; a temporary one, removed at the end, unless given.
    :param port: the TCP port, 0 for a free one.
    :param pending: seconds from a launch to ``running``.
    :param shutting_down: seconds from a termination to ``terminated``; the machine's processes end before.
    :param reactor: Twisted's, unless given.
    :param faults: what goes wrong; nothing, unless given.
    :ivar faults: the same, to be changed at any time.
    :ivar endpoint_url: the address of the API, while it runs.
    :ivar calls: how many times each action was called.
    """

    region = "us-east-1"
    access_key = "embedded"
    secret_key = "embedded"

    _running: EmbeddedEC2 | None = None

    def __init__(
        self,
        directory: str | None = None,
        port: int = 0,
        pending: float = 0.5,
        shutting_down: float = 0.5,
        reactor: Any = None,
        faults: Faults | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._port_number = port
        self._pending = pending
        self._shutting_down = shutting_down
        self._given_directory = directory
        self._listeners: list[Listener] = []
        self._machines: dict[str, Machine] = {}
        self._launched_at: dict[str, float] = {}
        self._work: set[defer.Deferred[Any]] = set()
        self._stopping = False
        self.faults = faults or Faults()
        self.calls: collections.Counter[str] = collections.Counter()
        self.endpoint_url = ""

    def worker_arguments(self) -> dict[str, Any]:
        """Arguments with which an ``EC2UserDataLatentWorker`` gets its instances here, to be completed with a name."""
        return {
            "endpoint_url": self.endpoint_url,
            "region": self.region,
            "identifier": self.access_key,
            "secret_identifier": self.secret_key,
            "instance_type": "t3.micro",
            "ami": "ami-embedded",
            "bb_master": "127.0.0.1",
            "bootstrap_script": packaged("embedded.sh"),
        }

    def subscribe(self, listener: Listener) -> None:
        """Call *listener* with each thing that happens to an instance, and with each fault that hits a call."""
        self._listeners.append(listener)

    def states(self) -> dict[str, str]:
        """The state of each instance, the terminated ones too."""
        return {instance.id: _moto.state_of(instance) for instance in _moto.instances()}

    def alive(self) -> list[str]:
        """The ids of the instances that are not terminated."""
        return [instance_id for instance_id, state in self.states().items() if state != "terminated"]

    def user_data(self, instance_id: str) -> bytes:
        """What an instance was given."""
        return next(_moto.user_data(instance) for instance in _moto.instances() if instance.id == instance_id)

    def console(self, instance_id: str) -> bytes:
        """What an instance has printed. May be called in any thread."""
        machine = self._machines.get(instance_id)
        return b"" if machine is None else machine.console()

    def start(self) -> None:
        """Listen.

        :raises RuntimeError: another one runs in this process.
        :raises twisted.internet.error.CannotListenError: the port is in use.
        """
        if EmbeddedEC2._running is not None:
            raise RuntimeError("an embedded EC2 runs in this process already")
        self._pool = ThreadPool(1, THREADS, "embedded-ec2")
        moto = WSGIResource(self._reactor, self._pool, _moto.application())
        site = FaultySite(moto, self._reactor, self._arrived, lambda: self.faults.latency)
        self._connections = WrappingFactory(site)
        self._connections.noisy = False
        self._port = self._reactor.listenTCP(self._port_number, self._connections, interface="127.0.0.1")
        self._pool.start()
        EmbeddedEC2._running = self
        self._stopping = False
        self._directory = Path(self._given_directory or tempfile.mkdtemp(prefix="embedded-ec2-"))
        self.endpoint_url = f"http://127.0.0.1:{self._port.getHost().port}"
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        _moto.reset()
        in_reactor = self._reactor.callFromThread
        self._hooks = _moto.Hooks(
            launched=self._made,
            ending=lambda instance, state: in_reactor(self._spawn, self._ending, instance, state),
            started=lambda instance: in_reactor(self._spawn, self._started_again, instance),
            console=self.console,
            launching=Launches(),
            visible=self._visible,
        )
        self._hooks.install()

    @defer.inlineCallbacks
    def stop(self) -> Generator[Any, Any, None]:
        """End all instances and their processes, and listen no more."""
        if EmbeddedEC2._running is not self or self._stopping:
            return
        self._stopping = True
        yield self._port.stopListening()
        for connection in list(self._connections.protocols):  # clients keep them open
            connection.transport.abortConnection()
        for work in list(self._work):
            work.cancel()
        yield defer.DeferredList([machine.end() for machine in self._machines.values()])
        # In a thread, for it waits for the calls that are being done, and these for the reactor.
        yield in_thread(self._reactor, self._pool.stop)
        self._hooks.remove()
        _moto.reset()
        sys.setswitchinterval(self._switch_interval)
        EmbeddedEC2._running = None
        if self._given_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _arrived(self, action: str, parameters: Mapping[str, str], region: str) -> Kind | None:
        """Count a call, and tell what goes wrong with it."""
        self.calls[action] += 1
        kind = self.faults.strike(action, parameters, region, self._reactor.seconds())
        if kind is not None:
            self._tell("", "fault", f"{kind.name} of {action}")
        return kind

    # What happens to instances, over time

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

    def _tell(self, instance_id: str, what: str, details: str = "") -> None:
        for listener in list(self._listeners):
            listener(instance_id, what, details)

    def _made(self, instance: Any) -> None:
        """An instance has been made. Called in the thread of the request."""
        self._launched_at[instance.id] = self._reactor.seconds()
        self._reactor.callFromThread(self._spawn, self._launched, instance)

    def _visible(self, instance_id: str) -> bool:
        """Whether those who look for an instance find it. Called in the threads of the requests."""
        now = self._reactor.seconds()
        # Another thread may see an instance of which this object has not heard yet.
        return now >= self._launched_at.get(instance_id, now) + self.faults.visible_after

    @defer.inlineCallbacks
    def _launched(self, instance: Any) -> Generator[Any, Any, None]:
        self._tell(instance.id, "pending")
        yield task.deferLater(self._reactor, self._pending)
        if _moto.state_of(instance) != "pending":
            return
        self._set_state(instance, "running")
        machine = Machine(
            self._reactor,
            instance.id,
            self._directory / instance.id,
            powered_off=lambda: self._powered_off(instance),
            finished=lambda status: self._tell(instance.id, "user-data ended", f"with status {status}"),
        )
        self._machines[instance.id] = machine
        if machine.run(_moto.user_data(instance)):
            self._tell(instance.id, "user-data started")

    @defer.inlineCallbacks
    def _started_again(self, instance: Any) -> Generator[Any, Any, None]:
        # User-data is run once in the life of an instance, as on EC2.
        self._tell(instance.id, "pending")
        yield task.deferLater(self._reactor, self._pending)
        if _moto.state_of(instance) == "pending":
            self._set_state(instance, "running")

    def _powered_off(self, instance: Any) -> None:
        """The instance has shut itself down."""
        if _moto.state_of(instance) not in ("pending", "running"):
            return
        if _moto.shutdown_behavior(instance) == "terminate":
            instance.terminate()
        else:
            instance.stop()
        _moto.set_state(instance, _moto.state_of(instance), _SHUTDOWN_FROM_INSIDE)

    @defer.inlineCallbacks
    def _ending(self, instance: Any, state: str) -> Generator[Any, Any, None]:
        ending = "stopping" if state == "stopped" else "shutting-down"
        self._tell(instance.id, ending)
        machine = self._machines.get(instance.id)
        ends = self._reactor.seconds() + self._shutting_down
        if machine is not None:
            yield machine.end()
        yield task.deferLater(self._reactor, max(0, ends - self._reactor.seconds()))
        if _moto.state_of(instance) == ending:  # else it was terminated while it stopped
            self._set_state(instance, state)

    def _set_state(self, instance: Any, state: str) -> None:
        _moto.set_state(instance, state)
        self._tell(instance.id, state)
