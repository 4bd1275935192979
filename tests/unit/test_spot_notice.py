"""The spot notice: an instance that EC2 takes back ends its worker in time, and says why."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SkipTest

from tests.unit.files import write
from tests.unit.sandbox import PASSWORD, SHELLS, Sandbox
from tests.unit.watching import SLEEP, Metadata, WatchTestCase

ACTION = "spot/instance-action"
ADVICE = "events/recommendations/rebalance"
TIME = "2017-09-18T08:22:00Z"
#: Two minutes earlier.
NOW = 1505722800
OFF = "ec2ud: spot-interruption; powering off"


def notice(at: str, action: str = "terminate") -> str:
    """What the metadata service says; as in the EC2 user guide, "Spot Instance interruption notices"."""
    return json.dumps({"action": action, "time": at})


class SpotTestCase(WatchTestCase):
    """A machine that asks a metadata service."""

    def serve(self, tokens: str = "required") -> Metadata:
        service, self.url = self.metadata(tokens=tokens)
        return service

    def spot(self, sandbox: Sandbox, tool: str = "", **options: Any) -> None:
        """Let the machine ask with nothing but *tool*."""
        if tool and not sandbox.link(tool):
            raise SkipTest(f"{tool} is not installed")
        self.start(sandbox, url=self.url, spot=True, **options)

    def busybox(self, sandbox: Sandbox) -> None:
        """Let the machine have the wget of busybox, which knows but GET. Debian's, unlike Alpine's, knows no -T either."""
        if "busybox" not in SHELLS:
            raise SkipTest("busybox is not installed")
        text = f'[ "$1 $2 $3" = "-q -T 2" ] || exit 1\nshift 3\nexec {SHELLS["busybox"][0]} wget -q "$@"'
        write(sandbox.bin, "wget", f"#!/bin/sh\n{text}\n", 0o755)

    def python(self, sandbox: Sandbox) -> None:
        write(sandbox.bin, "python3", f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n', 0o755)


class AskingTests(SpotTestCase):
    """With whatever a system can ask."""

    @defer.inlineCallbacks
    def asks(self, tokens: str, sandbox: Sandbox, tool: str = "", granted: bool = False) -> Any:
        service = self.serve(tokens)
        self.spot(sandbox, tool)
        yield self.until(lambda: service.asked.count(ACTION) >= 3)
        self.assertEqual(set(service.asked), {ACTION, ADVICE})
        self.assertEqual(sandbox.console, [])
        service.documents[ACTION] = notice(TIME)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.console, [f"ec2ud: spot-interruption at={TIME}", OFF])
        self.assertEqual(service.granted > 0, granted)

    def test_curl(self) -> Any:
        """With curl."""
        return self.asks("required", self.machine(), "curl", True)

    def test_wget(self) -> Any:
        """With GNU's wget."""
        return self.asks("required", self.machine(), "wget", True)

    @defer.inlineCallbacks
    def test_python(self) -> Any:
        """With Python, as soon as it has been installed, where the wget there is can do nothing."""
        service, sandbox = self.serve(), self.machine()
        self.busybox(sandbox)
        service.documents[ACTION] = notice(TIME)
        self.spot(sandbox)
        yield self.until_called(sandbox, "sleep", 2)
        self.assertEqual((service.asked, service.granted, sandbox.console), ([], 0, []))
        self.python(sandbox)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.console, [f"ec2ud: spot-interruption at={TIME}", OFF])
        self.assertEqual((service.asked, service.granted), ([ACTION], 1))

    @defer.inlineCallbacks
    def test_without_tokens(self) -> Any:
        """A service that has no tokens is asked without, and one that wants none by those that cannot get any."""
        for tool in ("curl", "wget"):
            yield self.asks("none", self.machine(), tool)
        for tokens in ("none", "optional"):
            sandbox = self.machine()
            self.busybox(sandbox)
            yield self.asks(tokens, sandbox)
        sandbox = self.machine()
        self.python(sandbox)
        yield self.asks("none", sandbox)

    @defer.inlineCallbacks
    def test_token_is_renewed(self) -> Any:
        """A token is used for five minutes: one that is refused, not much longer."""
        service, sandbox = self.serve(), self.machine()
        self.spot(sandbox, "curl")
        yield self.until(lambda: service.asked.count(ACTION) >= 30 and service.granted >= 2)
        self.assertEqual(service.granted, 2)  # another one was for the facts
        service.token = b"another"
        service.documents[ACTION] = notice(TIME)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(service.granted, 3)
        self.assertEqual(sandbox.calls("sleep"), ["5"] * 60 + ["2", "2"])

    @defer.inlineCallbacks
    def test_nobody_answers(self) -> Any:
        """Outside of EC2 nothing happens."""
        sandbox = self.machine()
        with self.listen() as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.spot(sandbox, "curl")
        yield self.until_called(sandbox, "sleep", 5)
        self.assertEqual(sandbox.console + sandbox.calls("shutdown"), [])

    @defer.inlineCallbacks
    def test_something_else(self) -> Any:
        """What is no notice is none."""
        service, sandbox = self.serve(), self.machine()
        for text in ("", "<html>Welcome to our network</html>", "{}"):
            service.documents[ACTION] = text
            if not sandbox.exists("output"):
                self.spot(sandbox, "curl")
            asked = service.asked.count(ACTION)
            yield self.until(lambda asked=asked: service.asked.count(ACTION) >= asked + 2)
        self.assertEqual(sandbox.console + sandbox.calls("shutdown"), [])

    @defer.inlineCallbacks
    def test_advice(self) -> Any:
        """Advice to rebalance is told once, and nothing else comes of it."""
        service, sandbox = self.serve(), self.machine()
        service.documents[ADVICE] = json.dumps({"noticeTime": TIME})
        self.spot(sandbox, "curl")
        yield self.until(lambda: service.asked.count(ACTION) >= 5)
        self.assertEqual(sandbox.console, [f"ec2ud: rebalance-recommendation at={TIME}"])
        self.assertEqual(service.asked.count(ADVICE), 1)
        self.assertEqual(sandbox.calls("shutdown"), [])


class EndingTests(SpotTestCase):
    """What becomes of the worker."""

    def machine(self, shell: str = "sh") -> Sandbox:
        """A machine that also notes the pauses that it makes after the notice; its clock stands still."""
        sandbox = super().machine(shell)
        note = f"! grep -q spot-interruption '{sandbox.path('dev/console')}' || echo $1 >>'{sandbox.path('pauses')}'"
        sandbox.record("sleep", f"{note}\nexec {SLEEP} 0.02")
        date = shutil.which("date")
        os.unlink(os.path.join(sandbox.bin, "date"))
        write(sandbox.bin, "date", f'#!/bin/sh\n[ "$*" != +%s ] || {{ echo {NOW}; exit; }}\nexec {date} "$@"\n', 0o755)
        return sandbox

    def pauses(self, sandbox: Sandbox) -> list[int]:
        """The pauses between the notice and the order to end."""
        pauses = list(map(int, sandbox.read("pauses").split()))
        self.assertEqual(pauses[-2:], [2, 2])  # before the worker is killed, and before the machine goes
        return pauses[:-2]

    @defer.inlineCallbacks
    def interrupted(self, sandbox: Sandbox, *knows: str, shell: str = "sh", at: str = TIME) -> Any:
        """Give the machine its notice when its worker has connected; gives what the worker has noted since."""
        service, listening = self.serve(), self.listen()
        port = listening.getsockname()[1]
        self.spot(sandbox, "curl", script=self.worker(sandbox, port, *knows), shell=shell, port=port)
        yield self.until_called(sandbox, "worker")
        self.assertEqual(sandbox.calls("worker"), ["connected"])
        service.documents[ACTION] = notice(at)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.calls("shutdown"), ["-P now"])
        # The master has been told.
        connection = listening.accept()[0]
        self.assertEqual(connection.recv(1), b"")
        connection.close()
        return sandbox.calls("worker")[1:]

    @defer.inlineCallbacks
    def test_worker(self) -> Any:
        """It is asked to end after its build, once; 15 s before the end it is ended, and then the machine."""
        for shell in SHELLS:
            sandbox = self.machine(shell)
            noted = yield self.interrupted(sandbox, shell=shell)
            self.assertEqual(noted, ["SIGHUP", "SIGTERM"])
            self.assertEqual(sandbox.console, [f"ec2ud: spot-interruption at={TIME}", OFF])
            self.assertEqual(self.pauses(sandbox), [5] * 21)

    @defer.inlineCallbacks
    def test_deaf_worker(self) -> Any:
        """A worker that would end at SIGHUP, in the middle of its build, is not sent it."""
        noted = yield self.interrupted(self.machine(), "deaf")
        self.assertEqual(noted, ["SIGTERM"])

    @defer.inlineCallbacks
    def test_stubborn_worker(self) -> Any:
        """A worker that does not end is killed."""
        noted = yield self.interrupted(self.machine(), "stubborn")
        self.assertEqual(noted, ["SIGHUP", "SIGTERM"])

    @defer.inlineCallbacks
    def test_times(self) -> Any:
        """The time in the notice counts; what is no time, or too far away, are two minutes."""
        for shell in SHELLS:
            for at, told, seconds in (
                ("2017-09-18T08:22:00Z", None, 105),
                ("2017-09-18T08:21:08Z", None, 53),
                ("2017-09-18T08:20:18Z", None, 3),
                ("2017-09-18T08:20:15Z", None, 0),
                ("2017-09-18T08:19:59Z", None, 0),
                ("2018-09-18T08:22:00Z", None, 105),
                ("2017-99-99T08:22:00Z", None, 105),
                ("in two minutes; $(halt) `halt`", "unknown", 105),
                ("", "unknown", 105),
            )[: None if shell == "sh" else 3]:
                sandbox = self.machine(shell)
                service = self.serve()
                service.documents[ACTION] = notice(at, "stop")
                self.spot(sandbox, "curl", shell=shell)
                yield self.until_called(sandbox, "shutdown")
                self.assertEqual(sandbox.console, [f"ec2ud: spot-interruption at={told or at}", OFF])
                pauses = self.pauses(sandbox)
                self.assertEqual(sum(pauses), seconds, at)
                self.assertEqual([pause for pause in pauses if pause != 5], [seconds % 5] * (seconds % 5 > 0))

    @defer.inlineCallbacks
    def test_bsd(self) -> Any:
        """BSD's date reads a time otherwise."""
        sandbox = self.machine()
        text = (
            f'if [ "$*" = "-juf %Y-%m-%d %H:%M:%S 2017-09-18 08:22:00 +%s" ]; then echo {NOW + 60}; else echo {NOW}; fi'
        )
        write(sandbox.bin, "date", f"#!/bin/sh\n{text}\n", 0o755)
        self.serve().documents[ACTION] = notice(TIME)
        self.spot(sandbox, "curl")
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sum(self.pauses(sandbox)), 45)

    @defer.inlineCallbacks
    def test_late_worker(self) -> Any:
        """A worker that connects only after the notice is told, too."""
        sandbox, listening = self.machine(), self.listen()
        port = listening.getsockname()[1]
        self.serve().documents[ACTION] = notice(TIME)
        worker = self.worker(sandbox, port)
        wait = f"until [ -s '{sandbox.path('pauses')}' ]; do {SLEEP} 0.02; done"
        sandbox.record(
            "sleep",
            f"echo $1 >>'{sandbox.path('pauses')}'\n"
            f"until [ -e '{sandbox.path('worker.calls')}' ]; do {SLEEP} 0.02; done\nexec {SLEEP} 0.02",
        )
        self.spot(sandbox, "curl", script=worker.replace("#!/bin/sh\n", f"#!/bin/sh\n{wait}\n"), port=port)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.calls("worker"), ["connected", "SIGHUP", "SIGTERM"])

    @defer.inlineCallbacks
    def test_others(self) -> Any:
        """The worker of another instance that shares the machine is left alone."""
        listening = self.listen()
        port = listening.getsockname()[1]
        other = self.machine()
        other.record("sleep", f"exec {SLEEP} 60")
        self.start(other, self.worker(other, port), port=port)
        yield self.until_called(other, "worker")
        sandbox = self.machine()
        self.serve().documents[ACTION] = notice(TIME)
        self.spot(sandbox, "curl", script=self.worker(sandbox, port), port=port)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.calls("worker"), ["connected", "SIGHUP", "SIGTERM"])
        self.assertEqual(other.calls("worker"), ["connected"])

    @defer.inlineCallbacks
    def test_secrets(self) -> Any:
        """Nothing that is started on the way has the password, as argument or in its environment."""
        sandbox = self.machine()
        sandbox.link("env")
        everything = sandbox.path("everything")
        curl = shutil.which("curl")
        write(sandbox.bin, "curl", f'#!/bin/sh\n{{ echo "$@"; env; }} >>\'{everything}\'\nexec {curl} "$@"\n', 0o755)
        self.serve().documents[ACTION] = notice(TIME)
        self.spot(sandbox)
        yield self.until_called(sandbox, "shutdown")
        self.assertIn("EC2UD_ROOT=", sandbox.read("everything"))
        self.assertNotIn(PASSWORD, sandbox.read("everything"))
