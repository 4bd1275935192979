"""What the embedded EC2 has to give, as boto3 meets it."""

from __future__ import annotations

import threading
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.embedded import Faults
from tests.integration.faulty import LAUNCH, FaultTestCase

A, B = "us-east-1a", "us-east-1b"
NO_CAPACITY = "InsufficientInstanceCapacity"


def where(zone: str = "", market: str = "", kind: str = "t3.micro", **more: Any) -> dict[str, Any]:
    """What a launch asks for."""
    return {
        **LAUNCH,
        "InstanceType": kind,
        **({"Placement": {"AvailabilityZone": zone}} if zone else {}),
        **({"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}),
        **more,
    }


class Pools(FaultTestCase):
    @defer.inlineCallbacks
    def launched(self, **parameters: Any) -> Any:
        """The ids and the zones of the instances that are launched."""
        answer = yield self.ask("run_instances", **parameters)
        found = [(each["InstanceId"], each["Placement"]["AvailabilityZone"]) for each in answer["Instances"]]
        return [instance_id for instance_id, _ in found], [zone for _, zone in found]

    @defer.inlineCallbacks
    def test_taken_and_given_back(self):
        """Capacity is there again when its instance has ended, and not before."""
        self.start_ec2(faults=Faults.parse("capacity=t3.micro/us-east-1a/spot:1"), shutting_down=0)
        ids, _ = yield self.launched(**where(A, "spot"))
        answer = yield self.refused(NO_CAPACITY, 500, "run_instances", **where(A, "spot"))
        self.assertEqual(answer["Error"]["Message"], "There is no Spot capacity available that matches your request.")
        for elsewhere in (where(B, "spot"), where(A), where(A, "spot", "c7i.large")):
            yield self.launched(**elsewhere)
        yield self.until(lambda: self.kinds().count("running") == 4)
        self.ec2.faults.shutting_down = 1000.0
        yield self.ask("terminate_instances", InstanceIds=ids)
        yield self.refused(NO_CAPACITY, 500, "run_instances", **where(A, "spot"))
        self.ec2.faults.capacity.limit("t3.micro/us-east-1a/spot", 2)
        self.ec2.faults.shutting_down = 0.0
        second, _ = yield self.launched(**where(A, "spot"))
        yield self.refused(NO_CAPACITY, 500, "run_instances", **where(A, "spot"))
        yield self.ask("terminate_instances", InstanceIds=second)
        yield self.until_state(second[0], "terminated")
        yield self.launched(**where(A, "spot"))
        self.assertEqual(self.ec2.faults.hits, {NO_CAPACITY: 3})

    @defer.inlineCallbacks
    def test_on_demand(self):
        """The long text names the zones that have it; they do."""
        self.start_ec2(faults=Faults.parse("capacity=us-east-1a:0,capacity=us-east-1c:0,not-offered=us-east-1e"))
        told = []
        self.ec2.subscribe(lambda *what: told.append(what))
        answer = yield self.refused(NO_CAPACITY, 500, "run_instances", **where(A))
        message = answer["Error"]["Message"]
        self.assertIn("We currently do not have sufficient t3.micro capacity in the Availability Zone you", message)
        choices = message.rpartition(" or choosing ")[2].rstrip(".").split(", ")
        self.assertEqual(choices, [B, "us-east-1d", "us-east-1f"])
        self.assertEqual(told, [("", "fault", "InsufficientInstanceCapacity: t3.micro on-demand in us-east-1a")])
        _, zones = yield self.launched(**where())
        self.assertEqual(zones, [B])

    @defer.inlineCallbacks
    def test_most(self):
        """All that fit, of one call, into one zone."""
        self.start_ec2(faults=Faults.parse("capacity=us-east-1a:2,capacity=us-east-1b:3,capacity=t3.micro:4"))
        ids, zones = yield self.launched(**where(A, MinCount=1, MaxCount=10))
        self.assertEqual((len(ids), set(zones)), (2, {A}))
        yield self.refused(NO_CAPACITY, 500, "run_instances", **where(B, MinCount=3, MaxCount=10))
        ids, zones = yield self.launched(**where(MinCount=2, MaxCount=10))
        self.assertEqual((len(ids), set(zones)), (2, {B}))
        yield self.refused(NO_CAPACITY, 500, "run_instances", **where())
        self.assertEqual(len(self.ec2.states()), 4)

    @defer.inlineCallbacks
    def test_at_the_same_time(self):
        """Two calls do not get the same last place."""
        self.start_ec2(faults=Faults.parse("capacity=t3.micro:1"))
        another = threading.Event()
        waiting: list[Any] = []
        place = self.ec2.faults.capacity.place

        def slow(*args: Any) -> Any:
            waiting.append(args)
            if len(waiting) > 1:
                another.set()
            found = place(*args)
            another.wait(0.3)
            return found

        self.patch(self.ec2.faults.capacity, "place", slow)
        results = yield defer.DeferredList([self.launched(**where()) for _ in range(2)], consumeErrors=True)
        self.assertEqual(sorted(success for success, _ in results), [False, True])
        self.assertEqual(len(self.ec2.states()), 1)

    @defer.inlineCallbacks
    def test_subnets(self):
        """A subnet is full by its id, or with its zone; the zone of a call is that of its subnet."""
        self.start_ec2()
        answer = yield self.ask("describe_subnets")
        subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in answer["Subnets"]}
        self.ec2.faults.capacity.full(subnets[A]).full("us-east-1c").limit(B, 0)
        full = "InsufficientFreeAddressesInSubnet"
        answer = yield self.refused(full, 400, "run_instances", SubnetId=subnets[A], **LAUNCH)
        self.assertIn(f"not enough free addresses in subnet '{subnets[A]}'", answer["Error"]["Message"])
        nic = {"DeviceIndex": 0, "SubnetId": subnets[A]}
        yield self.refused(full, 400, "run_instances", NetworkInterfaces=[nic], **LAUNCH)
        yield self.refused(full, 400, "run_instances", SubnetId=subnets["us-east-1c"], **LAUNCH)
        yield self.refused(full, 400, "run_instances", **where(A))
        yield self.refused(NO_CAPACITY, 500, "run_instances", SubnetId=subnets[B], **LAUNCH)
        yield self.refused("InvalidSubnetID.NotFound", 400, "run_instances", SubnetId="subnet-0", **LAUNCH)
        _, zones = yield self.launched(**where())
        self.assertEqual(zones, ["us-east-1d"])

    @defer.inlineCallbacks
    def test_quotas_prices_and_offers(self):
        self.start_ec2(
            faults=Faults.parse("quota=spot:1,quota=on-demand:1,spot-price=*:0.005,not-offered=c7i.large/us-east-1a")
        )
        answer = yield self.refused("Unsupported", 400, "run_instances", **where(A, kind="c7i.large"))
        self.assertIn("Your requested instance type (c7i.large) is not supported", answer["Error"]["Message"])
        for price, code in (("0.001", "SpotMaxPriceTooLow"), ("0.005", "")):
            market = {"MarketType": "spot", "SpotOptions": {"MaxPrice": price}}
            asked = {**where(A), "InstanceMarketOptions": market}
            if code:
                yield self.refused(code, 400, "run_instances", **asked)
            else:
                yield self.launched(**asked)
        yield self.refused("MaxSpotInstanceCountExceeded", 400, "run_instances", **where(B, "spot"))
        yield self.launched(**where(B))
        yield self.refused("VcpuLimitExceeded", 400, "run_instances", **where(A))
        _, zones = yield self.launched_elsewhere()
        self.assertEqual(zones, ["eu-central-1a"])
        self.assertEqual(
            self.ec2.faults.hits,
            dict.fromkeys(
                ["Unsupported", "SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"], 1
            ),
        )

    def launched_elsewhere(self) -> Any:
        """In another region, with a quota of its own."""
        return self.launched(region="eu-central-1", **where())

    @defer.inlineCallbacks
    def test_token(self):
        """Who repeats a launch gets its instance though nothing is left; a refused one has used no token."""
        self.start_ec2(faults=Faults.parse("capacity=*:1"))
        first = yield self.launched(**where(ClientToken="a"))
        again = yield self.launched(**where(ClientToken="a"))
        self.assertEqual(first, again)
        yield self.refused(NO_CAPACITY, 500, "run_instances", **where(ClientToken="b"))
        self.ec2.faults.capacity.clear()
        yield self.launched(**where(ClientToken="b"))

    @defer.inlineCallbacks
    def test_other_calls(self):
        """Instances that other calls start take capacity, too, and are refused as a whole."""
        self.start_ec2(faults=Faults.parse("capacity=spot:1"))
        asked = {"LaunchSpecification": {"ImageId": "ami-embedded", "InstanceType": "t3.micro"}}
        yield self.ask("request_spot_instances", **asked)
        self.assertEqual(len(self.ec2.states()), 1)
        yield self.refused(NO_CAPACITY, 500, "request_spot_instances", **asked)
        yield self.refused(NO_CAPACITY, 500, "run_instances", **where(A, "spot"))

    @defer.inlineCallbacks
    def test_dry_run(self):
        """What only asks whether it may is not told that it cannot."""
        self.start_ec2(faults=Faults.parse("capacity=*:0"))
        yield self.refused("DryRunOperation", 412, "run_instances", DryRun=True, **LAUNCH)
