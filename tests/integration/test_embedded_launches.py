"""What the embedded EC2 keeps of EC2's promises about launches: tokens, numbers, the limit of user-data, late visibility."""

from __future__ import annotations

import base64
import threading
from typing import Any

from moto.ec2.models import EC2Backend
from twisted.internet import defer

from buildbot_ec2ud.embedded import Faults
from tests.integration.faulty import LAUNCH, FaultTestCase

FOREVER = 1000.0


class Visibility(FaultTestCase):
    @defer.inlineCallbacks
    def test_not_yet(self):
        """A new instance is there, but nobody who looks for it finds it yet."""
        self.start_ec2(faults=Faults(visible_after=FOREVER))
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "is", "Value": "new"}]}]
        by_tag = {"Filters": [{"Name": "tag:is", "Values": ["new"]}]}
        answer = yield self.ask("run_instances", TagSpecifications=tags, **LAUNCH)
        ids = [answer["Instances"][0]["InstanceId"]]
        self.assertEqual(list(self.ec2.states()), ids)
        for looked_up in ({}, by_tag, {"Filters": [{"Name": "instance-id", "Values": ids}]}, {"MaxResults": 5}):
            answer = yield self.ask("describe_instances", **looked_up)
            self.assertEqual(answer["Reservations"], [])
        for action in ("describe_instances", "terminate_instances", "stop_instances", "start_instances"):
            answer = yield self.refused("InvalidInstanceID.NotFound", 400, action, InstanceIds=ids)
            self.assertEqual(answer["Error"]["Message"], f"The instance ID '{ids[0]}' does not exist")
        yield self.until_state(ids[0], "running")

        self.ec2.faults.visible_after = 0.0
        for looked_up in ({}, by_tag, {"InstanceIds": ids}):
            answer = yield self.ask("describe_instances", **looked_up)
            self.assertEqual([each["InstanceId"] for each in answer["Reservations"][0]["Instances"]], ids)
        yield self.ask("terminate_instances", InstanceIds=ids)
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_after_a_while(self):
        """It is found in the end, and then for ever."""
        self.start_ec2(faults=Faults(visible_after=0.3))
        answer = yield self.ask("run_instances", **LAUNCH)
        ids = [answer["Instances"][0]["InstanceId"]]
        found: list[Any] = []
        while not found:  # the time limit of the test ends this
            answer = yield self.ask("describe_instances")
            found = answer["Reservations"]
        yield self.ask("terminate_instances", InstanceIds=ids)


class Idempotency(FaultTestCase):
    @defer.inlineCallbacks
    def launched(self, **parameters: Any) -> Any:
        answer = yield self.ask("run_instances", **{**LAUNCH, **parameters})
        return answer["ReservationId"], [instance["InstanceId"] for instance in answer["Instances"]]

    @defer.inlineCallbacks
    def test_same(self):
        """The same token and parameters: the same reservation. It is not so without a token of one's own."""
        self.start_ec2()
        first = yield self.launched(ClientToken="a", UserData="#!/bin/sh\n", MinCount=2, MaxCount=2)
        self.assertEqual(len(first[1]), 2)
        again = yield self.launched(ClientToken="a", UserData="#!/bin/sh\n", MinCount=2, MaxCount=2)
        self.assertEqual(first, again)
        other = yield self.launched(ClientToken="A", UserData="#!/bin/sh\n", MinCount=2, MaxCount=2)
        self.assertEqual(len({*first[1], *other[1]}), 4)
        yield self.launched()
        yield self.launched()
        self.assertEqual(len(self.ec2.states()), 6)
        yield self.until(lambda: self.kinds().count("running") == 6)

    @defer.inlineCallbacks
    def test_no_token(self):
        """Whoever sends none gets a new instance each time."""
        self.start_ec2()
        for number in (1, 2):
            yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
            yield self.until_launched(number)

    @defer.inlineCallbacks
    def test_at_the_same_time(self):
        """Of calls that come while the first is being done, none launches."""
        run_instances = EC2Backend.run_instances
        launches: list[Any] = []
        another = threading.Event()

        def slow(*args: Any, **kwargs: Any) -> Any:
            launches.append(args)
            if len(launches) > 1:
                another.set()
            another.wait(0.3)
            return run_instances(*args, **kwargs)

        self.patch(EC2Backend, "run_instances", slow)
        self.start_ec2()
        answers = yield defer.gatherResults([self.launched(ClientToken="a") for _ in range(4)])
        self.assertEqual(answers, [answers[0]] * 4)
        self.assertEqual(len(launches), 1)
        self.assertEqual(list(self.ec2.states()), answers[0][1])

    @defer.inlineCallbacks
    def test_other_parameters(self):
        self.start_ec2()
        first = yield self.launched(ClientToken="a", UserData="#!/bin/sh\n")
        for other in (
            {},
            {"UserData": "#!/bin/sh\n\n"},
            {"UserData": "#!/bin/sh\n", "InstanceType": "t3.micro"},
            {"UserData": "#!/bin/sh\n", "MaxCount": 2},
        ):
            yield self.refused(
                "IdempotentParameterMismatch", 400, "run_instances", **{**LAUNCH, "ClientToken": "a", **other}
            )
        self.assertEqual(list(self.ec2.states()), first[1])
        again = yield self.launched(ClientToken="a", UserData="#!/bin/sh\n")
        self.assertEqual(again, first)

    @defer.inlineCallbacks
    def test_terminated(self):
        """The token of an instance that is terminated is of no more use."""
        self.start_ec2()
        _, ids = yield self.launched(ClientToken="a")
        yield self.ask("terminate_instances", InstanceIds=ids)
        yield self.until_gone()
        yield self.refused("IdempotentInstanceTerminated", 400, "run_instances", ClientToken="a", **LAUNCH)
        yield self.launched(ClientToken="b")
        self.assertEqual(len(self.ec2.alive()), 1)

    @defer.inlineCallbacks
    def test_limit(self):
        """64 characters, all of them ASCII."""
        self.start_ec2()
        yield self.launched(ClientToken="a" * 64)
        for token in ("a" * 65, "ä"):
            answer = yield self.refused("InvalidParameterValue", 400, "run_instances", ClientToken=token, **LAUNCH)
            self.assertIn(f"Value ({token}) for parameter clientToken is invalid", answer["Error"]["Message"])
        self.assertEqual(len(self.ec2.states()), 1)

    @defer.inlineCallbacks
    def test_vanished(self):
        """A token outlives the instance, which EC2 has forgotten."""
        self.start_ec2(faults=Faults(vanish_after=0.0))
        _, ids = yield self.launched(ClientToken="a")
        yield self.ask("terminate_instances", InstanceIds=ids)
        yield self.until(lambda: not self.ec2.states())
        yield self.refused("IdempotentInstanceTerminated", 400, "run_instances", ClientToken="a", **LAUNCH)

    @defer.inlineCallbacks
    def test_scope(self):
        """A token is of one region and, where the call names a zone or a subnet, of one zone."""
        self.start_ec2()
        subnets = yield self.ask("describe_subnets")
        subnet = {each["AvailabilityZone"]: each["SubnetId"] for each in subnets["Subnets"]}
        wheres: list[dict[str, Any]] = [
            {},
            {"region": "eu-central-1"},
            {"Placement": {"AvailabilityZone": "us-east-1a"}},
            {"SubnetId": subnet["us-east-1b"]},
        ]
        ids = []
        for where in wheres * 2:
            _, (instance_id,) = yield self.launched(ClientToken="a", **where)
            ids.append(instance_id)
        self.assertEqual(ids[:4], ids[4:])
        self.assertEqual(len(set(ids)), 4)
        # In the zone of an earlier call, a subnet is another parameter.
        yield self.refused(
            "IdempotentParameterMismatch",
            400,
            "run_instances",
            ClientToken="a",
            SubnetId=subnet["us-east-1a"],
            **LAUNCH,
        )
        yield self.refused(
            "InvalidSubnetID.NotFound", 400, "run_instances", ClientToken="a", SubnetId="subnet-0", **LAUNCH
        )

    @defer.inlineCallbacks
    def test_refused_launch(self):
        """A launch that EC2 has refused has used no token."""
        self.start_ec2(faults=Faults.parse("throttled,unavailable"))
        for code in ("RequestLimitExceeded", "Unavailable"):
            yield self.refused(code, 503, "run_instances", ClientToken="a", **LAUNCH)
        missing = {"SecurityGroupIds": ["sg-00000000"]}
        yield self.refused("InvalidGroup.NotFound", 400, "run_instances", ClientToken="a", **LAUNCH, **missing)
        yield self.launched(ClientToken="a")
        self.assertEqual(len(self.ec2.states()), 1)

    @defer.inlineCallbacks
    def test_forgotten_with_ec2(self):
        """Another EC2 knows nothing of the tokens of the one before."""
        self.start_ec2()
        first = yield self.launched(ClientToken="a")
        yield self.ec2.stop()
        self.ec2.start()
        second = yield self.launched(ClientToken="a")
        self.assertNotEqual(first[1], second[1])


class Numbers(FaultTestCase):
    @defer.inlineCallbacks
    def test_most(self):
        """As many as may be, where there is room."""
        self.start_ec2()
        answer = yield self.ask("run_instances", ImageId="ami-embedded", MinCount=2, MaxCount=5)
        ids = [instance["InstanceId"] for instance in answer["Instances"]]
        self.assertEqual(sorted(self.ec2.states()), sorted(ids))
        self.assertEqual(len(ids), 5)

    @defer.inlineCallbacks
    def test_nonsense(self):
        self.start_ec2()
        for least, most, words in (
            (1, 0, "Maximum instance count must be greater than zero"),
            (0, 1, "Minimum instance count must be greater than zero"),
            (-1, 1, "Minimum instance count must be greater than zero"),
            (3, 2, "Maximum instance count must not be smaller than the minimum"),
        ):
            counts = {"MinCount": least, "MaxCount": most, "ImageId": "ami-embedded"}
            answer = yield self.refused("InvalidParameterValue", 400, "run_instances", **counts)
            self.assertEqual(answer["Error"]["Message"], words)
        self.assertEqual(self.ec2.states(), {})


class UserData(FaultTestCase):
    @defer.inlineCallbacks
    def test_limit(self):
        """16,384 bytes before base64, whatever they are."""
        self.start_ec2()
        most = b"\0\xff" * 8192
        instance_id = yield self.launch(most)
        self.assertEqual(self.ec2.user_data(instance_id), most)
        answer = yield self.refused("InvalidUserData.Malformed", 400, "run_instances", UserData=most + b"x", **LAUNCH)
        self.assertEqual(answer["Error"]["Message"], "User data is limited to 16384 bytes")
        self.assertEqual(list(self.ec2.states()), [instance_id])

    @defer.inlineCallbacks
    def test_not_base64(self):
        """What is no base64 is still refused as moto does."""
        self.start_ec2()
        for text in ("#", "a", base64.b64encode(b"x" * 17000).decode() + "="):
            connection = yield self.raw("RunInstances", MinCount="1", MaxCount="1", UserData=text)
            yield self.until(lambda connection=connection: b"</Response>" in connection.data)
            self.assertIn(b"<Code>InvalidUserData.Malformed</Code>", connection.data)
        self.assertEqual(self.ec2.states(), {})
