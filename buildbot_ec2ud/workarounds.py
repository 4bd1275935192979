"""Mistakes of Buildbot 4.3 that a latent worker meets, each worked around in one place."""

from __future__ import annotations

from typing import Any

from buildbot.process.results import RETRY
from twisted.internet import defer, task
from twisted.python import log

#: Seconds that a worker which is removed waits for its builds to notice.
PATIENCE = 30.0
#: Seconds between two looks whether they have.
PAUSE = 0.1
#: Seconds after the end of a connection in which Buildbot has noticed it wherever it does.
NOTICE = 5.0


class WorkaroundsMixin:
    """For a latent worker of Buildbot 4.3."""

    def forget_shutdown(self) -> None:
        # A worker that is told to shut down, as by a spot interruption, asks its master for no more builds, and
        # Buildbot gives it none until it attaches again: a latent worker is not even started then.
        if self._graceful:
            self._graceful = False
            self._update_graceful()

    @defer.inlineCallbacks
    def finish_broken(self, builds: list[Any]) -> Any:
        """End those of *builds* that Buildbot does not end by itself after this worker's connection has ended."""
        # Where it ends between the ping and the start of a build, Build.startBuild fails, for want of a connection to
        # follow, and the build never ends. No issue of Buildbot's is known to us. A ping that was lost fails by itself.
        yield task.deferLater(self.master.reactor, NOTICE)
        for build in builds:
            if self.conn is None and not (build.finished or build.subs is not None or build._is_substantiating):
                log.msg(f"worker {self.name}: {build} has lost its connection before it began; it is tried again")
                yield build.buildFinished(["lost", "connection"], RETRY)

    def _let_builds_finish(self) -> None:
        # A builder that is removed by a reconfig while it builds has no master any more when the build finishes: it fails to
        # say so, and the build request is claimed for ever. No issue of Buildbot's is known to us.
        for wfb in self.workerforbuilders.values():
            if wfb.builder.building and wfb.builder.master is None:
                wfb.builder.master = self.master

    def updateWorker(self) -> Any:
        self._let_builds_finish()
        # A builder that was removed and comes back is another object; Buildbot keeps the worker with the old one, and the
        # new builder never has a worker: https://github.com/buildbot/buildbot/issues/9135
        builders = self.botmaster.builders
        for name, wfb in list(self.workerforbuilders.items()):
            if wfb.builder is not builders.get(name):
                del self.workerforbuilders[name]
        return super().updateWorker()

    @defer.inlineCallbacks
    def stopService(self) -> Any:
        # A worker that is removed by a reconfig while a build prepares on it has no master any more when the build finishes:
        # AbstractLatentWorker.buildFinished fails, the build request is claimed for ever, and the master never stops. So the
        # build has to finish first. No issue of Buildbot's is known to us.
        deadline = self.master.reactor.seconds() + PATIENCE
        stopping = super().stopService
        self._let_builds_finish()
        if self.building:
            yield self._soft_disconnect(stopping_service=True)
        while self.building and self.master.reactor.seconds() < deadline:
            yield task.deferLater(self.master.reactor, PAUSE)
        if self.building:
            log.msg(f"worker {self.name}: its builds do not end")
        return (yield stopping())
