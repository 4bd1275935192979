"""What the embedded EC2 has to give, where it puts instances, and how it refuses them."""

from __future__ import annotations

import math
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import ErrorClass, classify
from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded.capacity import Capacity, Place
from buildbot_ec2ud.embedded.pools import Pool
from tests.unit.demands import SUBNETS, ZONES, alive, demand

A, B, C = ZONES
NO_CAPACITY = "InsufficientInstanceCapacity"


class PoolTests(SynchronousTestCase):
    def test_parse(self):
        """Parts are known by their form, whatever their order."""
        for text, pool in (
            ("t3.micro/us-east-1a/spot", Pool("t3.micro", "us-east-1a", "spot")),
            ("spot/t3.micro", Pool("t3.micro", "", "spot")),
            ("u-6tb1.112xlarge", Pool("u-6tb1.112xlarge")),
            ("us-gov-west-1b", Pool(zone="us-gov-west-1b")),
            ("us-west-2-lax-1a", Pool(zone="us-west-2-lax-1a")),
            ("on-demand", Pool(market="on-demand")),
            ("*", Pool()),
        ):
            self.assertEqual(Pool.parse(text), pool)
            self.assertEqual(Pool.parse(str(pool)), pool)

    def test_mistakes(self):
        for text in ("", "/", "t3", "us-east-1", "spot/spot", "t3.micro/c7i.large", "*/spot", "t3.micro/", "on_demand"):
            self.assertRaises(ValueError, Pool.parse, text)

    def test_covers(self):
        pool = Pool("t3.micro", "us-east-1a", "spot")
        for text in ("*", "t3.micro", "us-east-1a", "spot", "t3.micro/spot", "t3.micro/us-east-1a/spot"):
            self.assertTrue(Pool.parse(text).covers(pool), text)
        for text in ("t3.small", "us-east-1b", "on-demand", "t3.micro/on-demand", "t3.micro/us-east-1b/spot"):
            self.assertFalse(Pool.parse(text).covers(pool), text)


class Placing(SynchronousTestCase):
    def setUp(self):
        self.capacity = Capacity()

    def place(self, *wanted: Any, there: Any = (), **more: Any) -> Place:
        return self.capacity.place(demand(*wanted, **more), there)

    def refused(self, *wanted: Any, there: Any = (), **more: Any) -> _moto.EC2Error:
        return self.assertRaises(_moto.EC2Error, self.capacity.place, demand(*wanted, **more), there)

    def test_nothing_set(self):
        """There is no end of anything, and EC2 takes the first zone."""
        there = [alive(market=market) for market in ("spot", "on-demand")] * 1000
        self.assertEqual(self.place(there=there, most=1000), Place(A, 1000))
        self.assertEqual(self.place("t3.micro", B, "spot", there=there, max_price=0.0), Place(B, 1))

    def test_number(self):
        """As many as there is room for, and not fewer than are wanted at least."""
        self.capacity.limit("t3.micro", 5)
        there = [alive(), alive(zone=B, market="spot"), alive("c7i.large"), alive(region="eu-central-1")]
        self.assertEqual(self.place("t3.micro", A, there=there, most=10), Place(A, 3))
        self.assertEqual(self.place("t3.micro", A, there=there, least=3, most=3), Place(A, 3))
        self.assertEqual(self.refused("t3.micro", A, there=there, least=4, most=10).code, NO_CAPACITY)
        self.assertEqual(self.place("c7i.large", A, there=there, most=10), Place(A, 10))

    def test_every_limit(self):
        """A launch fits in all limits, the wide and the narrow."""
        self.capacity.limit("*", 3).limit("spot", 2).limit(f"t3.micro/{A}/spot", 1)
        spot = [alive(market="spot"), alive(zone=B, market="spot")]
        self.assertEqual(self.place("t3.micro", A, "spot", most=5), Place(A, 1))
        self.assertEqual(self.place("t3.micro", B, "spot", most=5), Place(B, 2))
        self.assertEqual(self.refused("t3.micro", C, "spot", there=spot).code, NO_CAPACITY)
        self.assertEqual(self.place("t3.micro", C, there=spot, most=5), Place(C, 1))
        self.assertEqual(self.refused("c7i.large", C, there=[*spot, alive()]).code, NO_CAPACITY)

    def test_more_than_there_is(self):
        """A limit below what is alive ends nothing, and lets nothing in."""
        self.capacity.limit("*", 1)
        self.assertEqual(self.refused(there=[alive()] * 3).code, NO_CAPACITY)

    def test_zone(self):
        """Where no zone is named, EC2 takes the first with room for all, else the one with most."""
        self.capacity.limit(A, 1).limit(B, 3).limit(C, 2)
        for most, place in ((1, Place(A, 1)), (2, Place(B, 2)), (3, Place(B, 3)), (9, Place(B, 3))):
            self.assertEqual(self.place(most=most), place)
        self.assertEqual(self.place(there=[alive()]), Place(B, 1))
        self.capacity.full(B).not_offered(A)
        self.assertEqual(self.place(most=9), Place(C, 2))
        self.assertEqual(self.refused(least=3, most=9).code, NO_CAPACITY)

    def test_changed(self):
        self.capacity.limit("spot", 0).quota("spot", 0).price("*", 1.0)
        self.capacity.limit("spot", None).quota("spot", None).price("*", None)
        self.assertEqual(self.place("t3.micro", A, "spot", max_price=0.1), Place(A, 1))
        self.capacity.limit("spot", 0).full(A).not_offered("t3.micro").clear()
        self.assertEqual(self.place("t3.micro", A, "spot"), Place(A, 1))

    def test_no_zones(self):
        """A region without zones to choose from is moto's affair; a quota holds all the same."""
        self.capacity.limit("*", 0).quota("on-demand", 2)
        self.assertEqual(self.place(zones=(), most=5, subnets={}), Place("", 2))

    def test_quota(self):
        """A quota is of one account and region, and of one market."""
        self.capacity.quota("spot", 2).quota("on-demand", 1)
        spot = alive(zone=B, market="spot")
        self.assertEqual(self.place("c7i.large", A, "spot", there=[spot], most=5), Place(A, 1))
        others = [alive(market="spot", account="1"), alive(market="spot", region="eu-central-1")] * 3
        self.assertEqual(self.place("c7i.large", A, "spot", there=others, most=5), Place(A, 2))
        error = self.refused("c7i.large", C, "spot", there=[spot, spot])
        self.assertEqual(
            (error.code, error.message, error.status),
            ("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded", 400),
        )
        error = self.refused(there=[alive()])
        self.assertEqual((error.code, error.status), ("VcpuLimitExceeded", 400))
        self.assertTrue(error.message.startswith("You have requested more vCPU capacity than your current vCPU limit"))

    def test_capacity_error(self):
        """An error of the server, as EC2 has it, with its hints at other zones."""
        self.capacity.limit(f"{A}/on-demand", 0).limit(B, 0).limit("spot", 0)
        error = self.refused("t3.micro", A)
        self.assertEqual((error.code, error.status), (NO_CAPACITY, 500))
        self.assertEqual(
            error.message,
            "We currently do not have sufficient t3.micro capacity in the Availability Zone you requested (us-east-1a). "
            "Our system will be working on provisioning additional capacity. You can currently get t3.micro capacity by "
            "not specifying an Availability Zone in your request or choosing us-east-1c.",
        )
        self.capacity.limit("t3.micro", 0)
        for wanted, words in (
            (("t3.micro", A), "(us-east-1a). Our system will be working on provisioning additional capacity."),
            (("t3.micro",), "volumes. Our system will be working on provisioning additional capacity."),
            (("t3.micro", A, "spot"), "There is no Spot capacity available that matches your request."),
            (("t3.micro", "", "spot"), "There is no Spot capacity available that matches your request."),
        ):
            error = self.refused(*wanted)
            self.assertEqual((error.code, error.status), (NO_CAPACITY, 500))
            self.assertTrue(error.message.endswith(words), error.message)

    def test_not_offered(self):
        self.capacity.not_offered(f"t3.micro/{A}").not_offered("c7i.large")
        error = self.refused("t3.micro", A)
        self.assertEqual((error.code, error.status), ("Unsupported", 400))
        self.assertEqual(
            error.message,
            "Your requested instance type (t3.micro) is not supported in your requested Availability Zone (us-east-1a). "
            "Please retry your request by not specifying an Availability Zone or choosing us-east-1b, us-east-1c.",
        )
        self.assertEqual(self.place("t3.micro"), Place(B, 1))
        for zone in ("", C):
            error = self.refused("c7i.large", zone)
            self.assertEqual(error.code, "Unsupported")
            self.assertNotIn("choosing", error.message)

    def test_full(self):
        """By the id of a subnet, or for all subnets of a zone."""
        self.capacity.full(SUBNETS[A]).full(B)
        for zone in (A, B):
            error = self.refused("t3.micro", zone)
            self.assertEqual((error.code, error.status), ("InsufficientFreeAddressesInSubnet", 400))
            self.assertEqual(
                error.message,
                f"There are not enough free addresses in subnet '{SUBNETS[zone]}' to satisfy the requested number of "
                "instances.",
            )
        self.assertEqual(self.place("t3.micro"), Place(C, 1))
        self.capacity.full(C)
        self.assertEqual(self.refused("t3.micro").code, "InsufficientFreeAddressesInSubnet")

    def test_price(self):
        """The highest price that is set for a pool; who names none pays it."""
        self.capacity.price("spot", 0.002).price(A, 0.0031)
        error = self.refused("t3.micro", A, "spot", max_price=0.003)
        self.assertEqual((error.code, error.status), ("SpotMaxPriceTooLow", 400))
        self.assertEqual(
            error.message,
            "Your Spot request price of 0.003 is lower than the minimum required Spot request fulfillment price of "
            "0.0031.",
        )
        self.assertEqual(self.place("t3.micro", A, "spot", max_price=0.0031), Place(A, 1))
        self.assertEqual(self.place("t3.micro", A, "spot"), Place(A, 1))
        self.assertEqual(self.place("t3.micro", "", "spot", max_price=0.003), Place(B, 1))
        self.assertEqual(self.refused("t3.micro", "", "spot", max_price=0.001).code, "SpotMaxPriceTooLow")

    def test_which_refusal(self):
        """Of several zones, the refusal is of one that would have had to be asked again."""
        self.capacity.full(A).price(B, 0.1).limit(C, 0)
        self.assertEqual(self.refused("t3.micro", "", "spot", max_price=0.01).code, NO_CAPACITY)

    def test_known_codes(self):
        """What is refused here is what the package tries elsewhere, or waits for."""
        codes = {
            NO_CAPACITY: ErrorClass.NO_CAPACITY,
            "Unsupported": ErrorClass.NO_CAPACITY,
            "InsufficientFreeAddressesInSubnet": ErrorClass.NO_CAPACITY,
            "SpotMaxPriceTooLow": ErrorClass.NO_CAPACITY,
            "MaxSpotInstanceCountExceeded": ErrorClass.QUOTA,
            "VcpuLimitExceeded": ErrorClass.QUOTA,
        }
        self.assertEqual({code: classify(code, 500 if code == NO_CAPACITY else 400) for code in codes}, codes)

    def test_mistakes(self):
        for wrong, words in (
            (lambda: self.capacity.limit("zzz", 1), "'zzz' is no instance type"),
            (lambda: self.capacity.limit("spot", -1), "not a number of instances: -1"),
            (lambda: self.capacity.limit("spot", 1.5), "not a number of instances: 1.5"),
            (lambda: self.capacity.quota("t3.micro", 1), "'t3.micro' is no market"),
            (lambda: self.capacity.quota("spot", -1), "not a number of instances: -1"),
            (lambda: self.capacity.price("spot", -0.1), "not a price: -0.1"),
            (lambda: self.capacity.price("spot", math.nan), "not a price"),
            (lambda: self.capacity.not_offered("zzz"), "'zzz' is no instance type"),
            (lambda: self.capacity.full("t3.micro"), "'t3.micro' is no subnet and no availability zone"),
            (lambda: self.capacity.full(f"{A}/spot"), "is no subnet"),
            (lambda: self.capacity.full("*"), "is no subnet"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, wrong)))
        self.assertEqual(self.place("t3.micro", A, "spot", max_price=0.0), Place(A, 1))
