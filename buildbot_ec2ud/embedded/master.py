"""A Buildbot master inside this process: start it from a configuration, force a build, await it, stop."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Generator, Mapping
from typing import Any

from buildbot.config.master import FileLoader, MasterConfig
from buildbot.interfaces import IConfigLoader
from buildbot.master import BuildMaster
from buildbot.scripts.create_master import createDB
from buildbot.util.eventual import eventually
from twisted.internet import defer
from twisted.python import log
from zope.interface import implementer

from buildbot_ec2ud.embedded.builds import Build, builds_of

#: Signals that Buildbot takes over when it starts; an embedded master gives them back.
_SIGNALS = ("SIGHUP", "SIGUSR1", "SIGTERM")
_DATABASE = "sqlite:///state.sqlite"


@implementer(IConfigLoader)
class _DictLoader:
    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.configuration = configuration

    def loadConfig(self) -> MasterConfig:
        return MasterConfig.loadFromDict(dict(self.configuration), "<embedded>")


@implementer(IConfigLoader)
class _Preloaded:
    """Gives a configuration that has been loaded already; after that, what *loader* loads."""

    def __init__(self, first: MasterConfig, loader: Any) -> None:
        self._first: MasterConfig | None = first
        self._loader = loader

    def loadConfig(self) -> MasterConfig:
        first, self._first = self._first, None
        return first or self._loader.loadConfig()


class StartFailed(Exception):
    """The master did not start; the text says why."""


class RequestCollapsed(Exception):
    """A build request ended without a build of its own."""


class EmbeddedMaster:
    """A Buildbot master in this process, without a daemon or a terminal. One at a time.

    :param configuration: the dict that a ``master.cfg`` would call ``BuildmasterConfig``; or None to run *config_file*.
        Listen on loopback, with port 0 for a free one: ``"tcp:0:interface=127.0.0.1"``.
    :param basedir: the master's directory, made by ``buildbot create-master`` or empty; a temporary one, removed at
        the end, unless given.
    :param config_file: path of a ``master.cfg``, relative to *basedir*.
    :param reactor: Twisted's, unless given.
    """

    def __init__(
        self,
        configuration: Mapping[str, Any] | None = None,
        basedir: str | None = None,
        config_file: str = "master.cfg",
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._temporary = basedir is None
        self.basedir = os.path.abspath(basedir or tempfile.mkdtemp(prefix="embedded-master-"))
        self._configuration = None if configuration is None else dict(configuration)
        self._loader: Any = (
            FileLoader(self.basedir, config_file) if configuration is None else _DictLoader(self._configuration)
        )
        self.master: Any = None

    @defer.inlineCallbacks
    def start(self) -> Generator[Any, Any, None]:
        """Start the master.

        :raises buildbot.config.ConfigErrors: what is wrong with the configuration.
        :raises StartFailed: it did not start: a port is in use, say.
        """
        if self._configuration is not None:
            # Usage data is nobody's business, least of all that of a test.
            self._configuration.setdefault("buildbotNetUsageData", None)
            self._configuration.setdefault("db", {"db_url": _DATABASE})
        try:
            loaded = self._loader.loadConfig()
            if not os.path.exists(os.path.join(self.basedir, "state.sqlite")):
                yield createDB({"basedir": self.basedir, "db": loaded.db.db_url, "quiet": True})
            self.master = BuildMaster(
                self.basedir, reactor=self._reactor, config_loader=_Preloaded(loaded, self._loader)
            )
            yield self._start_service()
        except BaseException:
            yield self.stop()
            raise

    @defer.inlineCallbacks
    def _start_service(self) -> Generator[Any, Any, None]:
        """Start Buildbot, which stops the reactor when it cannot; find out why instead."""
        handlers = {name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS if hasattr(signal, name)}
        failures: list[str] = []
        stopped: list[bool] = []
        reactor_stop = self._reactor.stop

        def observe(event: Mapping[str, Any]) -> None:
            if "failure" in event:
                failures.append(event["failure"].getErrorMessage())

        log.addObserver(observe)  # what Buildbot logs does not reach twisted.logger's publisher
        self._reactor.stop = lambda: stopped.append(True)
        try:
            yield self.master.startService()
        finally:
            self._reactor.stop = reactor_stop
            log.removeObserver(observe)
            for name, handler in handlers.items():
                signal.signal(getattr(signal, name), handler)
        if stopped:
            raise StartFailed("; ".join(failures) or "Buildbot did not start; its log says why")

    @defer.inlineCallbacks
    def stop(self) -> Generator[Any, Any, None]:
        """Stop the master, and with it all its instances."""
        if self.master is not None and self.master.running:
            workers = list(self.master.workers.workers.values())
            yield self.master.stopService()
            for worker in workers:
                worker.stopMissingTimer()  # Buildbot starts it when a LocalWorker, the janitor's, goes with the master
        if self._temporary:
            shutil.rmtree(self.basedir, ignore_errors=True)

    def reconfig(self, configuration: Mapping[str, Any] | None = None) -> defer.Deferred[None]:
        """Load the configuration again.

        :param configuration: another dict, if the master was made from one.
        """
        if configuration is not None:
            self._configuration.update(configuration)
            self._loader.configuration = self._configuration
        return self.master.reconfig()

    @property
    def www_url(self) -> str:
        """Address of the web UI, which listens on loopback."""
        www = self.master.www
        # Buildbot can tell the number of the port only when the kernel chose it.
        chosen = re.search(r"\d+", str(www.port))
        number = int(chosen[0]) if chosen else 0
        return f"http://127.0.0.1:{number or www.getPortnum()}/"

    # Builds

    @defer.inlineCallbacks
    def request_build(
        self, builder: str, properties: Mapping[str, Any] | None = None, reason: str = "forced"
    ) -> Generator[Any, Any, int]:
        """Ask for a build, and do not wait for it.

        :return: fires with the id of the build request.
        """
        builderid = yield self.master.data.updates.findBuilderId(builder)
        source = {"codebase": "", "repository": "", "branch": None, "revision": None, "project": ""}
        _, requests = yield self.master.data.updates.addBuildset(
            waited_for=False,
            scheduler="embedded",
            sourcestamps=[source],
            reason=reason,
            builderids=[builderid],
            properties={name: (value, "force") for name, value in (properties or {}).items()},
        )
        return requests[builderid]

    @defer.inlineCallbacks
    def force_build(
        self, builder: str, properties: Mapping[str, Any] | None = None, first_attempt: bool = False
    ) -> Generator[Any, Any, Build]:
        """Force a build, and wait for what becomes of it.

        :param builder: the builder's name.
        :param properties: properties of the build.
        :param first_attempt: do not wait for the retries of a build that ends as RETRY.
        :return: fires with the last build of the request. Cancelling it cancels only the waiting.
        :raises RequestCollapsed: Buildbot has merged the request into a later one like it.
        """
        finished: defer.DeferredQueue[int] = defer.DeferredQueue()

        def done(_: Any, message: Mapping[str, Any]) -> None:
            # Not at once: a consumer that ends while Buildbot delivers an event makes it skip the next one.
            eventually(finished.put, message["buildrequestid"])

        master = self.master
        builds = yield master.mq.startConsuming(done, ("builds", None, "finished"))
        requests = yield master.mq.startConsuming(done, ("buildrequests", None, "complete"))
        try:
            request = yield self.request_build(builder, properties)
            while True:
                if (yield finished.get()) != request:
                    continue
                state = yield master.data.get(("buildrequests", request))
                attempts = yield builds_of(master, request)
                if state["complete"] and not attempts:
                    raise RequestCollapsed(f"{builder}: build request {request}; see c['collapseRequests']")
                if state["complete"] or (first_attempt and attempts and attempts[-1].results is not None):
                    return attempts[-1]
        finally:
            yield builds.stopConsuming()
            yield requests.stopConsuming()
