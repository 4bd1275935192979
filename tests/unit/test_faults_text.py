"""How the faults of the embedded EC2 are written."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import Faults, _moto
from buildbot_ec2ud.embedded.faults import SETTINGS, describe
from buildbot_ec2ud.embedded.kinds import KINDS, LAUNCH_FAILURES
from tests.unit.demands import alive, demand


class Text(SynchronousTestCase):
    """``Faults.parse``."""

    def test_all(self):
        faults = Faults.parse(
            "throttle, lost-reply:RunInstances,html:DescribeInstances*3,reset*2,visible-after=5,latency=0.25,hang-body"
        )
        self.assertEqual((faults.throttle, faults.visible_after, faults.latency), (True, 5.0, 0.25))
        self.assertEqual(
            faults.waiting,
            [
                ("lost-reply", "RunInstances", 1),
                ("html", "DescribeInstances", 3),
                ("reset", "", 2),
                ("hang-body", "", 1),
            ],
        )

    def test_settings(self):
        faults = Faults.parse("pending=2,shutting-down=0,vanish-after=60,notice=5.5")
        self.assertEqual(
            (faults.pending, faults.shutting_down, faults.vanish_after, faults.notice), (2.0, 0.0, 60.0, 5.5)
        )
        faults = Faults.parse("throttle")
        self.assertEqual(
            (faults.pending, faults.shutting_down, faults.vanish_after, faults.notice), (None, None, 3600.0, 120.0)
        )

    def test_of_instances(self):
        faults = Faults.parse(
            "launch-failure=Client.VolumeLimitExceeded*2,interruption=20,launch-failure=Server.InternalError,"
            "interruption=1.5*3"
        )
        self.assertEqual(
            faults.waiting,
            [
                ("launch-failure", "Client.VolumeLimitExceeded", 2),
                ("launch-failure", "Server.InternalError", 1),
                ("interruption", "20", 1),
                ("interruption", "1.5", 3),
            ],
        )
        for code in LAUNCH_FAILURES:
            self.assertEqual(Faults.parse(f"launch-failure={code}").take_launch_failure().code, code)

    def refusal(self, faults: Faults, there: list[Any], *wanted: Any, **more: Any) -> str:
        """The code with which a launch is refused; empty when it is not."""
        try:
            faults.capacity.place(demand(*wanted, **more), there)
        except _moto.EC2Error as error:
            return error.code
        return ""

    def test_capacity(self):
        spot, on_demand = ("t3.micro", "us-east-1a", "spot"), ("t3.micro", "us-east-1a", "on-demand")
        none, elsewhere = "InsufficientInstanceCapacity", ("t3.micro", "us-east-1b", "spot")
        for text, there, wanted, code in (
            ("capacity=t3.micro/us-east-1a/spot:0", [], spot, none),
            ("capacity=t3.micro/us-east-1a/spot:0", [], on_demand, ""),
            ("capacity=t3.micro/us-east-1a/spot:0", [], elsewhere, ""),
            ("capacity=spot:1", [], elsewhere, ""),
            ("capacity=spot:1", [spot], elsewhere, none),
            ("capacity=*:1", [on_demand], spot, none),
            ("capacity=us-east-1b:0,capacity=spot:0", [], elsewhere, none),
            ("capacity=us-east-1b:0,capacity=spot:0", [], on_demand, ""),
            ("quota=spot:1,quota=on-demand:0", [spot], spot, "MaxSpotInstanceCountExceeded"),
            ("quota=spot:1,quota=on-demand:0", [], on_demand, "VcpuLimitExceeded"),
            ("not-offered=t3.micro/us-east-1a,not-offered=c7i.large", [], spot, "Unsupported"),
            ("not-offered=t3.micro/us-east-1a,not-offered=c7i.large", [], elsewhere, ""),
            ("full-subnet=us-east-1a,full-subnet=subnet-1", [], spot, "InsufficientFreeAddressesInSubnet"),
            ("full-subnet=us-east-1a", [], elsewhere, ""),
        ):
            there = [alive(*instance) for instance in there]
            self.assertEqual(self.refusal(Faults.parse(text), there, *wanted), code, text)

    def test_price(self):
        spot = ("t3.micro", "us-east-1a", "spot")
        faults = Faults.parse("spot-price=t3.micro:0.003,spot-price=c7i.large:0.09")
        self.assertEqual(self.refusal(faults, [], *spot, max_price=0.0029), "SpotMaxPriceTooLow")
        self.assertEqual(self.refusal(faults, [], *spot, max_price=0.003), "")
        self.assertEqual(self.refusal(faults, [], *spot), "")

    def test_each_kind(self):
        for name in KINDS:
            faults = Faults.parse(f"{name}:RunInstances*7")
            self.assertEqual(faults.waiting, [(name, "RunInstances", 7)])
            self.assertEqual((faults.throttle, faults.visible_after, faults.latency), (False, 0.0, 0.0))

    def test_described(self):
        """What is described is what is understood, all of it."""
        lines = [line.split()[0] for line in describe().splitlines() if line.startswith("  ")]
        self.assertEqual(lines, [*KINDS, *SETTINGS])
        for name in lines:
            for place, value in (
                ("SECONDS", "1.5"),
                ("POOL", "t3.micro/spot"),
                ("*N", "*2"),
                (":N", ":2"),
                ("MARKET", "spot"),
                ("PRICE", "0.1"),
                ("SUBNET", "subnet-1"),
                ("CODE", "Server.InternalError"),
            ):
                name = name.replace(place, value)
            self.assertFalse([word for word in name.replace(":", "=").split("=") if word.isupper()], name)
            Faults.parse(name)
        self.assertLessEqual(max(map(len, describe().splitlines())), 79)

    def test_mistakes(self):
        for text, words in (
            ("", "an empty part in ''"),
            ("reset,,html", "an empty part in 'reset,,html'"),
            ("reset,", "an empty part"),
            ("htlm", "unknown kind of fault 'htlm'; did you mean html?"),
            ("Reset", "did you mean reset?"),
            ("zzz", "known are throttled, server-fault, "),
            ("zzz", "throttle, visible-after=SECONDS, latency=SECONDS"),
            ("zzz", "launch-failure=CODE*N, interruption=SECONDS*N, notice=SECONDS"),
            ("pending", "not pending=SECONDS: 'pending'"),
            ("shutting-down=-1", "not shutting-down=SECONDS: 'shutting-down=-1'"),
            ("notice=*2", "not notice=SECONDS"),
            ("pending=1,pending=1", "pending is given twice"),
            ("capacity", "not capacity=POOL:N: 'capacity'"),
            ("capacity=", "not capacity=POOL:N: 'capacity='"),
            ("capacity=5", "not capacity=POOL:N: 'capacity=5'"),
            ("capacity=:5", "not capacity=POOL:N: 'capacity=:5'"),
            ("capacity=spot:", "not capacity=POOL:N: 'capacity=spot:'"),
            ("capacity=spot:-1", "not capacity=POOL:N: 'capacity=spot:-1'"),
            ("capacity=spot:1.5", "not capacity=POOL:N: 'capacity=spot:1.5'"),
            ("capacity=spot:1,capacity=spot:2", "capacity=spot is given twice"),
            ("capacity=Spot:1", "'Spot' is no instance type, availability zone or market (on-demand, spot): 'capac"),
            ("capacity=spot/:1", "'' is no instance type, availability zone or market"),
            ("capacity=spot/on-demand:1", "spot and on-demand in one pool: 'capacity=spot/on-demand:1'"),
            ("capacity=t3.micro/*:1", "'*' is no instance type"),
            ("quota=t3.micro:1", "'t3.micro' is no market; there are on-demand, spot: 'quota=t3.micro:1'"),
            ("quota=spot", "not quota=MARKET:N: 'quota=spot'"),
            ("spot-price=0.1", "not spot-price=POOL:PRICE: 'spot-price=0.1'"),
            ("spot-price=*:-1", "not spot-price=POOL:PRICE: 'spot-price=*:-1'"),
            ("spot-price=*:$1", "not spot-price=POOL:PRICE"),
            ("not-offered=", "not not-offered=POOL: 'not-offered='"),
            ("not-offered=t3", "'t3' is no instance type"),
            ("full-subnet=us-east-1", "'us-east-1' is no"),
            ("full-subnet=spot", "'spot' is no subnet and no availability zone: 'full-subnet=spot'"),
            ("launch-failure=", "not launch-failure=CODE*N: 'launch-failure='"),
            ("launch-failure=InternalError", "'InternalError'; did you mean Server.InternalError?: 'launch-failure="),
            (
                "launch-failure=Server.InternalError*0",
                "launch-failure is to hit 0 instances: not a count above 0: 'launch-failure=S",
            ),
            ("launch-failure=Server.InternalError*x", "not a count of instances in 'launch-failure=Server.Int"),
            ("interruption=x", "not interruption=SECONDS*N: 'interruption=x'"),
            ("interruption=1*0", "interruption is to hit 0 instances"),
            ("throttle:RunInstances", "unknown kind of fault 'throttle'; did you mean throttled?"),
            ("reset:", "no action after the colon in 'reset:'"),
            ("reset:*2", "no action after the colon in 'reset:*2'"),
            ("reset:RunInstance", "unknown action 'RunInstance'; did you mean RunInstances?"),
            ("reset:RunInstances:2", "unknown action 'RunInstances:2'"),
            ("reset:zzz", "unknown action 'zzz'"),
            ("reset*", "not a count of calls in 'reset*': ''"),
            ("reset*two", "not a count of calls in 'reset*two': 'two'"),
            ("reset*-1", "not a count of calls"),
            ("reset*1.5", "not a count of calls"),
            ("reset*²", "not a count of calls"),
            ("reset*2:RunInstances", "not a count of calls in 'reset*2:RunInstances'"),
            ("reset*0", "reset is to hit 0 calls"),
            ("throttle=1", "throttle has no value: 'throttle=1'"),
            ("latency", "not latency=SECONDS: 'latency'"),
            ("latency=", "not latency=SECONDS: 'latency='"),
            ("latency=1s", "not latency=SECONDS: 'latency=1s'"),
            ("latency=-1", "not latency=SECONDS: 'latency=-1'"),
            ("latency=nan", "not latency=SECONDS"),
            ("visible-after=inf", "not visible-after=SECONDS: 'visible-after=inf'"),
            ("visible_after=5", "unknown setting 'visible_after'; did you mean visible-after?"),
            ("zzz=1", "unknown setting 'zzz'; known are throttle, visible-after=SECONDS, latency=SECONDS"),
            ("reset=2", "only settings have a value: 'reset=2'"),
            ("reset:RunInstances=2", "only settings have a value"),
            ("latency=1,reset,latency=2", "latency is given twice"),
            ("throttle,throttle", "throttle is given twice"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, Faults.parse, text)))
