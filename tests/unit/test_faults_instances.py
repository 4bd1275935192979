"""What happens to the embedded EC2's instances over time, by a clock that the test turns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import Faults, _moto
from buildbot_ec2ud.embedded._hooks import Hooks
from buildbot_ec2ud.embedded.instances import Instances

PLAIN = {"instance_type": "t3.micro", "is_instance_type_default": False, "region_name": "us-east-1"}


class Reactor(Clock):
    """A clock that is in the only thread there is."""

    def callFromThread(self, function: Any, *args: Any) -> None:
        function(*args)


class OverTime(SynchronousTestCase):
    def setUp(self):
        _moto.reset()
        self.addCleanup(_moto.reset)
        self.clock = Reactor()
        self.patch(time, "time", lambda: 1767225600.0 + self.clock.seconds())  # 2026-01-01 00:00:00 UTC
        self.faults = Faults()
        self.told: list[tuple[float, str, str]] = []
        self.instances = Instances(
            self.clock,
            lambda: self.faults,
            10.0,
            20.0,
            lambda _, what, details: self.told.append((self.clock.seconds(), what, details)),
        )
        self.instances.start(Path(self.mktemp()), "http://127.0.0.1:9")
        self.addCleanup(self.instances.stop)
        hooks = Hooks(
            launched=self.instances.made,
            ending=self.instances.ending,
            started=self.instances.started,
            console=self.instances.console,
            launching=lambda call, launch: launch(),
            placing=lambda demand: ("", demand.most),
            visible=self.instances.visible,
        )
        hooks.install()
        self.addCleanup(hooks.remove)
        self.backend = _moto.get_backend("ec2")["123456789012"]["us-east-1"]

    def launch(self, count: int = 1, **more: Any) -> list[Any]:
        return self.backend.run_instances("ami-embedded", count, "", [], **{**PLAIN, **more}).instances

    def spot(self) -> Any:
        (instance,) = self.launch(instance_market_options="spot")
        return instance

    def reasons(self, instance: Any) -> tuple[str, str, str]:
        return instance.state_reason.code, instance.state_reason.message, instance._reason

    def test_times(self):
        """A launch and a termination take as long as the EC2 has it, unless the faults say otherwise."""
        for pending, shutting_down in ((10.0, 20.0), (3.0, 4.0)):
            self.told.clear()
            start = self.clock.seconds()
            (instance,) = self.launch()
            self.clock.pump([1.0] * 15)
            self.backend.terminate_instances([instance.id])
            self.clock.pump([1.0] * 20)
            self.assertEqual(
                [(now - start, what) for now, what, _ in self.told],
                [
                    (0.0, "pending"),
                    (pending, "running"),
                    (15.0, "shutting-down"),
                    (15.0 + shutting_down, "terminated"),
                ],
            )
            self.faults.pending, self.faults.shutting_down = 3.0, 4.0

    def test_no_time(self):
        """Zero is a time, too."""
        self.faults.pending = self.faults.shutting_down = 0.0
        (instance,) = self.launch()
        self.clock.advance(0.0)
        self.assertEqual(_moto.state_of(instance), "running")
        self.backend.terminate_instances([instance.id])
        self.clock.advance(0.0)
        self.assertEqual(_moto.state_of(instance), "terminated")

    def test_vanishes(self):
        """A terminated instance is found for an hour, and then nowhere; the others of its reservation are."""
        first, second = self.launch(2)
        self.backend.terminate_instances([first.id])
        self.clock.advance(20.0)
        self.clock.advance(3599.0)
        self.assertEqual([instance.id for instance in _moto.instances()], [first.id, second.id])
        self.clock.advance(1.0)
        self.assertEqual([instance.id for instance in _moto.instances()], [second.id])
        self.assertRaises(_moto.InvalidInstanceIdError, self.backend.terminate_instances, [first.id])
        self.faults.vanish_after = 5.0
        self.backend.terminate_instances([second.id])
        self.clock.pump([20.0, 4.9])
        self.assertEqual(len(list(_moto.instances())), 1)
        self.clock.advance(0.1)
        self.assertEqual((list(_moto.instances()), dict(self.backend.reservations)), ([], {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_launch_failure(self):
        """The instance never runs; it ends with the reason that was given, and the next does well."""
        self.faults.fail_launches("Server.InternalError", message="Client.VolumeLimitExceeded: Volume limit exceeded")
        (bad,) = self.launch()
        (good,) = self.launch()
        self.clock.advance(9.9)
        self.assertEqual([_moto.state_of(each) for each in (bad, good)], ["pending", "pending"])
        self.assertEqual(bad.state_reason.code, "")
        self.clock.advance(0.1)
        self.assertEqual([_moto.state_of(each) for each in (bad, good)], ["shutting-down", "running"])
        self.clock.advance(20.0)
        self.assertEqual([_moto.state_of(each) for each in (bad, good)], ["terminated", "running"])
        message = "Client.VolumeLimitExceeded: Volume limit exceeded"
        self.assertEqual(self.reasons(bad), ("Server.InternalError", message, message))
        self.assertEqual(self.faults.hits, {"launch-failure": 1})
        self.assertIn((10.0, "fault", f"launch-failure of {bad.id}: {message}"), self.told)

    def test_launch_failure_too_late(self):
        """Who terminates an instance that would have failed is the reason of its end."""
        self.faults.fail_launches("Server.InternalError")
        (instance,) = self.launch()
        self.backend.terminate_instances([instance.id])
        self.clock.pump([10.0, 20.0])
        self.assertEqual(_moto.state_of(instance), "terminated")
        self.assertEqual(instance.state_reason.code, "Client.UserInitiatedShutdown")

    def test_interrupted(self):
        """Advice, then notice, then the end, each at its time."""
        instance = self.spot()
        self.clock.advance(10.0)
        self.instances.interrupt(instance, 120.0, 30.0)
        notice = self.instances.notice(instance.id)
        now = time.time()
        self.assertEqual((notice.advised_at, notice.ends_at), (now, None))
        self.clock.advance(29.9)
        self.assertIsNone(notice.ends_at)
        self.clock.advance(0.1)
        self.assertEqual(notice.ends_at, now + 30.0 + 120.0)
        self.clock.advance(119.9)
        self.assertEqual(_moto.state_of(instance), "running")
        self.clock.advance(0.1)
        self.assertEqual(_moto.state_of(instance), "shutting-down")
        reason = (
            "Server.SpotInstanceTermination",
            "Server.SpotInstanceTermination: Spot instance termination",
            "Service initiated (2026-01-01 00:02:40 GMT)",
        )
        self.assertEqual(self.reasons(instance), reason)
        self.clock.advance(20.0)
        self.assertEqual((_moto.state_of(instance), self.reasons(instance)), ("terminated", reason))
        self.assertEqual(
            [what for _, what, _ in self.told],
            [
                "pending",
                "running",
                "rebalance recommendation",
                "interruption notice",
                "shutting-down",
                "terminated",
            ],
        )

    def test_interrupted_without_advice(self):
        instance = self.spot()
        self.instances.interrupt(instance, 5.0, None)  # while it is pending
        notice = self.instances.notice(instance.id)
        self.assertEqual((notice.advised_at, notice.ends_at), (None, time.time() + 5.0))
        self.clock.advance(5.0)
        self.assertEqual(_moto.state_of(instance), "shutting-down")

    def test_interrupted_twice(self):
        """The first notice counts; a notice counts more than an advice that waits."""
        instance = self.spot()
        self.instances.interrupt(instance, 100.0, 50.0)
        self.instances.interrupt(instance, 7.0, None)
        self.instances.interrupt(instance, 1.0, None)
        self.clock.advance(6.9)
        self.assertEqual(_moto.state_of(instance), "pending")
        self.clock.advance(0.1)
        self.assertEqual(_moto.state_of(instance), "shutting-down")
        self.clock.pump([20.0, 200.0])
        self.assertEqual([what for _, what, _ in self.told].count("interruption notice"), 1)
        self.assertEqual([what for _, what, _ in self.told].count("shutting-down"), 1)

    def test_ended_before(self):
        """Who terminates an instance under notice is the reason of its end."""
        instance = self.spot()
        self.clock.advance(10.0)
        self.instances.interrupt(instance, 120.0, None)
        self.backend.terminate_instances([instance.id])
        self.clock.pump([20.0, 100.0])
        self.assertEqual(instance.state_reason.code, "Client.UserInitiatedShutdown")
        self.assertEqual([what for _, what, _ in self.told].count("shutting-down"), 1)

    def test_interruption_fault(self):
        """The first spot instances that run; not those on demand."""
        self.faults.interrupt(15.0).notice = 60.0
        (on_demand,) = self.launch()
        self.clock.advance(1.0)
        first, second = self.spot(), self.spot()
        self.clock.pump([10.0, 14.9])
        self.assertEqual(self.instances.notice(first.id).ends_at, None)
        self.clock.advance(0.1)
        self.assertEqual(self.instances.notice(first.id).ends_at, time.time() + 60.0)
        self.assertIn((26.0, "fault", f"interruption of {first.id}"), self.told)
        self.clock.pump([60.0, 20.0])
        states = [_moto.state_of(instance) for instance in (on_demand, first, second)]
        self.assertEqual(states, ["running", "terminated", "running"])
        self.assertEqual(first.state_reason.code, "Server.SpotInstanceTermination")
        self.assertEqual(self.faults.hits, {"interruption": 1})

    def test_stop(self):
        """No timer is left, whatever waits."""
        self.faults.fail_launches("Server.InternalError")
        failing, ended, interrupted = self.spot(), self.spot(), self.spot()
        self.backend.terminate_instances([ended.id])
        self.instances.interrupt(interrupted, 120.0, 30.0)
        self.clock.advance(20.0)
        self.assertEqual(_moto.state_of(failing), "shutting-down")
        self.assertGreater(len(self.clock.getDelayedCalls()), 2)
        self.successResultOf(self.instances.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
