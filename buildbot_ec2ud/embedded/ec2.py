"""An EC2 on this machine: moto's API, served by Twisted, with instances that take their time and run their user-data."""

from __future__ import annotations

import collections
import io
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.protocols.policies import WrappingFactory
from twisted.python import log
from twisted.python.threadpool import ThreadPool
from twisted.web.server import Site
from twisted.web.wsgi import WSGIResource

from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded.machine import Machine
from buildbot_ec2ud.userdata.scripts import packaged

#: Threads that answer requests. moto is bound by the GIL: more would only take turns.
THREADS = 2
#: Seconds of the interpreter's switch interval while moto runs: at CPython's own 5 ms, each answer of moto's holds the
#: reactor up that long.
SWITCH_INTERVAL = 0.0005

_SHUTDOWN_FROM_INSIDE = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")

#: Called with the instance's id, what happened (a state of EC2's, ``user-data started``, ``user-data ended``), and details.
Listener = Callable[[str, str, str], Any]


class _QuietSite(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Keep the requests out of the log of whoever embeds this."""


class EmbeddedEC2:
    """An EC2 for one process, on loopback. Only one can run at a time: moto has one set of accounts.

    :param directory: where the instances' directories are made; a temporary one, removed at the end, unless given.
    :param port: the TCP port, 0 for a free one.
    :param pending: seconds from a launch to ``running``.
    :param shutting_down: seconds from a termination to ``terminated``; the machine's processes end before.
    :param reactor: Twisted's, unless given.
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
        self._work: set[defer.Deferred[Any]] = set()
        self._stopping = False
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
        """Call *listener* with each thing that happens to an instance."""
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
        site = _QuietSite(WSGIResource(self._reactor, self._pool, self._counted(_moto.application())))
        site.displayTracebacks = False
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
            launched=lambda instance: in_reactor(self._spawn, self._launched, instance),
            ending=lambda instance, state: in_reactor(self._spawn, self._ending, instance, state),
            started=lambda instance: in_reactor(self._spawn, self._started_again, instance),
            console=self.console,
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
        self._hooks.remove()
        self._pool.stop()
        _moto.reset()
        sys.setswitchinterval(self._switch_interval)
        EmbeddedEC2._running = None
        if self._given_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _counted(self, application: Callable[..., Any]) -> Callable[..., Any]:
        """WSGI middleware that counts the calls of each action. Runs in the threads of the requests."""

        def count(environ: dict[str, Any], start_response: Any) -> Any:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            for action in urllib.parse.parse_qs(body.decode("utf-8", "replace")).get("Action", []):
                self.calls[action] += 1
            return application(environ, start_response)

        return count

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
