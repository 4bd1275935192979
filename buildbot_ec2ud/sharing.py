"""Which builds can share an instance; and that one which waits for another instance does not wait for ever."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from buildbot.data.resultspec import Filter
from buildbot.process.build import Build
from buildbot.process.properties import Properties
from buildbot.util.latent import CompatibleLatentWorkerMixin
from buildbot.worker.latent import States
from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.python import log

#: Seconds that a build which an idle instance does not suit may look for another worker, before the instance is ended.
PATIENCE = 5.0


class SharingMixin(CompatibleLatentWorkerMixin):
    """For a latent worker whose instance has a shape that depends on the build.

    Buildbot asks whether a worker suits a build before it is one: then, less is known than when a build starts. So only
    what is known at both times is compared.

    A subclass has ``settings``, and ``render_shape(settings, properties)``, which gives a Deferred of all that shapes the
    instance. A reconfig brings other settings; those of its start decide which builds an instance suits.
    """

    _shape: Any = None
    _shaped_by: Any = None
    _impatience: IDelayedCall | None = None

    def render_shape(self, settings: Any, properties: Any) -> defer.Deferred[Any]:
        raise NotImplementedError  # pragma: no cover

    def with_secrets(self, build: Any) -> Any:
        """Something that renders: the build, the bare properties of one to come, or (for latent machines) our own."""
        if build is None:
            build = Properties()
        if isinstance(build, Properties) and build.master is None:
            build.master = self.master  # else secrets cannot be rendered
        return build

    @defer.inlineCallbacks
    def renderWorkerPropsOnStart(self, build: Any) -> Generator[Any, Any, Any]:
        properties = Properties()
        if build is not None:
            yield Build.setup_properties_known_before_build_starts(
                properties, build.requests, build.builder, build.workerforbuilder
            )
        self._shaped_by = self.settings
        self._shape = yield self._before_a_start(properties)
        return (yield self.render_shape(self._shaped_by, self.with_secrets(build)))

    def resetWorkerPropsOnStop(self) -> None:
        self._shape = None
        self._be_patient()

    @defer.inlineCallbacks
    def isCompatibleWithBuild(self, build: Properties) -> Generator[Any, Any, bool]:
        if self._shape is None:
            return True
        if (yield self._before_a_start(build)) == self._shape:
            return True
        if self._impatience is None:
            self._impatience = self.master.reactor.callLater(PATIENCE, self._waited_for)
        return False

    @defer.inlineCallbacks
    def _before_a_start(self, properties: Properties) -> Generator[Any, Any, Any]:
        try:
            return (yield self.render_shape(self._shaped_by, self.with_secrets(properties)))
        except Exception as error:
            # Whatever a renderable of the configuration raises when it lacks what only a start tells.
            log.msg(f"worker {self.name}: whether builds can share an instance cannot be told: {error!r}")
            return object()  # like no other

    def _waited_for(self) -> None:
        self._impatience = None
        self._deferwaiter.add(self._end_idle())

    @defer.inlineCallbacks
    def _end_idle(self) -> Generator[Any, Any, None]:
        """End the instance, if it is idle and a build still waits: it waits for another shape, or it would have begun."""
        if self.idle() and (yield self._somebody_waits()) and self.idle():
            log.msg(f"worker {self.name}: the instance does not suit the build that waits; ending it")
            yield self._soft_disconnect()

    def idle(self) -> bool:
        """Whether there is an instance that no build uses, and that may be ended."""
        return self.state == States.SUBSTANTIATED and not self.building and self.build_wait_timeout >= 0

    @defer.inlineCallbacks
    def _somebody_waits(self) -> Generator[Any, Any, bool]:
        waiting = [Filter("claimed", "eq", [False]), Filter("complete", "eq", [False])]
        for builder in self.botmaster.getBuildersForWorker(self.name):
            builderid = yield builder.getBuilderId()
            if (yield self.master.data.get(("builders", builderid, "buildrequests"), filters=waiting)):
                return True
        return False

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
