"""The stand-in for EC2 on the wire, in a process of its own."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any
from urllib.parse import parse_qsl

from children import run_until_closed
from ec2 import EC2, Behaviour
from machines import Machine, Template
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site


class EC2Resource(Resource):
    """The stand-in on the wire: calls by POST, :meth:`EC2.report` as JSON by GET."""

    isLeaf = True

    def __init__(self, ec2: EC2, reactor: Any) -> None:
        super().__init__()
        self._ec2, self._reactor = ec2, reactor

    def render_GET(self, request: Any) -> bytes:
        return json.dumps(self._ec2.report()).encode()

    def render_POST(self, request: Any) -> int:
        status, body = self._ec2.answer(dict(parse_qsl(request.content.read().decode(), keep_blank_values=True)))

        def answer() -> None:
            if not request._disconnected:
                request.setResponseCode(status)
                request.setHeader("Content-Type", "text/xml;charset=UTF-8")
                request.write(body)
                request.finish()

        self._reactor.callLater(self._ec2.behaviour.latency, answer)
        return NOT_DONE_YET


class Boots(Factory):
    """Tells those who connect of each instance that begins to run, with its user-data, and of each that has ended.

    One line of JSON for each: what the machine itself would know.
    """

    def __init__(self) -> None:
        self._listeners: set[LineOnlyReceiver] = set()

    def buildProtocol(self, _: Any) -> LineOnlyReceiver:
        listeners = self._listeners

        class Listener(LineOnlyReceiver):
            def connectionMade(self) -> None:
                listeners.add(self)

            def connectionLost(self, reason: Any) -> None:
                listeners.discard(self)

        return Listener()

    def tell(self, machine: Machine) -> None:
        told = {"id": machine.id, "state": machine.state}
        if machine.state == "running":
            told["user_data"] = base64.b64decode(machine.asked.get("UserData", "")).decode()
        for listener in self._listeners:
            listener.sendLine(json.dumps(told).encode())


def main() -> None:
    from twisted.internet import reactor

    boots = Boots()
    ec2 = EC2(reactor, Behaviour(**json.loads(sys.argv[1])), Template(), boots.tell)
    ports = [
        reactor.listenTCP(0, factory, interface="127.0.0.1") for factory in (Site(EC2Resource(ec2, reactor)), boots)
    ]
    address, boots_port = (port.getHost().port for port in ports)
    run_until_closed(reactor, {"url": f"http://127.0.0.1:{address}/", "boots": boots_port})


if __name__ == "__main__":
    main()
