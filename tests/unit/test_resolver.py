"""Host names to addresses: no pool, a memory, and a name server that is out of order."""

from __future__ import annotations

import socket
import threading
from typing import Any

from twisted.internet import defer, reactor, task
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from buildbot_ec2ud.ec2.resolver import CACHE_TIME, HUNG_AFTER, LOOKUP_TIMEOUT, RETRY_TIME, Resolver


class Clock(task.Clock):
    """Time of its own, and the real reactor's thread."""

    callFromThread = staticmethod(reactor.callFromThread)


@implementer(IResolutionReceiver)
class Receiver:
    """Collects addresses; *complete* fires with them."""

    def __init__(self) -> None:
        self.began: list[Any] = []
        self.addresses: list[Any] = []
        self.complete: defer.Deferred[list[Any]] = defer.Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.began.append(resolutionInProgress)

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.complete.callback(self.addresses)


class NameServer:
    """Looks up in a dict, and may block.

    :ivar asked: the names that were asked for.
    :ivar names: their addresses; those that are not there are unknown.
    :ivar gate: clear it to let questions wait.
    """

    def __init__(self, **names: str) -> None:
        self.names = names
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, host: str, port: int, family: int = 0, type: int = 0) -> list[Any]:
        self.asked.append(host)
        if not self.gate.wait(20):
            raise AssertionError("nobody opened the gate")
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.names[host], port))]


class ResolverTestCase(TestCase):
    """A resolver whose name server and clock are the test's."""

    timeout = 20

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = NameServer(ec2="192.0.2.1")
        self.addCleanup(self.server.gate.set)
        self.resolver = Resolver(self.clock, self.server)

    def ask(self, name: str = "ec2", *args: Any) -> Receiver:
        receiver = Receiver()
        self.resolution = self.resolver.resolveHostName(receiver, name, 443, *args)
        self.assertEqual(receiver.began, [self.resolution])
        return receiver

    @defer.inlineCallbacks
    def hosts(self, name: str = "ec2") -> Any:
        return [address.host for address in (yield self.ask(name).complete)]


class AnswerTests(ResolverTestCase):
    """What is delivered."""

    def test_interfaces(self) -> None:
        """It is a resolver to Twisted."""
        verifyObject(IHostnameResolver, self.resolver)
        self.ask("192.0.2.7")
        verifyObject(IHostResolution, self.resolution)
        self.assertEqual(self.resolution.name, "192.0.2.7")

    @defer.inlineCallbacks
    def test_addresses(self) -> Any:
        """Addresses of both kinds come in the system's order, with the port; of other kinds there are none."""
        self.resolver = Resolver(
            self.clock,
            lambda *args, **_: [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
                (socket.AF_UNIX, socket.SOCK_STREAM, 6, "", "/socket"),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
            ],
        )
        found = yield self.ask().complete
        self.assertEqual(found, [IPv6Address("TCP", "2001:db8::1", 443), IPv4Address("TCP", "192.0.2.1", 443)])

    @defer.inlineCallbacks
    def test_kinds(self) -> Any:
        """Only the wanted kind is asked for, and an answer to that is not one to all."""
        families = []

        def look_up(name: str, port: int, family: int, type: int) -> list[Any]:
            families.append((family, type))
            return [(socket.AF_INET, type, 17, "", ("192.0.2.1", 0))]

        self.resolver = Resolver(self.clock, look_up)
        found = yield self.ask("ec2", [IPv4Address], "UDP").complete
        self.assertEqual(found, [IPv4Address("UDP", "192.0.2.1", 443)])
        for kinds in (None, [IPv6Address], [IPv4Address]):
            yield self.ask("ec2", kinds).complete
        self.assertEqual([family for family, _ in families], [socket.AF_INET, socket.AF_UNSPEC, socket.AF_INET6])
        self.assertEqual({kind for _, kind in families}, {socket.SOCK_STREAM})

    def test_literals(self) -> None:
        """An IP address is its own answer, at once."""
        for name, address in (
            ("192.0.2.7", IPv4Address("TCP", "192.0.2.7", 443)),
            ("2001:db8::7", IPv6Address("TCP", "2001:db8::7", 443)),
        ):
            self.assertEqual(self.successResultOf(self.ask(name).complete), [address])
        self.assertEqual(self.successResultOf(self.ask("192.0.2.7", [IPv6Address]).complete), [])
        self.assertEqual(self.server.asked, [])

    @defer.inlineCallbacks
    def test_unknown(self) -> Any:
        """An unknown name has no address, now and later."""
        for _ in range(2):
            self.assertEqual((yield self.hosts("nowhere")), [])
        self.assertEqual(self.server.asked, ["nowhere", "nowhere"])

    @defer.inlineCallbacks
    def test_system(self) -> Any:
        """The system itself is asked, in no thread of the reactor's pool."""
        self.patch(reactor, "getThreadPool", lambda: self.fail("this pool is shared with Buildbot"))
        self.resolver = Resolver(reactor)
        self.assertIn("127.0.0.1", (yield self.hosts("localhost")))

    @defer.inlineCallbacks
    def test_no_thread(self) -> Any:
        """Where there are no more threads, there is no address, and the next time is a new one."""

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch = self.patch(threading.Thread, "start", start)
        self.assertEqual(self.successResultOf(self.ask().complete), [])
        patch.restore()
        self.assertEqual((yield self.hosts()), ["192.0.2.1"])


class MemoryTests(ResolverTestCase):
    """What is remembered, and for how long."""

    @defer.inlineCallbacks
    def test_cache(self) -> Any:
        """An answer is used until it has expired."""
        yield self.hosts()
        self.server.names["ec2"] = "192.0.2.2"
        self.clock.advance(CACHE_TIME - 0.1)
        self.assertEqual([address.host for address in self.successResultOf(self.ask().complete)], ["192.0.2.1"])
        self.clock.advance(0.1)
        self.assertEqual((yield self.hosts()), ["192.0.2.2"])
        self.assertEqual(self.server.asked, ["ec2", "ec2"])

    @defer.inlineCallbacks
    def test_shared(self) -> Any:
        """Those who ask for one name at a time share a look-up, each with a port of its own; others do not wait for it."""
        self.server.names["other"] = "192.0.2.9"
        self.server.gate.clear()
        first, other = self.ask(), self.ask("other")
        second = Receiver()
        self.resolver.resolveHostName(second, "ec2", 80)
        self.server.gate.set()
        found = yield defer.gatherResults([first.complete, second.complete, other.complete])
        self.assertEqual(
            [[(address.host, address.port) for address in addresses] for addresses in found],
            [[("192.0.2.1", 443)], [("192.0.2.1", 80)], [("192.0.2.9", 443)]],
        )
        self.assertEqual(sorted(self.server.asked), ["ec2", "other"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @defer.inlineCallbacks
    def test_failure_after_success(self) -> Any:
        """When a name is not known any more, its last addresses serve, and the next look-up comes soon."""
        yield self.hosts()
        del self.server.names["ec2"]
        self.clock.advance(CACHE_TIME)
        self.assertEqual((yield self.hosts()), ["192.0.2.1"])
        self.clock.advance(RETRY_TIME - 0.1)
        self.assertEqual([address.host for address in self.successResultOf(self.ask().complete)], ["192.0.2.1"])
        self.assertEqual(len(self.server.asked), 2)
        self.server.names["ec2"] = "192.0.2.2"
        self.clock.advance(0.1)
        self.assertEqual((yield self.hosts()), ["192.0.2.2"])

    @defer.inlineCallbacks
    def test_empty_after_success(self) -> Any:
        """No addresses are no answer."""
        answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))], []]
        self.resolver = Resolver(self.clock, lambda *args, **_: answers.pop(0))
        yield self.hosts()
        self.clock.advance(CACHE_TIME)
        self.assertEqual((yield self.hosts()), ["192.0.2.1"])
        self.assertEqual(answers, [])


class SilenceTests(ResolverTestCase):
    """A name server that does not answer."""

    def test_never_answered(self) -> None:
        """Without an old answer there is none after the limit."""
        self.server.gate.clear()
        receiver = self.ask()
        self.clock.advance(LOOKUP_TIMEOUT - 0.1)
        self.assertNoResult(receiver.complete)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(receiver.complete), [])

    @defer.inlineCallbacks
    def test_old_answer(self) -> Any:
        """With one, that serves after the limit, and those who ask soon after do not wait; nor does a second thread."""
        yield self.hosts()
        self.server.gate.clear()
        self.clock.advance(CACHE_TIME)
        receiver = self.ask()
        self.clock.advance(LOOKUP_TIMEOUT)
        for answered in (receiver, self.ask()):
            self.assertEqual([address.host for address in self.successResultOf(answered.complete)], ["192.0.2.1"])
        self.clock.advance(RETRY_TIME)
        waiting = self.ask()
        self.assertNoResult(waiting.complete)
        self.server.names["ec2"] = "192.0.2.2"
        self.server.gate.set()
        # The look-up of long ago answers them both.
        self.assertEqual([address.host for address in (yield waiting.complete)], ["192.0.2.2"])
        self.assertEqual(len(self.server.asked), 2)

    @defer.inlineCallbacks
    def test_late_answer(self) -> Any:
        """An answer after the limit is good for the next one who asks."""
        self.server.gate.clear()
        self.ask()
        self.clock.advance(LOOKUP_TIMEOUT)
        receiver = self.ask()
        self.server.gate.set()
        yield receiver.complete
        self.assertEqual([address.host for address in self.successResultOf(self.ask().complete)], ["192.0.2.1"])
        self.assertEqual(self.server.asked, ["ec2"])

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """One who has cancelled hears nothing more; the others do."""
        self.server.gate.clear()
        cancelled = self.ask()
        self.resolution.cancel()
        waiting = self.ask()
        self.server.gate.set()
        yield waiting.complete
        self.assertNoResult(cancelled.complete)
        self.assertEqual(cancelled.addresses, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @defer.inlineCallbacks
    def test_hangs(self) -> Any:
        """A look-up that never ends does not keep others from beginning, after a while."""
        asked: list[str] = []
        self.server.gate.clear()

        def look_up(host: str, *args: Any, **more: Any) -> list[Any]:
            asked.append(host)
            return (
                self.server(host, *args, **more) if len(asked) == 1 else [(socket.AF_INET, 1, 6, "", ("192.0.2.9", 0))]
            )

        self.resolver = Resolver(self.clock, look_up)
        for _ in range(2):
            receiver = self.ask()
            self.clock.advance(LOOKUP_TIMEOUT)
            self.assertEqual(self.successResultOf(receiver.complete), [])
        self.clock.advance(HUNG_AFTER)
        self.assertEqual((yield self.hosts()), ["192.0.2.9"])
        self.assertEqual(asked, ["ec2", "ec2"])
