"""The faults of the embedded EC2 as a client meets them: refusals, late, cut and lost answers, broken connections."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from twisted.internet.interfaces import IDelayedCall
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from buildbot_ec2ud.embedded.kinds import Answer, Kind, Then

#: Called with the action, the parameters and the region of each call; gives the kind of fault that hits it.
Arrived = Callable[[str, Mapping[str, str], str], Kind | None]

_REGION = re.compile(r"Credential=[^/]*/[0-9]*/([^/]*)/")


class FaultyRequest(Request):
    """A request that a fault may hit.

    The answer is collected until it is complete, so that it can be late, or cut, or not be sent at all.
    """

    _kind: Kind | None = None
    _timer: IDelayedCall | None = None

    def process(self) -> None:
        self._collected: list[bytes] = []
        self.notifyFinish().addBoth(lambda _: self._end())
        parameters = {_text(name): _text(values[0]) for name, values in self.args.items()}
        action = parameters.get("Action")
        if action is not None:
            scope = _REGION.search(self.getHeader("Authorization") or "")
            self._kind = self.channel.site.arrived(action, parameters, scope[1] if scope else "")
        if self._kind is None or self._kind.done:
            super().process()
        else:
            self._complete()

    def write(self, data: bytes) -> None:
        self._collected.append(data)

    def finish(self) -> None:
        """EC2 has answered."""
        self._complete()

    def _complete(self) -> None:
        site = self.channel.site
        if self._kind is not None and self._kind.answer is not None:
            self._replace(self._kind.answer)
        delay = site.latency()
        if delay:
            self._timer = site.reactor.callLater(delay, self._send)
        else:
            self._send()

    def _replace(self, answer: Answer) -> None:
        """Make *answer* the answer, whatever EC2 has said."""
        self.setResponseCode(answer.status)
        for name in [name for name, _ in self.responseHeaders.getAllRawHeaders()]:
            self.responseHeaders.removeHeader(name)
        self.setHeader("Content-Type", answer.content_type)
        # Like SigV4, the header has the time of the wall clock, not the reactor's.
        self.setHeader("Date", datetimeToString(time.time() + answer.ahead))
        action = escape(_text(self.args[b"Action"][0]))
        self._collected = [answer.body.format(action=action, request=uuid.uuid4()).encode()]

    def _send(self) -> None:
        """Send as much as the fault leaves of the answer, and do to the connection what it does."""
        self._timer = None
        sent, then = (1.0, Then.KEEP) if self._kind is None else (self._kind.sent, self._kind.then)
        if sent is not None:
            body = b"".join(self._collected)
            self.setHeader("Content-Length", str(len(body)))
            super().write(body[: int(len(body) * sent)])
        if then is Then.KEEP:
            super().finish()
        elif then is Then.CLOSE:
            self.channel.loseConnection()
        elif then is Then.RESET:
            self.transport.abortConnection()

    def _end(self) -> None:
        """The answer is sent, or there is nobody to send it to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class FaultySite(Site):
    """A web site whose calls can be hit by faults.

    :param resource: what answers.
    :param reactor: Twisted's.
    :param arrived: called with each call, gives the kind of fault that hits it.
    :param latency: gives the seconds by which an answer is to be late.
    """

    noisy = False

    def __init__(self, resource: IResource, reactor: Any, arrived: Arrived, latency: Callable[[], float]) -> None:
        super().__init__(resource, requestFactory=FaultyRequest, reactor=reactor)
        self.arrived = arrived
        self.latency = latency
        self.displayTracebacks = False

    def log(self, request: Any) -> None:
        """Keep the requests out of the log of whoever embeds this."""


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
