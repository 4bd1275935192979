"""One look for everybody: when it is taken, and what is made of the answer."""

from __future__ import annotations

from typing import Any

from twisted.internet import task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import NoAnswer, NotConnected
from buildbot_ec2ud.fleet.offer import MASTER_TAG
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.watcher import (
    ABSENT_LIMIT,
    CHANGING_INTERVAL,
    FIRST_LOOK,
    GROWTH,
    STEADY_INTERVAL,
    Watcher,
)
from tests.unit.fleets import SilentEC2, instance, logged


class WatcherTestCase(SynchronousTestCase):
    def setUp(self):
        self.clock = task.Clock()
        self.ec2 = SilentEC2()
        self.watcher = Watcher(self.ec2, self.clock)
        self.changes: list[tuple[str, str]] = []
        self.absent: list[Rental] = []

    def watch(self, instance_id: str = "i-1", state: str = "pending", changed: Any = None) -> Rental:
        rental = Rental(None, "w", instance(instance_id, state))
        self.watcher.watch(rental, changed or self.note, self.absent.append)
        return rental

    def watch_many(self, count: int, owner: str | None = "master") -> list[str]:
        """Watch instances, all of them with the tag of *owner* if there is one."""
        ids = [f"i-{number}" for number in range(count)]
        for instance_id in ids:
            self.watch(instance_id).instance.tags = {MASTER_TAG: owner} if owner else {}
        return ids

    def note(self, rental: Rental) -> None:
        self.changes.append((rental.instance_id, rental.state))

    def look(self) -> Any:
        """Wait for the next look, however long it takes."""
        (delayed,) = self.clock.getDelayedCalls()
        before = len(self.ec2.calls)
        self.clock.advance(delayed.getTime() - self.clock.seconds())
        self.assertEqual(len(self.ec2.calls), before + 1)
        return self.ec2.calls[-1]

    def intervals(self, count: int, *found: Any) -> list[float]:
        """Seconds between this moment and the next *count* looks, each answered at once."""
        times = [self.clock.seconds()]
        for _ in range(count):
            self.look().answer(*found)
            times.append(self.clock.seconds())
        return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


class WhenItLooks(WatcherTestCase):
    def test_nobody_is_watched(self):
        """Without instances, it does not look."""
        self.watcher.hurry(Rental(None, "w", instance()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_grows_while_instances_change(self):
        """Each look comes later than the one before, up to a limit."""
        self.watch()
        expected = [min(FIRST_LOOK * GROWTH**number, CHANGING_INTERVAL) for number in range(8)]
        self.assertEqual(expected[-2:], [CHANGING_INTERVAL] * 2)
        self.assertEqual(self.intervals(8, instance(state="pending")), expected)

    def test_grows_while_all_is_steady(self):
        """When all instances just run, looks become rarer still."""
        self.watch(state="running")
        expected = [min(FIRST_LOOK * GROWTH**number, STEADY_INTERVAL) for number in range(13)]
        self.assertEqual(expected[-2:], [STEADY_INTERVAL] * 2)
        self.assertEqual(self.intervals(13, instance(state="running")), expected)

    def test_news_shorten_the_interval(self):
        """When a look shows that an instance is on its way out, the next one does not wait as long as for a steady one."""
        self.watch(state="running")
        self.intervals(13, instance(state="running"))
        self.assertEqual(
            self.intervals(2, instance(state="shutting-down")),
            [STEADY_INTERVAL, CHANGING_INTERVAL],
        )

    def test_returned_is_changing(self):
        """An instance that this master ends is about to change, whatever EC2 says yet."""
        self.watch(state="running").returned = "any"
        self.assertEqual(self.intervals(8, instance(state="running"))[-1], CHANGING_INTERVAL)

    def test_hurry(self):
        rental = self.watch()
        self.intervals(8, instance())
        self.watcher.hurry(rental)
        self.assertEqual(self.intervals(2, instance()), [FIRST_LOOK, FIRST_LOOK * GROWTH])

    def test_hurry_during_a_look(self):
        """What is hurried for during a look is looked at soon after it."""
        rental = self.watch()
        self.intervals(8, instance())
        look = self.look()
        self.watcher.hurry(rental)
        look.answer(instance())
        self.assertEqual(self.intervals(1, instance()), [FIRST_LOOK])

    def test_hurrying_often_does_not_put_it_off(self):
        """Launches that come faster than the first look do not keep it from being taken."""
        for number in range(10):
            self.watch(f"i-{number}")
            self.clock.advance(FIRST_LOOK * 0.6)
        self.assertEqual(self.ec2.calls[0].args, ("i-0", "i-1"))

    def test_one_look_at_a_time(self):
        """While EC2 is silent, nothing more is asked."""
        rental = self.watch()
        look = self.look()
        self.watcher.hurry(rental)
        self.watch("i-2")
        self.clock.advance(STEADY_INTERVAL * 10)
        self.assertEqual(self.ec2.calls, [look])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class WhomItAsksFor(WatcherTestCase):
    def test_one_call_for_all(self):
        for number in range(3):
            self.watch(f"i-{number}")
        self.assertEqual(self.look().args, ("i-0", "i-1", "i-2"))

    def test_one_call_for_200(self):
        """As many ids as a filter takes are one call."""
        ids = self.watch_many(200)
        self.look().answer(*(instance(i, "running") for i in ids))
        self.assertEqual((len(self.ec2.calls), self.ec2.calls[0].args), (1, tuple(ids)))
        self.assertEqual(self.changes, [(i, "running") for i in ids])

    def test_added_during_a_look(self):
        """An instance that comes while a look is under way is not missed, and not taken for absent."""
        self.watch("i-1")
        look = self.look()
        self.watch("i-2")
        look.answer(instance("i-1"))
        self.assertEqual(self.look().args, ("i-1", "i-2"))

    def test_ended_ones_are_watched_no_more(self):
        self.watch("i-1")
        self.watch("i-2")
        self.look().answer(instance("i-1", "terminated"), instance("i-2", "running"))
        self.assertEqual(self.changes, [("i-1", "terminated"), ("i-2", "running")])
        look = self.look()
        self.assertEqual(look.args, ("i-2",))
        look.answer(instance("i-2", "terminated"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ended_from_the_start(self):
        """An instance that EC2 ended before the first look is not watched for ever."""
        self.watch(state="terminated")
        self.look().answer(instance(state="terminated"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tells_of_changes_only(self):
        rental = self.watch()
        self.look().answer(instance())
        self.assertEqual(self.changes, [])
        seen = instance(state="running")
        self.look().answer(seen)
        self.look().answer(instance(state="running"))
        self.assertEqual(self.changes, [("i-1", "running")])
        self.assertEqual(rental.state, "running")

    def test_a_callback_that_raises(self):
        """Trouble of one that is told does not keep the others from being told in the same look."""

        def broken(rental):
            raise RuntimeError("oh no")

        self.watch("i-1", changed=broken)
        self.watch("i-2")
        self.look().answer(instance("i-1", "running"), instance("i-2", "running"))
        self.assertEqual(self.changes, [("i-2", "running")])
        self.assertEqual([str(failure.value) for failure in self.flushLoggedErrors(RuntimeError)], ["oh no"])
        self.assertEqual(self.look().args, ("i-1", "i-2"))


#: Whom the looks of :class:`SomeJustRun` are for.
EVERY, ONE = ("i-0", "i-1", "i-2", "i-new"), ("i-new",)


class SomeJustRun(WatcherTestCase):
    """One instance is starting, which is looked at often, and others just run."""

    def setUp(self):
        super().setUp()
        self.steady = [self.watch(f"i-{number}", "running") for number in range(3)]
        self.new = self.watch("i-new")
        self.running = [instance(one.instance_id, "running") for one in self.steady]
        self.pending = instance("i-new")

    def looks(self, count: int) -> list[tuple[float, tuple[str, ...]]]:
        """When the next looks are taken, and for whom."""
        found = []
        for _ in range(count):
            look = self.look()
            look.answer(*(one for one in (*self.running, self.pending) if one.instance_id in look.args))
            found.append((self.clock.seconds(), look.args))
        return found

    def test_only_those_that_change(self):
        """A look is for the one that starts, where the next one is not too late for the others."""
        found = self.looks(8)
        self.assertEqual([asked for _, asked in found], [EVERY, ONE, ONE, *[EVERY] * 5])

    def test_launches_that_keep_coming(self):
        """However often somebody hurries, the others are looked at every :data:`CHANGING_INTERVAL`."""
        found = []
        for _ in range(25):
            self.watcher.hurry(self.new)
            found += self.looks(1)
        self.assertEqual([seconds for seconds, asked in found if asked == EVERY], [1, 10, 19])
        self.assertEqual({asked for _, asked in found}, {EVERY, ONE})

    def test_hurried(self):
        """One that something has happened to is looked at, too."""
        self.looks(1)
        self.watcher.hurry(self.steady[1])
        self.assertEqual([asked for _, asked in self.looks(2)], [("i-1", "i-new"), ONE])

    def test_hurried_during_a_look(self):
        self.looks(1)
        look = self.look()
        self.watcher.hurry(self.steady[1])
        look.answer(self.pending)
        self.assertEqual([asked for _, asked in self.looks(1)], [("i-1", "i-new")])

    def test_ending(self):
        self.looks(1)
        self.steady[2].returned = "any"
        self.assertEqual([asked for _, asked in self.looks(2)], [("i-2", "i-new")] * 2)

    def test_all_again_when_none_changes(self):
        self.looks(1)
        self.pending = instance("i-new", "running")
        self.assertEqual([asked for _, asked in self.looks(2)], [ONE, EVERY])

    def test_trouble(self):
        """A look that fails says nothing of anybody: the next one is for all."""
        for error in (NoAnswer("a bad day"), ZeroDivisionError("a bug")):
            self.looks(1)
            self.watcher.hurry(self.new)
            self.watcher.hurry(self.steady[1])
            look = self.look()
            self.assertEqual(look.args, ("i-1", "i-new"))
            look.fail(error)
            self.assertEqual([asked for _, asked in self.looks(1)], [EVERY])
            self.watcher.hurry(self.new)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ALargeFleet(WatcherTestCase):
    """More instances than a filter takes ids: they are listed by their masters' tag."""

    def answer(self, *found: Any) -> Any:
        """Answer the last call, whose filters, or ids, are returned."""
        call = self.ec2.calls[-1]
        for one in found:
            one.tags = {MASTER_TAG: "master"}
        call.answer(*found)
        return dict(call.args[0]) if call.action == "describe" else call.args

    def instances(self, ids: Any, state: str = "running") -> list[Any]:
        return [instance(instance_id, state) for instance_id in ids]

    def test_one_call_while_all_live(self):
        ids = self.watch_many(1000)
        self.look()
        asked = self.answer(*self.instances(ids))
        self.assertEqual(asked[f"tag:{MASTER_TAG}"], ["master"])
        self.assertNotIn("terminated", asked["instance-state-name"])
        self.assertEqual((len(self.ec2.calls), self.changes), (1, [(i, "running") for i in ids]))

    def test_a_second_call_for_those_that_are_missing(self):
        """What the listing leaves out is asked for by its id: it may have ended, or be too new."""
        ids = self.watch_many(1000)
        self.look()
        self.answer(*self.instances(ids[200:]))
        self.assertEqual(self.answer(*self.instances(ids[:199], "terminated")), tuple(ids[:200]))
        self.assertEqual(len(self.ec2.calls), 2)
        ended = [i for i, state in self.changes if state == "terminated"]
        self.assertEqual((ended, len(self.changes), self.absent), (ids[:199], 999, []))

    def test_a_second_call_when_most_have_ended(self):
        """When more are missing than a filter takes, those that have ended are listed, too."""
        ids = self.watch_many(1000)
        self.look()
        self.answer(*self.instances(ids[:300]))
        asked = self.answer(*self.instances(ids[300:], "terminated"))
        self.assertEqual(asked["instance-state-name"], ["terminated"])
        self.assertEqual((len(self.ec2.calls), len(self.changes)), (2, 1000))

    def test_missing_in_all_listings(self):
        """Those that no listing has are asked for by their ids, as many to a call as EC2 takes, and may be absent."""
        ids = self.watch_many(450)
        self.look()
        self.answer()
        self.answer()
        self.assertEqual([len(self.answer()) for _ in range(3)], [200, 200, 50])
        self.assertEqual((len(self.ec2.calls), self.changes, self.absent), (5, [], []))
        self.assertEqual(len(ids), len(self.watcher._absent_since))

    def test_without_tags(self):
        """Instances whose tags are not known are asked for by their ids."""
        self.watch_many(250, owner=None)
        self.look()
        self.assertEqual([len(self.answer()) for _ in range(2)], [200, 50])

    def test_several_masters(self):
        """The tags of all are asked for in one call."""
        self.watch_many(250)
        self.watcher._watched["i-7"][0].instance.tags = {MASTER_TAG: "another"}
        self.look()
        self.assertEqual(self.answer()[f"tag:{MASTER_TAG}"], ["another", "master"])

    def test_others_of_the_master(self):
        """What is listed and not watched is nobody's business here."""
        ids = self.watch_many(201)
        self.look()
        self.answer(*self.instances([*ids, "i-other"]))
        self.assertEqual((len(self.changes), len(self.ec2.calls)), (201, 1))

    def test_trouble_in_the_second_call(self):
        """A look that fails halfway says nothing of anybody."""
        ids = self.watch_many(250)
        self.look()
        self.answer(*self.instances(ids[:100]))
        self.ec2.calls[-1].fail(NoAnswer("a bad day"))
        self.assertEqual((self.changes, self.watcher._absent_since), ([], {}))
        self.look()
        self.answer(*self.instances(ids))
        self.assertEqual(len(self.changes), 250)

    def test_forgotten_during_a_look(self):
        self.watch_many(250)
        self.look()
        for rental, *_ in list(self.watcher._watched.values()):
            self.watcher.forget(rental)
        self.answer()
        self.assertEqual([len(self.answer()) for _ in range(2)], [200, 50])
        self.assertEqual((self.changes, self.clock.getDelayedCalls()), ([], []))


class Absent(WatcherTestCase):
    def absent_for(self, seconds: float) -> None:
        """Look at intervals until an instance has been absent for *seconds* since the first look that missed it."""
        self.look().answer()
        until = self.clock.seconds() + seconds
        while self.clock.getDelayedCalls() and self.clock.getDelayedCalls()[0].getTime() < until:
            self.look().answer()

    def test_gone(self):
        """One that EC2 does not list for long is reported, and again after as long; listings do not end it."""
        rental = self.watch()
        self.absent_for(ABSENT_LIMIT)
        self.assertEqual((self.changes, self.absent), ([], []))
        self.assertGreater(len(self.ec2.calls), 10)
        self.look().answer()
        self.assertEqual((self.changes, self.absent, rental.ended), ([], [rental], False))
        self.absent_for(ABSENT_LIMIT)
        self.assertEqual(self.absent, [rental])
        self.look().answer()
        self.assertEqual(self.absent, [rental, rental])

    def test_forgotten(self):
        """One that is found to be gone is watched no more."""
        rental = self.watch()
        self.absent_for(1)
        self.watcher.forget(rental)
        calls = len(self.ec2.calls)
        self.clock.pump([10] * 100)
        self.assertEqual((len(self.ec2.calls), self.clock.getDelayedCalls()), (calls, []))

    def test_reappearance_resets_the_count(self):
        rental = self.watch()
        self.absent_for(ABSENT_LIMIT)
        self.look().answer(instance())
        self.absent_for(ABSENT_LIMIT)
        self.assertEqual(self.absent, [])
        self.look().answer()
        self.assertEqual(self.absent, [rental])

    def test_trouble_is_no_absence(self):
        """A look that fails says nothing of anybody."""
        rental = self.watch()
        for _ in range(100):
            self.look().fail(NoAnswer("a bad day"))
        self.assertGreater(self.clock.seconds(), 2 * ABSENT_LIMIT)
        self.look().answer()
        self.assertEqual((self.absent, rental.ended), ([], False))


class Trouble(WatcherTestCase):
    def test_logged_once(self):
        """Trouble is logged when it begins and when it changes, and watching goes on."""
        texts = logged(self)
        self.watch()
        for error in (NoAnswer("a bad day"), NoAnswer("a bad day"), NotConnected("worse")):
            self.look().fail(error)
        said = "cannot watch EC2 instances, will go on trying: "
        self.assertEqual(texts, [said + "a bad day", said + "worse"])
        self.look().answer(instance(state="running"))
        self.assertEqual(self.changes, [("i-1", "running")])
        self.look().fail(NotConnected("worse"))
        self.assertEqual(texts[2:], [said + "worse"])

    def test_unexpected_trouble(self):
        """A mistake of the code is logged as one, and watching goes on."""
        self.watch()
        self.look().fail(ZeroDivisionError("a bug"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.look().answer(instance(state="running"))
        self.assertEqual(self.changes, [("i-1", "running")])


class Stopping(WatcherTestCase):
    def test_between_looks(self):
        self.watch()
        self.watcher.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_during_a_look(self):
        """The look is cancelled, quietly, and no other one is planned."""
        texts = logged(self)
        rental = self.watch()
        look = self.look()
        self.watcher.stop()
        self.assertTrue(look.cancelled)
        self.watcher.hurry(rental)
        self.assertEqual((self.clock.getDelayedCalls(), texts, self.changes), ([], [], []))
