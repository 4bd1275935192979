"""What the build's page tells of the instance: a log of its start, a line of text, properties, an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

from buildbot.interfaces import LatentWorkerCannotSubstantiate, LatentWorkerFailedToSubstantiate
from buildbot.process.properties import Properties
from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.python import log

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.fleet.rental import Rental

#: The properties that tell of the instance.
PROPERTIES = ("instance", "ec2_instance_type", "ec2_availability_zone", "ec2_market", "ec2_ami", "ec2_region")

#: Name of the log of the preparation step.
LOG = "ec2"
#: ... and of the one that tells how the instance was lost.
LOSS_LOG = "ec2 loss"
#: Lines of an instance's console that are shown.
CONSOLE_LINES = 100

#: Seconds for which what is told is collected, and then written together. Where many builds start at a time, Buildbot's
#: database is what they wait for: 70 builds have their instances 10 % sooner than if each line was written by itself.
PAUSE = 0.5

#: How many of an instance's last words are told.
_WORDS = 3

_PHASE = re.compile(r"^.*ec2ud: phase=(\S+)(?: t=([0-9]+))?", re.MULTILINE)


def mark(properties: Properties, rental: Rental | None) -> None:
    """Make *properties* tell of the instance, or of none.

    :param properties: a worker's, which Buildbot copies into each of its builds; or a build's.
    """
    for name in PROPERTIES:
        properties.properties.pop(name, None)
    if rental is None:
        return
    instance = rental.instance
    values = (
        rental.instance_id,
        instance.instance_type,
        instance.placement,
        instance.lifecycle,
        instance.image_id,
        rental.fleet.region,
    )
    properties.update(dict(zip(PROPERTIES, values, strict=True)), "Worker")


def is_final(error: Exception) -> bool:
    """Whether another try would not help: somebody has to change the configuration."""
    return not isinstance(error, EC2CallError) or error.error_class is ErrorClass.CONFIGURATION


def refusal(worker: str, error: Exception) -> Exception:
    """What Buildbot is told when there is no instance: whether to try the build again, and why it did not start.

    :param worker: the worker's name.
    :param error: what went wrong: an answer of EC2's, or something that is wrong with the configuration.
    """
    log.msg(f"worker {worker}: no instance: {error}")
    answer = LatentWorkerCannotSubstantiate if is_final(error) else LatentWorkerFailedToSubstantiate
    return answer(f"no EC2 instance for worker {worker}: {error}")


def end(rental: Rental) -> str:
    """In which state an instance has ended, and why, as far as EC2 says; or what it could not be given."""
    if rental.trouble is not None:
        return f"instance {rental.instance_id}: {rental.trouble}"
    return state(rental.instance_id, rental.state, rental.instance.why())


def state(instance_id: str, name: str, why: str) -> str:
    """In which state an instance is, and why, as far as EC2 says."""
    return f"instance {instance_id} is {name}" + (f" ({why})" if why else "")


def last_phase(console: str) -> str:
    """The last phase of the bootstrap that a console tells of, in words; empty when it tells of none."""
    found = _PHASE.findall(console)
    if not found:
        return ""
    name, seconds = found[-1]
    return f"the last phase of its bootstrap was {name}" + (f", begun after {seconds} s" if seconds else "")


def last_words(console: str) -> list[str]:
    """What the instance has last said of itself on its console, such as why it powers off."""
    said = [line.partition("ec2ud: ")[2].strip() for line in console.splitlines() if "ec2ud: " in line]
    return [words for words in said if not words.startswith("phase=")][-_WORDS:]


def console_url(region: str, instance_id: str) -> str:
    """Where AWS's own console shows an instance.

    :param region: a region, which tells the partition.
    """
    domain = "console.aws.amazon.com"
    if region.startswith("cn-"):
        domain = "console.amazonaws.cn"
    elif region.startswith("us-gov-"):
        domain = "console.amazonaws-us-gov.com"
    return f"https://{region}.{domain}/ec2/home?region={region}#InstanceDetails:instanceId={instance_id}"


class Page:
    """A log of a build's preparation step that tells of its instance.

    :param clock: the reactor.
    :param build: the build; None where Buildbot starts a worker without one, and nothing is shown.
    :param name: of the log.
    :ivar hidden: what is not shown, wherever it occurs.
    """

    def __init__(self, clock: Any, build: Any, name: str = LOG) -> None:
        self._clock = clock
        self._name = name
        self._build = build
        # Buildbot has no public way to the step that it makes for the preparation of a worker.
        self._step = getattr(build, "_preparation_step", None)
        self._began = clock.seconds()
        self._lock = defer.DeferredLock()
        self._log: Any = None
        # What is to be written next.
        self._text, self._line = "", ""
        self._due: IDelayedCall | None = None
        self._links: list[tuple[str, str]] = []
        self.hidden: set[str] = set()
        self._finished = False

    def hide(self, secret: str | None) -> None:
        """Let nothing that is told from now on contain *secret*."""
        if secret:
            self.hidden.add(secret)

    def tell(self, text: str) -> None:
        """Add a line to the log, with the seconds since the start began."""
        self.write(f"{self._clock.seconds() - self._began:7.1f} s  {text}\n")

    def write(self, text: str) -> None:
        """Add lines to the log as they are."""
        self._text += self.clean(text)
        self._write()

    def console(self, console: str) -> None:
        """Add the last lines of an instance's console."""
        if lines := console.splitlines()[-CONSOLE_LINES:]:
            self.write("\n".join([f"--- the last {len(lines)} lines of its console", *lines, "---", ""]))

    def say(self, text: str) -> None:
        """Make *text* the one line that is shown beside the step."""
        self._line = self.clean(text)
        self._write()

    def link(self, name: str, url: str) -> None:
        """Show a link beside the step."""
        self._links.append((name, url))
        self._write()

    def clean(self, text: str) -> str:
        """*text* without secrets."""
        for secret in self.hidden:
            text = text.replace(secret, "(hidden)")
        return text if self._build is None else self._build.properties.cleanupTextFromSecrets(text)

    def finish(self) -> defer.Deferred[None]:
        """Show nothing any more. Buildbot does not finish the logs of this step.

        :return: fires when all is written.
        """
        if not self._finished:
            self._finished = True
            if self._due is not None:
                self._due.cancel()
                self._start_writing()
            self._run(self._finish)
        return self._lock.run(lambda: None)

    def _write(self) -> None:
        if self._step is not None and not self._finished and self._due is None:
            self._due = self._clock.callLater(PAUSE, self._start_writing)

    def _start_writing(self) -> None:
        self._due = None
        self._run(self._write_all)

    def _run(self, action: Callable[[], Any]) -> None:
        """One after the other; trouble with the page is no reason to have none with the instance."""
        self._lock.run(action).addErrback(log.err, "while telling a build's page of its instance")

    @defer.inlineCallbacks
    def _write_all(self) -> Generator[Any, Any, None]:
        """Write what has been told since this was done last."""
        text, line, links = self._text, self._line, self._links
        self._text, self._line, self._links = "", "", []
        if text:
            if self._log is None:
                self._log = yield self._step.addLog(self._name)
            yield self._log.addStdout(text)
        if line:
            yield self._build.master.data.updates.setStepStateString(self._step.stepid, line)
        for name, url in links:
            yield self._step.addURL(name, url)

    def _finish(self) -> Any:
        return None if self._log is None else self._log.finish()
