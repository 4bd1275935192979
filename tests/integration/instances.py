"""What the tests of the embedded EC2 share: somebody else's client, and a look at an instance from outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import defer

from tests.support import FarmTestCase


class InstanceTestCase(FarmTestCase):
    """Tests with an embedded EC2 that is quick, and asked by boto3."""

    def start_ec2(self, **settings: Any) -> Any:
        self.directory = Path(self.mktemp()).absolute()
        return super().start_ec2(
            **{"directory": str(self.directory), "pending": 0.05, "shutting_down": 0.05, **settings}
        )

    def call(self, action: str, **parameters: Any) -> defer.Deferred[Any]:
        return self.boto3(lambda client: getattr(client, action)(**parameters))

    @defer.inlineCallbacks
    def launch(self, user_data: str | bytes = "", **parameters: Any) -> Any:
        """Start an instance; its id."""
        answer = yield self.call(
            "run_instances",
            **{"ImageId": "ami-embedded", "MinCount": 1, "MaxCount": 1, "UserData": user_data, **parameters},
        )
        (instance,) = answer["Instances"]
        return instance["InstanceId"]

    @defer.inlineCallbacks
    def describe(self, instance_id: str) -> Any:
        answer = yield self.call("describe_instances", InstanceIds=[instance_id])
        return answer["Reservations"][0]["Instances"][0]

    def until_state(self, instance_id: str, state: str) -> defer.Deferred[Any]:
        return self.until(lambda: self.ec2.states()[instance_id] == state, what=f"{instance_id}: {state}")

    def until_printed(self, instance_id: str, text: str) -> defer.Deferred[Any]:
        return self.until(lambda: text.encode() in self.ec2.console(instance_id), what=f"{text!r} on the console")

    def until_happened(self, what: str, details: str = "") -> defer.Deferred[Any]:
        return self.until(lambda: (what, details) in self.happened, what=f"{what} {details}")

    def kinds(self) -> list[str]:
        return [what for what, _ in self.happened]


def processes(root: Path) -> list[int]:
    """The processes that belong to the instance with the directory *root*, whatever group and session they are in."""
    found = []
    variable = f"EC2UD_ROOT={root}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if variable in entry.joinpath("environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
