"""Hours of watching 1,000 idle instances, in seconds: a fleet's watch and its look for leftovers, with a clock of their own.

All is real but the time and the wire: requests are signed, answers are parsed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any
from urllib.parse import parse_qsl

from ec2 import EC2, Behaviour
from machines import Template
from twisted.internet import defer, task
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.fleet.leftovers import Leftovers
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, WORKER_TAG
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.watcher import Watcher

#: What is simulated.
INSTANCES, HOURS = 1000, 2
OWNER = "master.example.org:/farm"
#: Bytes of an answer that come in one piece, as from a socket.
_PIECE = 64 * 1024


class _Response:
    """An answer."""

    def __init__(self, code: int, body: bytes) -> None:
        self.code, self.headers, self.length, self._body = code, Headers({}), len(body), body

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(self)
        for start in range(0, len(self._body), _PIECE):
            protocol.dataReceived(self._body[start : start + _PIECE])
        protocol.connectionLost(Failure(ResponseDone()))

    def abortConnection(self) -> None:
        raise ConnectionDone


class Wire:
    """An agent that asks the stand-in at once, without a network."""

    def __init__(self, ec2: EC2) -> None:
        self._ec2 = ec2

    def request(self, method: bytes, url: bytes, headers: Any, producer: Any) -> defer.Deferred[_Response]:
        asked = dict(parse_qsl(producer._inputFile.read().decode(), keep_blank_values=True))
        return defer.succeed(_Response(*self._ec2.answer(asked)))


def simulate(instances: int = INSTANCES, hours: float = HOURS, template: Template | None = None) -> dict[str, Any]:
    """Watch instances that just run.

    :param template: what EC2 says of an instance; what moto says, unless given.
    :return: CPU for each hour, and what was asked.
    """
    clock = task.Clock()
    ec2 = EC2(clock, Behaviour(), template or Template())
    factory = QueryFactory("us-east-1", clock, Wire(ec2))
    client = EC2Client(AWSCredentials("benchmark", "benchmark", reactor=clock), "http://ec2.example.org/", factory)
    watcher = Watcher(client, clock)
    ids: set[str] = set()
    changes: list[str] = []
    for number in range(instances):
        tags = {"Name": "w", MASTER_TAG: OWNER, WORKER_TAG: f"w{number}", LAUNCH_TAG: str(number)}
        parameters = {
            "ImageId": "ami-1",
            "InstanceType": "c7i.large",
            "MinCount": 1,
            "MaxCount": 1,
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            ],
        }
        launched: list[Any] = []
        client.run_instances(parameters).addCallback(launched.extend)
        (instance,) = launched
        rental = Rental(None, f"w{number}", instance)
        ids.add(rental.instance_id)
        watcher.watch(rental, lambda rental: changes.append(rental.state), lambda rental: changes.append("absent"))
    leftovers = Leftovers(client, clock, OWNER, lambda: ids, lambda instance: changes.append("left over"))
    leftovers.start()
    # The watch has its longest interval after this.
    _let_pass(clock, 600)
    before = ec2.report()
    began = time.process_time()
    _let_pass(clock, hours * 3600)
    used = time.process_time() - began
    seen = ec2.report()
    watcher.stop()
    leftovers.stop()
    if changes != ["running"] * instances or before["refused"] or seen["refused"]:
        raise AssertionError(f"not what was to be simulated: {set(changes)}, {seen['refused']}")
    return {
        "instances": instances,
        "hours": hours,
        "CPU seconds for each hour": round(used / hours, 2),
        "calls for each hour": {action: count / hours for action, count in seen["calls"].items()},
    }


def _let_pass(clock: task.Clock, seconds: float) -> None:
    """Let time pass, with nothing in it that does not happen: from one event to the next."""
    end = clock.seconds() + seconds
    while (calls := clock.getDelayedCalls()) and (moment := min(call.getTime() for call in calls)) <= end:
        clock.advance(max(0.0, moment - clock.seconds()))
    clock.advance(end - clock.seconds())


if __name__ == "__main__":
    json.dump(simulate(), sys.stdout)
