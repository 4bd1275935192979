"""A web browser without a window: Debian's chromium, told what to do by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet import defer, error, protocol, reactor, task
from twisted.internet.endpoints import HostnameEndpoint

CHROMIUM = shutil.which("chromium")


class BrowserFailed(Exception):
    """The browser did not do what it was told; the text says why."""


class _Process(protocol.ProcessProtocol):
    """The browser, which tells on stderr where it listens."""

    def __init__(self) -> None:
        self.address: defer.Deferred[str] = defer.Deferred()
        self.ended: defer.Deferred[None] = defer.Deferred()
        self._said = ""

    def errReceived(self, data: bytes) -> None:
        self._said += data.decode(errors="replace")
        for line in self._said.split("\n")[:-1]:  # the last one is not whole yet
            if line.startswith("DevTools listening on ") and not self.address.called:
                self.address.callback(line.rpartition(" ")[2])

    def processEnded(self, reason: Any) -> None:
        if not self.address.called:
            self.address.errback(BrowserFailed(self._said[-2000:]))
        self.ended.callback(None)


class _Connection(WebSocketClientProtocol):
    def onOpen(self) -> None:
        self.factory.opened.callback(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.received(json.loads(payload))

    def onClose(self, wasClean: bool, code: Any, reason: Any) -> None:
        self.factory.closed()


class _Factory(WebSocketClientFactory):
    protocol = _Connection

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: defer.Deferred[_Connection] = defer.Deferred()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, defer.Deferred[Any]] = {}

    def call(self, connection: _Connection, message: dict[str, Any]) -> defer.Deferred[Any]:
        number = next(self._numbers)
        self._waiting[number] = answer = defer.Deferred()
        connection.sendMessage(json.dumps({"id": number, **message}).encode())
        return answer

    def received(self, message: dict[str, Any]) -> None:
        answer = self._waiting.pop(message.get("id", 0), None)
        if answer is not None and "error" in message:
            answer.errback(BrowserFailed(str(message["error"])))
        elif answer is not None:
            answer.callback(message["result"])

    def closed(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.errback(BrowserFailed("it is gone"))


class Browser:
    """One page in a browser of its own.

    :param profile: a directory for what it keeps.
    """

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._session = ""

    @defer.inlineCallbacks
    def start(self) -> Any:
        """Start it, with an empty page."""
        self._process = _Process()
        # A sandbox needs rights that containers do not have, and root may not use it.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={self._profile}", "--no-first-run", "about:blank"]
        environment = {"HOME": self._profile, "PATH": "/usr/bin:/bin"}
        self._transport = reactor.spawnProcess(self._process, CHROMIUM, [CHROMIUM, *options], environment)
        try:
            url = yield self._process.address
            self._factory = _Factory(url)
            port = int(url.split("/")[2].rpartition(":")[2])
            yield HostnameEndpoint(reactor, "127.0.0.1", port).connect(self._factory)
            self._connection = yield self._factory.opened
            target = yield self._call("Target.createTarget", url="about:blank")
            attached = yield self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = attached["sessionId"]
        except BaseException:
            yield self.stop()
            raise

    def _call(self, method: str, **parameters: Any) -> defer.Deferred[Any]:
        message: dict[str, Any] = {"method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        return self._factory.call(self._connection, message)

    @defer.inlineCallbacks
    def stop(self) -> Any:
        """End it."""
        if not self._process.ended.called:
            with contextlib.suppress(error.ProcessExitedAlready):
                self._transport.signalProcess("KILL")
        yield self._process.ended

    def go(self, url: str) -> defer.Deferred[Any]:
        """Open a page."""
        return self._call("Page.navigate", url=url)

    @defer.inlineCallbacks
    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = yield self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserFailed(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    @defer.inlineCallbacks
    def wait_for(self, script: str, seconds: float = 60) -> Any:
        """Wait until an expression of JavaScript is true; gives its value.

        :raises BrowserFailed: it was not; the text says what the page showed.
        """
        deadline = reactor.seconds() + seconds
        while True:
            value = yield self.evaluate(script)
            if value:
                return value
            if reactor.seconds() > deadline:
                shown = yield self.evaluate("document.body.innerText")
                raise BrowserFailed(f"waited {seconds} s in vain for {script} on:\n{shown}")
            yield task.deferLater(reactor, 0.05)

    @defer.inlineCallbacks
    def screenshot(self) -> Any:
        """What it shows, as a PNG."""
        answer = yield self._call("Page.captureScreenshot")
        return base64.b64decode(answer["data"])
