"""What the tests of a worker's arguments share: many workers of one master, and what EC2 was really asked for."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from buildbot.plugins import util
from moto.backends import get_backend
from twisted.internet import defer, threads

from buildbot_ec2ud.embedded.wire import FaultyRequest
from buildbot_ec2ud.worker import EC2UserDataLatentWorker
from tests.integration.instances import InstanceTestCase
from tests.support import configuration

ACCOUNT = "123456789012"
#: User-data and a bootstrap script that keep an instance up, and make no worker of it.
SLEEP = "#!/bin/sh\nexec sleep 100\n"
#: Arguments with which such user-data is sent as it is.
AS_IT_IS: dict[str, Any] = {"password": "fixed", "bootstrap_script": None, "bb_master": None}
#: More launches at once than a test has.
_QUICK = {"RunInstances": (100, 100)}


@dataclass(frozen=True)
class Received:
    """A call that has come to EC2: by whom, where, and what was asked for."""

    key: str
    region: str
    action: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Launched:
    """An instance of a worker.

    :ivar described: what boto3 says of it.
    :ivar user_data: its user-data.
    :ivar behavior: what a shutdown from inside does.
    :ivar call: what was asked for.
    """

    described: Mapping[str, Any]
    user_data: bytes
    behavior: str
    call: Received

    @property
    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.described["Tags"]}

    @property
    def spot(self) -> dict[str, str]:
        """What the call says of the market."""
        return self.parameters("InstanceMarketOptions.")

    def parameters(self, beginning: str) -> dict[str, str]:
        """The parameters of the call whose names begin so, without that."""
        return {
            name.removeprefix(beginning): value
            for name, value in self.call.parameters.items()
            if name.startswith(beginning)
        }


class LaunchTestCase(InstanceTestCase):
    """Starts workers by builds of a real master; their instances do nothing."""

    def start_ec2(self, **settings: Any) -> Any:
        self.received: list[Received] = []
        self._clients: dict[tuple[str, str], Any] = {}
        process = FaultyRequest.process

        def note(request: Any) -> None:
            parameters = {name.decode(): values[0].decode() for name, values in request.args.items()}
            credential = re.search("Credential=([^/]*)/[^/]*/([^/]*)", request.getHeader("Authorization") or "")
            if credential is not None:
                self.received.append(Received(*credential.groups(), parameters.get("Action", ""), parameters))
            process(request)

        self.patch(FaultyRequest, "process", note)
        return super().start_ec2(**settings)

    def worker(self, name: str = "w", **arguments: Any) -> EC2UserDataLatentWorker:
        """A worker of the embedded EC2; arguments that are None are not given."""
        given = {**self.ec2.worker_arguments(), "bootstrap_script": SLEEP, "build_wait_timeout": 0}
        given |= {"api_limits": _QUICK, **arguments}
        return EC2UserDataLatentWorker(name, **{key: value for key, value in given.items() if value is not None})

    def calls(self, action: str, key: str | None = None) -> list[Received]:
        """The calls of an action that our own client has made."""
        return [
            call
            for call in self.received
            if call.action == action and (call.key == key if key else call.key != "boto3")
        ]

    def start_farm(self, *workers: Any) -> defer.Deferred[Any]:
        """Start a master in which each worker has a builder of its own, which has its name."""
        plain = configuration(list(workers))
        factory = plain["builders"][0].factory
        plain["builders"] = [
            util.BuilderConfig(name=worker.name, workernames=[worker.name], factory=factory) for worker in workers
        ]
        plain["schedulers"] = []
        return self.start_master({**plain, "multiMaster": True})

    @defer.inlineCallbacks
    def build_on(self, *workers: Any, properties: Mapping[str, Any] | None = None) -> Any:
        """Start a master that has a build for each worker; the builds wait for their workers."""
        yield self.start_farm(*workers)
        for worker in workers:
            yield self.master.request_build(worker.name, properties)

    @defer.inlineCallbacks
    def launched(self, *workers: Any, properties: Mapping[str, Any] | None = None) -> Any:
        """Start all workers, and ask EC2 what they are; by name."""
        yield self.build_on(*workers, properties=properties)
        yield self.until_running(*(worker.name for worker in workers))
        return (yield self.look())

    def until_running(self, *names: str) -> defer.Deferred[Any]:
        """Wait until the fleet's instances of these workers run."""

        def running() -> bool:
            states = self.ec2.states()
            workers = self.master.master.workers.workers
            rentals = [workers[name].rental for name in names]
            return all(rental is not None and states[rental.instance_id] == "running" for rental in rentals)

        return self.until(running, what=f"instances of {', '.join(names)}")

    @defer.inlineCallbacks
    def look(self) -> Any:
        """All instances that run, by the name of their worker."""
        answer = yield self.call("describe_instances")
        found = {}
        for reservation in answer["Reservations"]:
            for described in reservation["Instances"]:
                if described["State"]["Name"] not in ("pending", "running"):
                    continue
                tags = {tag["Key"]: tag["Value"] for tag in described["Tags"]}
                user_data = yield self.attribute(described["InstanceId"], "userData", "UserData")
                behavior = yield self.attribute(
                    described["InstanceId"],
                    "instanceInitiatedShutdownBehavior",
                    "InstanceInitiatedShutdownBehavior",
                )
                (call,) = (
                    call for call in self.calls("RunInstances") if tags["buildbot:launch"] in call.parameters.values()
                )
                data = base64.b64decode(user_data.get("Value", ""))
                found[tags["buildbot:worker"]] = Launched(described, data, behavior["Value"], call)
        return found

    def boto3(self, function: Any) -> defer.Deferred[Any]:
        return self.in_region(self.ec2.region, function)

    def in_region(self, region: str, function: Any) -> defer.Deferred[Any]:
        """Call *function* with a boto3 client of a region, in a thread."""
        return threads.deferToThread(function, self.client("ec2", region))

    def client(self, service: str, region: str) -> Any:
        """A boto3 client; to make one takes longer than most calls."""
        if (service, region) not in self._clients:
            self._clients[service, region] = boto3.client(
                service,
                endpoint_url=self.ec2.endpoint_url,
                region_name=region,
                aws_access_key_id="boto3",
                aws_secret_access_key="boto3",
            )
        return self._clients[service, region]

    @defer.inlineCallbacks
    def attribute(self, instance_id: str, name: str, key: str) -> Any:
        answer = yield self.call("describe_instance_attribute", InstanceId=instance_id, Attribute=name)
        return answer[key]

    @defer.inlineCallbacks
    def image(self, name: str, location: str, day: int = 1) -> Any:
        """Make an image of our own account; its id."""
        answer = yield self.call("register_image", Name=name)
        # moto's RegisterImage knows only names.
        made = get_backend("ec2")[ACCOUNT][self.ec2.region].amis[answer["ImageId"]]
        made.image_location = location
        made.creation_date = made.creation_date.replace(year=2031, month=1, day=day)
        return answer["ImageId"]

    @defer.inlineCallbacks
    def default_network(self) -> Any:
        """The subnets of the default VPC, by zone; and the id of a security group that is called ``farm``."""
        answer = yield self.call("describe_subnets")
        subnets = {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in answer["Subnets"]}
        answer = yield self.call("create_security_group", GroupName="farm", Description="farm")
        return subnets, answer["GroupId"]

    @defer.inlineCallbacks
    def instance_profile(self) -> Any:
        """Make an IAM instance profile; its name and its ARN. They last longer than EC2: moto's IAM is not reset."""
        name = f"build-{uuid.uuid4().hex}"
        client = self.client("iam", self.ec2.region)
        answer = yield threads.deferToThread(lambda: client.create_instance_profile(InstanceProfileName=name))
        return name, answer["InstanceProfile"]["Arn"]
