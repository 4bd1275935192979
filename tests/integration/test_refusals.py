"""Each way in which EC2 can refuse, or fail, a launch: what the person who waits for the build reads on its page."""

from __future__ import annotations

from typing import Any

from buildbot.plugins import schedulers, steps, util
from buildbot.process.results import EXCEPTION, RETRY
from buildbot.worker.base import AbstractWorker
from twisted.internet import defer

from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.embedded import Faults
from buildbot_ec2ud.fleet import region
from tests.support import FarmTestCase, configuration

#: By a name: a worker's arguments, the faults of EC2, whether the build is tried again, and what its page says.
WAYS: dict[str, tuple[dict[str, Any], str, int, tuple[str, ...]]] = {
    # Somebody's mistake: another try would not help.
    "subnet": (
        {"subnet_id": "subnet-00000000"},
        "",
        EXCEPTION,
        ("refused t3.micro on-demand in subnet-00000000: InvalidSubnetID.NotFound: ",),
    ),
    "group": (
        {"security_group_ids": ["sg-00000000"]},
        "",
        EXCEPTION,
        ("InvalidGroup.NotFound: The security group 'sg-00000000' does not exist",),
    ),
    "image": (
        {"ami": {"owners": ["self"], "name": "no-such-image-*"}},
        "",
        EXCEPTION,
        ("no instance: no available image fits: owners self; name 'no-such-image-*'",),
    ),
    "permission": (
        {},
        "unauthorized:RunInstances",
        EXCEPTION,
        ("UnauthorizedOperation: You are not authorized to perform this operation. ", "perform: ec2:RunInstances"),
    ),
    "snapshot": (
        {},
        "launch-failure=Client.InvalidSnapshot.NotFound",
        EXCEPTION,
        ("is terminated (Client.InvalidSnapshot.NotFound: ",),
    ),
    # Trouble that passes.
    "capacity": (
        {"instance_type": ["t3.nano", "t3.small"], "market": "spot-then-on-demand"},
        "capacity=t3.nano:0,capacity=t3.small:0",
        RETRY,
        (
            "refused t3.nano spot: ",
            "refused t3.small spot: ",
            "refused t3.nano on-demand: InsufficientInstanceCapacity: ",
            "refused t3.small on-demand: InsufficientInstanceCapacity: ",
        ),
    ),
    "price": (
        {"market": "spot", "max_spot_price": 0.01},
        "spot-price=t3.micro:0.5",
        RETRY,
        ("SpotMaxPriceTooLow: ", "0.01", "0.5"),
    ),
    "full-subnet": (
        {"placement": "a"},
        "full-subnet=us-east-1a",
        RETRY,
        ("InsufficientFreeAddressesInSubnet: ",),
    ),
    "trouble-at-ec2": ({}, "unavailable:RunInstances*1000", RETRY, ("Unavailable: The service is unavailable. ",)),
    "proxy": ({}, "html:RunInstances*1000", RETRY, ("the answer is a 'html', not EC2's",)),
    "clock": ({}, "wrong-date:RunInstances*1000", RETRY, ("RequestExpired: ", "clock")),
    "launch": ({}, "launch-failure=Server.InternalError", RETRY, ("is terminated (Server.InternalError: ",)),
    # Behind the others: calls are made slowly after it.
    "throttle": ({}, "throttled:RunInstances*1000", RETRY, ("RequestLimitExceeded: Request limit exceeded. ",)),
    # The last one: the fleet asks for nothing more on this market for a minute.
    "quota": ({}, "quota=on-demand:0", RETRY, ("VcpuLimitExceeded: ",)),
}


class Refusals(FarmTestCase):
    @defer.inlineCallbacks
    def test_ways(self) -> Any:
        """All of them: how the build ends, and the words on its page."""
        self.patch(query, "PATIENCE", 0.4)
        self.patch(region, "STOP_TIMEOUT", 1)  # what an unanswered launch has started is looked for
        # Nobody comes back while another is looked at.
        self.patch(AbstractWorker, "quarantine_timeout", 1000)
        self.start_ec2(shutting_down=0)  # so that no look meets an instance on its way
        workers = [self.worker(name, capacity_memory=0, **arguments) for name, (arguments, *_) in WAYS.items()]
        factory = util.BuildFactory([steps.ShellCommand(name="command", command=["true"])])
        builders = [util.BuilderConfig(name=name, workernames=[name], factory=factory) for name in WAYS]
        force = schedulers.ForceScheduler(name="force", builderNames=list(WAYS))
        yield self.start_master({**configuration(workers), "builders": builders, "schedulers": [force]})
        wrong = []
        for name, (_, faults, results, texts) in WAYS.items():
            self.ec2.faults = Faults.parse(faults) if faults else Faults()
            build = yield self.master.force_build(name, first_attempt=True)
            (log,) = (log for log in build.step("worker_preparation").logs if log.name == "ec2")
            said = log.text
            wrong += [f"{name}: not {results}: {build.results}"] if build.results != results else []
            wrong += [f"{name}: {text!r} is not in {said}" for text in texts if text not in said]
            self.assertTrue(log.complete)
        self.assertFalse(wrong, "\n".join(wrong))
        self.flush()
        yield self.until_gone()
