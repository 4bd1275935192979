"""What the tests of a fleet share: instances, and an EC2 that answers when it is told to."""

from __future__ import annotations

from typing import Any

from buildbot.util.service import MasterService
from twisted.internet import defer, task
from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import EC2Error
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet import region
from buildbot_ec2ud.fleet.background import FIRST_PAUSE, LONGEST_PAUSE
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.fleet.region import Fleet

ENDPOINT = "https://ec2.us-east-1.amazonaws.com/"
SECRET = "a-secret-of-the-account"
OFFERS = [Offer(kind, None, "on-demand", {"InstanceType": kind}) for kind in ("c7i.large", "c6i.large", "m7i.large")]


def instance(instance_id: str = "i-1", state: str = "pending", code: str = "", message: str = "") -> Instance:
    """An instance as EC2 tells of it."""
    found = Instance(instance_id, state, instance_type="t3.micro", placement="us-east-1a")
    found.tags = {}
    found.state_reason = (code, message)
    found.state_transition_reason = ""
    found.lifecycle = "on-demand"
    found.subnet_id = None
    return found


class Call:
    """A call that waits for its answer."""

    def __init__(self, action: str, *args: Any) -> None:
        self.action, self.args = action, args
        self.cancelled = False
        self.waiting: defer.Deferred[Any] = defer.Deferred(self._cancel)

    def _cancel(self, _: Any) -> None:
        self.cancelled = True

    def answer(self, *result: Any) -> None:
        self.waiting.callback(list(result))

    def fail(self, error: Exception) -> None:
        self.waiting.errback(error)


class SilentEC2:
    """A client whose calls wait until the test answers them.

    :ivar calls: all calls, the first one first.
    :ivar sent: whether calls of RunInstances are sent, or still wait for their turn.
    """

    def __init__(self, clock: task.Clock | None = None) -> None:
        self.clock = clock
        self.calls: list[Call] = []
        self.sent = True

    def _call(self, *call: Any) -> defer.Deferred[Any]:
        self.calls.append(Call(*call))
        return self.calls[-1].waiting

    def run_instances(self, parameters: Any, call: Any) -> defer.Deferred[Any]:
        """A call that is sent at once; see :attr:`sent`."""
        call.exposed = call.under_way = self.sent
        return self._call("run", parameters, call)

    def describe_instances(self, *ids: str, filters: Any = None) -> defer.Deferred[Any]:
        return self._call("describe", filters) if filters else self._call("look", *ids)

    def terminate_instances(self, *ids: str) -> defer.Deferred[Any]:
        return self._call("terminate", *ids)

    def made(self, action: str) -> list[Call]:
        """The calls of *action* so far, to the end of this moment: terminate calls of one moment are merged."""
        if self.clock is not None:
            self.clock.advance(0)
        return [call for call in self.calls if call.action == action]

    def last(self, action: str) -> Call:
        return self.made(action)[-1]


def logged(case: Any) -> list[str]:
    """From now on, the texts that *case* logs."""
    texts: list[str] = []

    def observe(event: Any) -> None:
        texts.append(log.textFromEventDict(event) or "")

    log.addObserver(observe)
    case.addCleanup(log.removeObserver, observe)
    return texts


def refusal(code: str) -> EC2Error:
    body = f"<Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors></Response>"
    return EC2Error(body.encode(), 400)


class Master(MasterService):
    """As much of a master as a fleet knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = task.Clock()
        self.name = "master.example.org:/farm"


class NoLeftovers:
    """Looks for nothing, so that only the calls of what is tested are there."""

    def __init__(self, *_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class FleetTestCase(SynchronousTestCase):
    def setUp(self):
        self.master = Master()
        self.clock = self.master.reactor
        self.ec2 = SilentEC2(self.clock)
        self.patch(region, "EC2Client", lambda *_: self.ec2)
        self.patch(region, "Leftovers", NoLeftovers)
        self.patch(region, "in_thread", lambda *_: defer.succeed("master.example.org"))
        self.master.startService()
        self.fleet = self.get_fleet()
        self.texts = logged(self)
        self.events: list[Any] = []
        self.fleet.subscribe(self.events.append)

    def get_fleet(self, *arguments: Any) -> Fleet:
        return self.successResultOf(
            Fleet.getService(self.master, *(arguments or ("us-east-1", ENDPOINT, "AKID", SECRET)))
        )

    def launch(self, offers: Any = OFFERS) -> defer.Deferred[Any]:
        return self.fleet.launch("w", "launch-1", offers)

    def rent(self, instance_id: str = "i-1", state: str = "pending") -> Any:
        launched = self.launch()
        self.ec2.last("run").answer(instance(instance_id, state))
        return self.successResultOf(launched)

    def told(self) -> list[tuple[str, str | None]]:
        return [(event.kind, event.instance_id) for event in self.events]

    def pump(self, seconds: float) -> None:
        """Let time pass in small steps."""
        self.clock.pump([0.5] * int(seconds * 2))

    def times(self, action: str, seconds: float, answer: Any) -> list[float]:
        """When, in the next *seconds*, *action* is called, each call answered by *answer*."""
        began, times, seen = self.clock.seconds(), [], 0
        for _ in range(int(seconds * 2)):
            for call in self.ec2.made(action)[seen:]:
                times.append(self.clock.seconds() - began)
                seen += 1
                answer(call)
            self.clock.advance(0.5)
        return times


def growing(count: int) -> list[float]:
    """Moments with pauses between them that grow, the first moment after the first pause."""
    moments, pause = [FIRST_PAUSE], FIRST_PAUSE
    while len(moments) < count:
        pause = min(pause * 2, LONGEST_PAUSE)
        moments.append(moments[-1] + pause)
    return moments
