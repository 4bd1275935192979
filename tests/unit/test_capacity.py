"""What EC2 had no capacity for is not asked for again for a while, by any worker of the region."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.fleet.capacity import LOST_BUILDS, MEMORY, QUOTA_PAUSE, Capacity
from buildbot_ec2ud.fleet.offer import Offer
from tests.unit.fleets import ENDPOINT, FleetTestCase, instance, refusal

NONE = "InsufficientInstanceCapacity"


def offer(kind: str | None = "c7i.large", subnet: str | None = None, market: str = "on-demand", **more: Any) -> Offer:
    return Offer(kind, subnet, market, {"InstanceType": kind, **more})


class OfferTests(SynchronousTestCase):
    def test_pool(self) -> None:
        """Capacity is that of a type, in a place, on a market."""
        zone = {"Placement": {"AvailabilityZone": "us-east-1a"}}
        pools = [
            offer().pool,
            offer("c6i.large").pool,
            offer(subnet="subnet-1").pool,
            offer(**zone).pool,
            offer(market="spot").pool,
        ]
        self.assertEqual(len(set(pools)), 5)
        self.assertEqual(offer(UserData="x").pool, offer(UserData="y").pool)

    def test_text(self) -> None:
        self.assertEqual(str(offer()), "c7i.large on-demand")
        self.assertEqual(str(offer(subnet="subnet-1", market="spot")), "c7i.large spot in subnet-1")
        self.assertEqual(str(offer(Placement={"AvailabilityZone": "us-east-1a"})), "c7i.large on-demand in us-east-1a")
        self.assertEqual(str(offer(None)), "the instance type of the launch template on-demand")


class CapacityTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.capacity = Capacity(self.clock)

    def test_nothing_known(self) -> None:
        self.assertIsNone(self.capacity.why_not(offer()))

    def test_remembered(self) -> None:
        """For as long as it is worth remembering, with what EC2 said."""
        self.capacity.refused(offer(), refusal(NONE))
        self.clock.advance(60)
        self.assertEqual(self.capacity.why_not(offer()), f"{NONE}: no (60 s ago; asked for again in 120 s)")
        for other in (offer("c6i.large"), offer(subnet="subnet-1"), offer(market="spot")):
            self.assertIsNone(self.capacity.why_not(other))
        self.clock.advance(MEMORY - 60)
        self.assertIsNone(self.capacity.why_not(offer()))

    def test_configured(self) -> None:
        self.capacity = Capacity(self.clock, 10)
        self.capacity.refused(offer(), refusal(NONE))
        self.clock.advance(9.9)
        self.assertIsNotNone(self.capacity.why_not(offer()))
        self.clock.advance(0.1)
        self.assertIsNone(self.capacity.why_not(offer()))

    def test_success(self) -> None:
        """Success is remembered better."""
        for error in (refusal(NONE), refusal("VcpuLimitExceeded")):
            self.capacity.refused(offer(), error)
            self.capacity.succeeded(offer())
            self.assertIsNone(self.capacity.why_not(offer()))

    def test_quota(self) -> None:
        """A quota holds for all offers on its market, and not for another market's."""
        self.capacity.refused(offer(), refusal("VcpuLimitExceeded"))
        for same in (offer(), offer("c6i.large"), offer(subnet="subnet-1")):
            self.assertIn("VcpuLimitExceeded", self.capacity.why_not(same) or "")
            self.assertTrue(self.capacity.quota_used_up(same))
        self.assertIsNone(self.capacity.why_not(offer(market="spot")))
        self.clock.advance(QUOTA_PAUSE)
        self.assertIsNone(self.capacity.why_not(offer()))
        self.assertFalse(self.capacity.quota_used_up(offer()))

    def test_other_errors(self) -> None:
        """What says nothing of capacity is not remembered."""
        for code in ("InvalidAMIID.NotFound", "RequestLimitExceeded", "AuthFailure", "InternalError"):
            self.capacity.refused(offer(), refusal(code))
            self.assertIsNone(self.capacity.why_not(offer()))

    def test_lost_builds(self) -> None:
        self.capacity.lost({1, 2})
        self.assertTrue(self.capacity.has_lost({2, 7}))
        self.assertFalse(self.capacity.has_lost({7}))
        self.assertFalse(self.capacity.has_lost(set()))

    def test_lost_builds_do_not_pile_up(self) -> None:
        """The oldest are forgotten, when there are very many; one that was lost again is not old."""
        self.capacity.lost({1, 2})
        self.capacity.lost(set(range(10, 10 + LOST_BUILDS - 2)))
        self.capacity.lost({1})
        self.capacity.lost({3})
        self.assertEqual([self.capacity.has_lost({request}) for request in (1, 2, 3)], [True, False, True])


class Walking(FleetTestCase):
    """A launch walks through its offers."""

    SIX = [
        offer(kind, subnet, market)
        for market in ("spot", "on-demand")
        for kind, subnet in (("c7i.large", "subnet-a"), ("c7i.large", "subnet-b"), ("c6i.large", "subnet-a"))
    ]

    def setUp(self) -> None:
        super().setUp()
        self.offers = [Offer(o.instance_type, o.subnet_id, o.market, {"Number": n}) for n, o in enumerate(self.SIX)]

    def walk(self, *answers: Any) -> defer.Deferred[Any]:
        """Launch, each call answered: by a code, or an instance."""
        launched = self.launch(self.offers)
        for answer in answers:
            call = self.ec2.last("run")
            call.fail(refusal(answer)) if isinstance(answer, str) else call.answer(answer)
        return launched

    def numbers(self) -> list[int]:
        return [call.args[0]["Number"] for call in self.ec2.made("run")]

    def test_sixth_of_six(self) -> None:
        """The sixth is found in the same moment, and the next worker goes straight to it."""
        walked = self.walk(
            NONE, "InsufficientFreeAddressesInSubnet", "Unsupported", "UnfulfillableCapacity", NONE, instance("i-1")
        )
        self.assertEqual(self.successResultOf(walked).instance_id, "i-1")
        self.assertEqual(self.numbers(), [0, 1, 2, 3, 4, 5])
        self.assertEqual(self.successResultOf(self.walk(instance("i-2"))).instance_id, "i-2")
        self.assertEqual(self.numbers(), [0, 1, 2, 3, 4, 5, 5])
        self.assertEqual(self.clock.seconds(), 0)

    def test_tokens(self) -> None:
        """Each offer of each launch is a call of its own to EC2."""
        self.walk(NONE, "SpotMaxPriceTooLow", instance("i-1"))
        self.walk(instance("i-2"))
        tokens = [call.args[0]["ClientToken"] for call in self.ec2.made("run")]
        self.assertEqual(len(set(tokens)), 4)

    def test_all_known(self) -> None:
        """When all are known to have none, EC2 is not asked; the reasons are told, and after a while it is asked again."""
        self.failureResultOf(self.walk(*[NONE] * 6), EC2CallError)
        self.clock.advance(30)
        failure = self.failureResultOf(self.walk(), EC2CallError).value
        self.assertEqual(len(self.ec2.made("run")), 6)
        self.assertIs(failure.error_class, ErrorClass.NO_CAPACITY)
        self.assertIn(
            f"c7i.large spot in subnet-a: {NONE}: no (30 s ago; asked for again in 150 s); c7i.large spot in subnet-b: ",
            str(failure),
        )
        self.assertEqual([event.kind for event in self.events][-6:], ["skipped"] * 6)
        self.clock.advance(MEMORY - 30)
        self.assertEqual(self.successResultOf(self.walk(instance("i-1"))).instance_id, "i-1")
        self.assertEqual(self.numbers()[-1], 0)

    def test_quota(self) -> None:
        """After a quota, only offers of another market are asked for."""
        walked = self.walk("MaxSpotInstanceCountExceeded", instance("i-1"))
        self.assertEqual(self.successResultOf(walked).instance_id, "i-1")
        self.assertEqual(self.numbers(), [0, 3])

    def test_quotas(self) -> None:
        """When all are used up, each is told once; nothing is asked until some time has passed."""
        failure = self.failureResultOf(self.walk("MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"), EC2CallError)
        self.assertEqual(str(failure.value), "spot: MaxSpotInstanceCountExceeded: no; on-demand: VcpuLimitExceeded: no")
        self.failureResultOf(self.walk(), EC2CallError)
        self.assertEqual(self.numbers(), [0, 3])
        self.clock.advance(QUOTA_PAUSE)
        self.walk()
        self.assertEqual(self.numbers(), [0, 3, 0])

    def test_mistake(self) -> None:
        """A mistake of the configuration stops the walk."""
        failure = self.failureResultOf(self.walk(NONE, "InvalidSubnetID.NotFound"), EC2CallError).value
        self.assertEqual((str(failure), self.numbers()), ("InvalidSubnetID.NotFound: no", [0, 1]))

    def test_another_worker(self) -> None:
        """What one worker learns, all of the region know; those of another account do not."""
        self.failureResultOf(self.walk(*[NONE] * 6), EC2CallError)
        self.failureResultOf(self.fleet.launch("another", "launch-2", self.offers), EC2CallError)
        self.assertEqual(len(self.ec2.made("run")), 6)
        self.get_fleet("us-east-1", ENDPOINT, "OTHER", "other").launch("w", "launch-3", self.offers)
        self.assertEqual(len(self.ec2.made("run")), 7)

    def test_interrupted(self) -> None:
        """A pool that EC2 has taken an instance back from is remembered too; one whose instance ended otherwise is not."""
        for number, (code, remembered) in enumerate(
            (
                ("Server.SpotInstanceTermination", True),
                ("Server.SpotInstanceShutdown", True),
                ("Server.InsufficientInstanceCapacity", True),
                ("Client.UserInitiatedShutdown", False),
                ("Server.InternalError", False),
            )
        ):
            self.clock.advance(MEMORY)
            self.walk(instance(f"i-{number}", "running"))
            self.pump(2)
            self.ec2.last("look").answer(instance(f"i-{number}", "shutting-down", code, "bye"))
            walked = self.walk()
            self.assertEqual(self.numbers()[-1] != 0, remembered, code)
            self.ec2.last("run").fail(refusal("InvalidAMIID.NotFound"))
            self.failureResultOf(walked, EC2CallError)
            self.pump(10)
            self.ec2.last("look").answer(instance(f"i-{number}", "terminated", code, "bye"))
