"""An EC2 on this machine: moto's API, served by Twisted, with instances that take their time and run their user-data."""

from __future__ import annotations

import collections
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.protocols.policies import WrappingFactory
from twisted.python.threadpool import ThreadPool
from twisted.web.wsgi import WSGIResource

from buildbot_ec2ud.ec2.threads import in_thread
from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded._calls import Demand
from buildbot_ec2ud.embedded._hooks import Hooks
from buildbot_ec2ud.embedded.faults import Faults, check_seconds
from buildbot_ec2ud.embedded.instances import Instances
from buildbot_ec2ud.embedded.kinds import Kind
from buildbot_ec2ud.embedded.launches import Launches
from buildbot_ec2ud.embedded.metadata import MetadataSite
from buildbot_ec2ud.embedded.wire import FaultySite
from buildbot_ec2ud.userdata.scripts import packaged

#: Threads that answer requests. moto is bound by the GIL: more would only take turns.
THREADS = 2
#: Seconds of the interpreter's switch interval while moto runs: at CPython's own 5 ms, each answer of moto's holds the
#: reactor up that long.
SWITCH_INTERVAL = 0.0005

#: Called with the instance's id, what happened (a state of EC2's, ``user-data started``, ``user-data ended``, ``rebalance
#: recommendation``, ``interruption notice``), and details; of a fault, with ``fault`` and what it was, and with no id if it
#: has hit a call.
Listener = Callable[[str, str, str], Any]


class EmbeddedEC2:
    """An EC2 for one process, on loopback. Only one can run at a time: moto has one set of accounts.

    :param directory: where the instances' directories are made; a temporary one, removed at the end, unless given.
    :param port: the TCP port, 0 for a free one.
    :param pending: seconds from a launch to ``running``, unless the faults have others.
    :param shutting_down: seconds from a termination to ``terminated``, unless the faults have others; the machine's
        processes end before.
    :param reactor: Twisted's, unless given.
    :param faults: what goes wrong; nothing, unless given.
    :ivar faults: the same, to be changed at any time.
    :ivar endpoint_url: the address of the API, while it runs.
    :ivar metadata_url: the address of the instance metadata service, while it runs; with a slash and the id of an instance,
        that instance's own. The instance has it in its environment, as ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, where AWS's
        libraries look for it, and as ``EC2UD_METADATA_URL``.
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
        self._given_directory = directory
        self._listeners: list[Listener] = []
        self._stopping = False
        self.faults = faults or Faults()
        self._instances = Instances(reactor, lambda: self.faults, pending, shutting_down, self._tell)
        self.calls: collections.Counter[str] = collections.Counter()
        self.endpoint_url = ""
        self.metadata_url = ""

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
        """Call *listener* with each thing that happens to an instance, and with each fault that hits."""
        self._listeners.append(listener)

    def states(self) -> dict[str, str]:
        """The state of each instance, the terminated ones too while EC2 shows them."""
        return {instance.id: _moto.state_of(instance) for instance in _moto.instances()}

    def alive(self) -> list[str]:
        """The ids of the instances that are not terminated."""
        return [instance_id for instance_id, state in self.states().items() if state != "terminated"]

    def user_data(self, instance_id: str) -> bytes:
        """What an instance was given."""
        return next(_moto.user_data(instance) for instance in _moto.instances() if instance.id == instance_id)

    def console(self, instance_id: str) -> bytes:
        """What an instance has printed. May be called in any thread."""
        return self._instances.console(instance_id)

    def interrupt(self, instance_id: str, notice: float | None = None, advice: float | None = None) -> None:
        """Take a spot instance away, as EC2 does: its metadata gives notice of it, then it is terminated.

        Once it has notice, another call changes nothing.

        :param notice: seconds between the two; by default those of the faults, AWS's two minutes.
        :param advice: seconds that a rebalance recommendation comes ahead of the notice; None: there is none.
        :raises ValueError: no such spot instance is pending or running; or seconds that are none.
        """
        notice = self.faults.notice if notice is None else notice
        for name, seconds in (("notice", notice), ("advice", advice or 0.0)):
            check_seconds(name, seconds)
        instance = _moto.find(instance_id)
        if instance is None or _moto.state_of(instance) not in ("pending", "running"):
            raise ValueError(f"no such instance is pending or running: {instance_id}")
        if _moto.pool_of(instance).market != "spot":
            raise ValueError(f"not a spot instance: {instance_id}")
        self._instances.interrupt(instance, notice, advice)

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
        metadata = MetadataSite(self._reactor, self._instances.notice)
        self._metadata_connections = WrappingFactory(metadata)
        self._metadata_connections.noisy = False
        self._metadata_port = self._reactor.listenTCP(0, self._metadata_connections, interface="127.0.0.1")
        self._pool.start()
        EmbeddedEC2._running = self
        self._stopping = False
        self._directory = Path(self._given_directory or tempfile.mkdtemp(prefix="embedded-ec2-"))
        self.endpoint_url = f"http://127.0.0.1:{self._port.getHost().port}"
        self.metadata_url = f"http://127.0.0.1:{self._metadata_port.getHost().port}"
        self._instances.start(self._directory, self.metadata_url)
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL)
        _moto.reset()
        self._hooks = Hooks(
            launched=self._instances.made,
            ending=self._instances.ending,
            started=self._instances.started,
            console=self.console,
            launching=Launches(),
            placing=self._place,
            visible=self._instances.visible,
        )
        self._hooks.install()

    @defer.inlineCallbacks
    def stop(self) -> Generator[Any, Any, None]:
        """End all instances and their processes, and listen no more."""
        if EmbeddedEC2._running is not self or self._stopping:
            return
        self._stopping = True
        yield defer.gatherResults([self._port.stopListening(), self._metadata_port.stopListening()])
        for factory in (self._connections, self._metadata_connections):
            for connection in list(factory.protocols):  # clients keep them open
                connection.transport.abortConnection()
        yield self._instances.stop()
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

    def _place(self, demand: Demand) -> tuple[str, int]:
        """Find a place for instances. Called in the threads of the requests."""
        try:
            place = self.faults.capacity.place(demand, _moto.alive())
        except _moto.EC2Error as error:
            self._reactor.callFromThread(self._refused, demand, error.code)
            raise
        return place.zone, place.count

    def _refused(self, demand: Demand, code: str) -> None:
        self.faults.hits[code] += 1
        where = next(iter(demand.subnets), "") if demand.named else demand.region
        self._tell("", "fault", f"{code}: {demand.instance_type} {demand.market} in {where}")

    def _tell(self, instance_id: str, what: str, details: str = "") -> None:
        for listener in list(self._listeners):
            listener(instance_id, what, details)
