"""Instances that nobody owns: which they are, when they are ended, and what must not keep them from being found."""

from __future__ import annotations

import datetime
from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import NoAnswer, NotConnected
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet.background import LONGEST_PAUSE
from buildbot_ec2ud.fleet.leftovers import INTERVAL, LAST_LAUNCH, LEFT, Leftovers, tagged
from buildbot_ec2ud.fleet.masters import Others
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, WORKER_TAG
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT
from tests.unit.fleets import FleetTestCase, SilentEC2, growing, instance, logged, refusal

MASTER = "master.example.org:/farm"


def tagged_instance(
    instance_id: str = "i-1", state: str = "running", master: str | None = MASTER, launch: str | None = "launch-1"
) -> Instance:
    """An instance of a master, as EC2 tells of it."""
    found = instance(instance_id, state)
    tags = {MASTER_TAG: master, LAUNCH_TAG: launch, WORKER_TAG: f"worker of {instance_id}"}
    found.tags = {key: value for key, value in tags.items() if value is not None}
    found.launch_time = "2026-05-01T10:00:00.000Z"
    return found


class LeftoversTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.ec2 = SilentEC2(self.clock)
        self.texts = logged(self)
        self.owned: set[str] = set()
        self.ended: list[str] = []
        self.leftovers = Leftovers(self.ec2, self.clock, MASTER, lambda: self.owned, self.end)

    def end(self, leftover: Instance) -> None:
        self.ended.append(leftover.instance_id)
        self.owned.add(leftover.instance_id)

    def looks(self) -> int:
        return len(self.ec2.made("describe"))

    def answer(self, *found: Instance) -> list[str]:
        """EC2 answers the look that is under way; gives what is ended because of it."""
        before = len(self.ended)
        self.ec2.last("describe").answer(*found)
        return self.ended[before:]

    def later(self, *found: Instance) -> list[str]:
        """The next look, and what is ended because of it."""
        looks = self.looks()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.looks(), looks + 1)
        return self.answer(*found)


class Which(LeftoversTestCase):
    """What is a leftover, and what is not."""

    def test_asks(self) -> None:
        """One listing: of the tag and the states that matter, by filters of EC2's."""
        self.leftovers.start()
        (call,) = self.ec2.made("describe")
        self.assertEqual(call.args, ({f"tag:{MASTER_TAG}": [MASTER], "instance-state-name": list(LEFT)},))

    def test_states(self) -> None:
        """All that costs or may cost again is ended, a stopped one too; not what is on its way out, or gone."""
        self.leftovers.start()
        states = ("pending", "running", "shutting-down", "terminated", "stopping", "stopped")
        ended = self.answer(*(tagged_instance(f"i-{state}", state) for state in states))
        self.assertEqual(ended, ["i-pending", "i-running", "i-stopping", "i-stopped"])

    def test_other_masters(self) -> None:
        """What another master has is not touched, whatever EC2 lists: also where one name has the other in it."""
        others = (f"{MASTER}2", f"x{MASTER}", MASTER[:-1], MASTER.upper(), f" {MASTER}", "", None)
        found = [tagged_instance(f"i-{number}", master=other) for number, other in enumerate(others)]
        self.leftovers.start()
        self.assertEqual(self.answer(*found, tagged_instance("i-own")), ["i-own"])
        for _ in range(3):
            self.assertEqual(self.later(*found), [])

    def test_owned(self) -> None:
        """What some fleet has is not touched, nor what belongs to a launch that is under way."""
        self.owned |= {"i-1", "launch-2"}
        found = tagged_instance("i-1", launch="launch-1"), tagged_instance("i-2", launch="launch-2")
        self.leftovers.start()
        self.assertEqual(self.answer(*found, tagged_instance("i-3", launch="launch-3")), ["i-3"])
        for _ in range(3):
            self.assertEqual(self.later(*found), [])

    def test_without_other_tags(self) -> None:
        """The master's tag is enough."""
        found = tagged_instance()
        found.tags = {MASTER_TAG: MASTER}
        self.leftovers.start()
        self.assertEqual(self.answer(found), ["i-1"])

    def test_names_with_wildcards(self) -> None:
        """A name means itself, whatever its characters mean to EC2's filters."""
        for name in ("host:/farm*", "host:/f?rm", "host:C:\\farm", "host:/[farm]"):
            found = tagged(self.ec2, [name])
            (pattern,) = self.ec2.last("describe").args[0][f"tag:{MASTER_TAG}"]
            self.assertEqual(len(pattern), len(name))
            self.assertFalse(set("*\\[") & set(pattern), pattern)
            others = [
                tagged_instance(f"i-{n}", master=other) for n, other in enumerate((pattern, "host:/farms", "host"))
            ]
            if pattern == name:
                others.pop(0)
            self.ec2.last("describe").answer(*others, tagged_instance("i-own", master=name))
            self.assertEqual([one.instance_id for one in self.successResultOf(found)], ["i-own"])

    def test_of_all_masters(self) -> None:
        """All that have the tag, and nothing without it."""
        found = tagged(self.ec2, None, ["running"])
        call = self.ec2.last("describe")
        self.assertEqual(call.args, ({"tag-key": [MASTER_TAG], "instance-state-name": ["running"]},))
        call.answer(*(tagged_instance(f"i-{n}", master=name) for n, name in enumerate((MASTER, "other", "", None))))
        self.assertEqual([one.instance_id for one in self.successResultOf(found)], ["i-0", "i-1", "i-2"])

    def test_log(self) -> None:
        """One line for each: what it is, since when, and why it is ended."""
        self.leftovers.start()
        self.answer(tagged_instance("i-1"))
        self.later(tagged_instance("i-2", "stopped"))
        self.later(tagged_instance("i-2", "stopped"))
        self.assertEqual(
            self.texts,
            [
                "EC2 leftover: ending i-1 of worker worker of i-1, running, launched 2026-05-01T10:00:00.000Z: "
                "it is older than this process",
                "EC2 leftover: ending i-2 of worker worker of i-2, stopped, launched 2026-05-01T10:00:00.000Z: "
                "it was found twice without an owner",
            ],
        )


class AtStart(LeftoversTestCase):
    """The first look: what it finds is older than this process."""

    def test_at_once(self) -> None:
        self.leftovers.start()
        self.assertEqual(self.clock.seconds(), 0)
        self.assertEqual(self.answer(tagged_instance("i-1"), tagged_instance("i-2")), ["i-1", "i-2"])

    def test_unreachable(self) -> None:
        """It is repeated, after pauses that grow, until EC2 has answered once; then there is time between looks."""
        errors = [NotConnected("no route"), NoAnswer("a bad day"), refusal("RequestLimitExceeded")]
        self.leftovers.start()
        times: list[float] = []
        for number in range(9):
            times.append(self.clock.seconds())
            self.ec2.last("describe").fail(errors[number % 3])
            while self.looks() == number + 1:
                self.clock.advance(0.5)
        self.assertEqual(times, [0, *growing(8)])
        self.assertEqual(times[-1] - times[-2], LONGEST_PAUSE)
        self.owned.add("i-launched-meanwhile")
        ended = self.answer(tagged_instance("i-launched-meanwhile"), tagged_instance("i-1"))
        self.assertEqual(ended, ["i-1"])
        looks = self.looks()
        self.clock.advance(INTERVAL - 1)
        self.assertEqual(self.looks(), looks)
        self.clock.advance(1)
        self.assertEqual(self.looks(), looks + 1)

    def test_nothing_there(self) -> None:
        """A first look that finds nothing is the first look all the same."""
        self.leftovers.start()
        self.answer()
        self.assertEqual(self.later(tagged_instance()), [])

    def test_visible_late(self) -> None:
        """What the process before started in its last moment may not be listed yet; it is found later."""
        self.leftovers.start()
        self.answer()
        self.assertEqual(self.later(tagged_instance()), [])
        self.assertEqual(self.later(tagged_instance()), ["i-1"])


class Twice(LeftoversTestCase):
    """Later looks: two have to agree."""

    def setUp(self) -> None:
        super().setUp()
        self.leftovers.start()
        self.answer()

    def test_found_twice(self) -> None:
        self.assertEqual(self.later(tagged_instance("i-1")), [])
        self.assertEqual(self.later(tagged_instance("i-1"), tagged_instance("i-2")), ["i-1"])
        self.assertEqual(self.later(tagged_instance("i-1"), tagged_instance("i-2")), ["i-2"])

    def test_not_in_a_row(self) -> None:
        """Gone, or owned, in between: it counts anew."""
        self.later(tagged_instance())
        self.later()
        self.assertEqual(self.later(tagged_instance()), [])
        self.owned.add("i-1")
        self.later(tagged_instance())
        self.owned.clear()
        self.assertEqual(self.later(tagged_instance()), [])
        self.assertEqual(self.later(tagged_instance()), ["i-1"])

    def test_failed_look(self) -> None:
        """A look that fails neither confirms nor clears."""
        self.later(tagged_instance())
        for error in (NoAnswer("a bad day"), refusal("UnauthorizedOperation"), refusal("RequestLimitExceeded")):
            looks = self.looks()
            self.clock.advance(INTERVAL)
            self.assertEqual(self.looks(), looks + 1)
            self.ec2.last("describe").fail(error)
            self.assertEqual(self.ended, [])
        self.assertEqual(self.later(tagged_instance()), ["i-1"])

    def test_slow_answers(self) -> None:
        """There is one look at a time, and from an answer to the next look there are INTERVAL seconds."""
        self.clock.advance(INTERVAL)
        looks = self.looks()
        self.clock.advance(INTERVAL * 3)
        self.assertEqual(self.looks(), looks)
        self.answer(tagged_instance())
        self.clock.advance(INTERVAL - 1)
        self.assertEqual(self.looks(), looks)
        self.clock.advance(1)
        self.assertEqual(self.answer(tagged_instance()), ["i-1"])

    def test_forgotten_meanwhile(self) -> None:
        """An instance whose end is confirmed while the answer is on its way is not taken for a leftover."""
        self.later(tagged_instance())
        self.owned.add("i-1")
        self.clock.advance(INTERVAL)
        self.owned.clear()
        self.assertEqual(self.answer(tagged_instance()), [])

    def test_launched_meanwhile(self) -> None:
        """Nor is one that starts while the answer is on its way, however often that happens."""
        for number in range(3):
            self.clock.advance(INTERVAL)
            self.owned.add(f"launch-{number}")
            self.assertEqual(self.answer(tagged_instance(launch=f"launch-{number}")), [])
            self.owned.clear()
            self.later()

    def test_launch_given_up(self) -> None:
        """What a launch has started that is not under way any more is a leftover."""
        self.owned.add("launch-1")
        self.later(tagged_instance())
        self.later(tagged_instance())
        self.owned.clear()
        self.assertEqual(self.later(tagged_instance()), [])
        self.assertEqual(self.later(tagged_instance()), ["i-1"])


class OfDeadMasters(LeftoversTestCase):
    """What the masters have left that share our database and are dead."""

    DEAD = "host:/dead"
    #: When it was last active: ten minutes after :func:`tagged_instance` has its instances launched.
    SINCE = datetime.datetime.fromisoformat("2026-05-01T10:10:00Z").timestamp()

    def setUp(self) -> None:
        super().setUp()
        self.dead = {self.DEAD: self.SINCE}
        self.rivals: tuple[str, ...] = ()
        self.asked = 0
        self.leftovers = Leftovers(self.ec2, self.clock, MASTER, lambda: self.owned, self.end, self.others)

    def others(self) -> defer.Deferred[Others]:
        self.asked += 1
        return defer.succeed(Others(dict(self.dead), self.rivals))

    def of_dead(self, instance_id: str = "i-1", minutes: float = -10, owner: str = DEAD, **more: Any) -> Instance:
        """An instance of a dead master, launched so long after that was last active."""
        found = tagged_instance(instance_id, master=owner, **more)
        launched = datetime.datetime.fromtimestamp(self.SINCE + 60 * minutes, datetime.UTC)
        found.launch_time = launched.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return found

    def first(self, *found: Instance) -> list[str]:
        self.leftovers.start()
        return self.answer(*found)

    def test_asks(self) -> None:
        """One listing, of all; who is dead is asked again only if there is something to end."""
        self.dead["host:/b*"] = self.SINCE
        self.leftovers.start()
        (call,) = self.ec2.made("describe")
        owners = call.args[0][f"tag:{MASTER_TAG}"]
        self.assertEqual(owners, ["host:/b?", self.DEAD, MASTER])
        self.owned.add("i-1")
        self.answer(tagged_instance(), tagged_instance("i-2", master="host:/bx"))
        self.assertEqual(self.asked, 1)
        self.later(self.of_dead("i-3"))
        self.assertEqual(self.asked, 3)

    def test_found_twice(self) -> None:
        """Not at the first look: it may be at our start, and the other one's, that we look. Own ones are not waited for."""
        self.assertEqual(self.first(self.of_dead(), tagged_instance("i-own")), ["i-own"])
        self.assertEqual(self.later(self.of_dead(), self.of_dead("i-2")), ["i-1"])
        self.assertEqual(self.later(self.of_dead(), self.of_dead("i-2")), ["i-2"])
        self.assertEqual(self.later(self.of_dead(), self.of_dead("i-2")), [])
        self.assertEqual(
            [text for text in self.texts if "i-1" in text],
            [
                "EC2 leftover: ending i-1 of worker worker of i-1, running, launched 2026-05-01T10:00:00.000Z: "
                "its master host:/dead is dead, since 2026-05-01T10:10:00+00:00"
            ],
        )

    def test_owned(self) -> None:
        """One that another fleet ends already is left to that."""
        self.owned |= {"i-1", "launch-2"}
        found = self.of_dead("i-1"), self.of_dead("i-2", launch="launch-2")
        self.first(*found)
        self.assertEqual(self.later(*found), [])

    def test_not_in_a_row(self) -> None:
        self.first(self.of_dead())
        self.later()
        self.assertEqual(self.later(self.of_dead()), [])
        self.assertEqual(self.later(self.of_dead()), ["i-1"])

    def test_failed_look(self) -> None:
        """It neither confirms nor clears."""
        self.first(self.of_dead())
        self.clock.advance(INTERVAL)
        self.ec2.last("describe").fail(NoAnswer("a bad day"))
        self.assertEqual(self.later(self.of_dead()), ["i-1"])

    def test_alive(self) -> None:
        """What masters have that are not known to be dead is not touched, whatever EC2 lists."""
        found = [self.of_dead(owner=owner) for owner in (f"{self.DEAD}2", self.DEAD[:-1], self.DEAD.upper())]
        self.first(*found)
        for _ in range(3):
            self.assertEqual(self.later(*found), [])

    def test_launched_since(self) -> None:
        """It lives, with another database: nothing of it is ended, however old, and that is said once. Of others it is."""
        self.dead["host:/other"] = self.SINCE
        old, young = self.of_dead("i-old"), self.of_dead("i-young", minutes=LAST_LAUNCH / 60 + 1)
        other = self.of_dead("i-other", owner="host:/other")
        self.first(old, young, other)
        self.assertEqual(self.later(old, young, other), ["i-other"])
        for _ in range(3):
            self.assertEqual(self.later(old, young), [])
        self.assertEqual(len([text for text in self.texts if "leaving the instances of host:/dead" in text]), 1)
        self.assertEqual(self.later(old), [])  # that the young one is gone has to be seen twice, too
        self.assertEqual(self.later(old), ["i-old"])

    def test_launched_last(self) -> None:
        """What it has launched between its last heart-beat and its death is its own."""
        last = self.of_dead(minutes=LAST_LAUNCH / 60)
        self.first(last)
        self.assertEqual(self.later(last), ["i-1"])

    def test_unknown_launch_time(self) -> None:
        for launch_time in (None, "", "yesterday"):
            found = self.of_dead()
            found.launch_time = launch_time
            self.leftovers.stop()
            self.first(found)
            self.assertEqual(self.later(found), [])

    def test_comes_back(self) -> None:
        """While EC2's answer is on its way, or between two looks."""
        self.first(self.of_dead())
        self.clock.advance(INTERVAL)
        self.dead.clear()
        self.assertEqual(self.answer(self.of_dead()), [])
        self.assertEqual(self.later(self.of_dead()), [])
        # It dies again.
        self.dead[self.DEAD] = self.SINCE + 60
        self.assertEqual(self.later(self.of_dead()), [])
        self.dead[self.DEAD] = self.SINCE + 120  # and was back in between
        self.assertEqual(self.later(self.of_dead()), [])
        self.assertEqual(self.later(self.of_dead()), ["i-1"])

    def test_dies_meanwhile(self) -> None:
        """Who is dead only since EC2 was asked was not asked for."""
        self.dead["host:/other"] = self.SINCE
        self.leftovers.start()
        self.dead["host:/new"] = self.SINCE
        self.answer(self.of_dead(), self.of_dead("i-2", owner="host:/new"))
        self.assertEqual(self.later(self.of_dead("i-2", owner="host:/new")), [])
        self.assertEqual(self.later(self.of_dead("i-2", owner="host:/new")), ["i-2"])

    def test_rivals(self) -> None:
        """While another active master has our own identity, nothing is looked for; then it is as at the start."""
        self.rivals = ("host:/b", "host:/c")
        self.leftovers.start()
        self.pump(3 * INTERVAL)
        self.assertEqual(self.ec2.calls, [])
        self.assertEqual(
            self.texts,
            [
                "cannot look for leftovers on EC2, will go on trying: the identity 'master.example.org:/farm' is also that "
                "of host:/b, host:/c, which Buildbot calls active; give each master an owner of its own"
            ],
        )
        self.rivals = ()
        self.pump(LONGEST_PAUSE)
        self.assertEqual(self.answer(tagged_instance()), ["i-1"])

    def test_rivals_later(self) -> None:
        self.first()
        self.later(tagged_instance())
        looks = self.looks()
        self.rivals = ("host:/b",)
        self.clock.advance(INTERVAL)
        self.assertEqual((self.looks(), self.ended), (looks, []))

    def test_rival_meanwhile(self) -> None:
        """One that comes while EC2's answer is on its way."""
        self.leftovers.start()
        self.rivals = ("host:/b",)
        self.assertEqual(self.answer(tagged_instance(), self.of_dead("i-2")), [])

    def pump(self, seconds: float) -> None:
        self.clock.pump([1.0] * int(seconds))

    def test_trouble_with_the_database(self) -> None:
        """It is logged, nothing is ended, and there is a next look."""
        others, self.others_fail = self.others, True

        def sometimes() -> Any:
            return defer.fail(ZeroDivisionError("no database")) if self.others_fail else others()

        self.leftovers = Leftovers(self.ec2, self.clock, MASTER, lambda: self.owned, self.end, sometimes)
        self.leftovers.start()
        self.assertEqual((len(self.flushLoggedErrors(ZeroDivisionError)), self.looks()), (1, 0))
        self.others_fail = False
        self.clock.advance(1)
        self.assertEqual(self.answer(tagged_instance(), self.of_dead("i-2")), ["i-1"])

    def test_stopped(self) -> None:
        """While the database is asked."""
        waiting: list[defer.Deferred[Others]] = []

        def others() -> defer.Deferred[Others]:
            waiting.append(defer.Deferred())
            return waiting[-1]

        self.leftovers = Leftovers(self.ec2, self.clock, MASTER, lambda: self.owned, self.end, others)
        self.leftovers.start()
        self.leftovers.stop()
        self.clock.advance(2 * INTERVAL)
        self.assertEqual((len(waiting), waiting[0].called, self.ec2.calls), (1, True, []))


class BadDays(LeftoversTestCase):
    def test_cannot_end(self) -> None:
        """A mistake in ending one is logged, spoils nothing for the others, and is made good by the next look."""
        end, self.end = self.end, self.fail_to_end
        self.leftovers = Leftovers(
            self.ec2, self.clock, MASTER, lambda: self.owned, lambda leftover: self.end(leftover)
        )
        self.leftovers.start()
        self.answer(tagged_instance("i-1"), tagged_instance("i-2"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.end = end
        self.assertEqual(self.later(tagged_instance("i-1"), tagged_instance("i-2")), ["i-1", "i-2"])

    def fail_to_end(self, leftover: Instance) -> None:
        raise ZeroDivisionError("a bug")

    def test_mistake_of_the_code(self) -> None:
        """Whatever goes wrong in a look, there is a next one."""
        self.leftovers.start()
        self.ec2.last("describe").fail(ZeroDivisionError("a bug"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.clock.advance(1)
        self.assertEqual(self.answer(tagged_instance()), ["i-1"])
        self.clock.advance(INTERVAL)
        self.ec2.last("describe").fail(ZeroDivisionError("a bug"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.later(tagged_instance("i-2"))
        self.assertEqual(self.later(tagged_instance("i-2")), ["i-2"])

    def test_trouble_is_logged_once(self) -> None:
        """The same trouble is one line, until it is another one, or over."""
        self.leftovers.start()
        for text in ("one", "one", "another", None, "another"):
            if text is None:
                self.ec2.last("describe").answer()
            else:
                self.ec2.last("describe").fail(NoAnswer(text))
            self.clock.advance(INTERVAL)
        beginning = "cannot look for leftovers on EC2, will go on trying: "
        self.assertEqual(self.texts, [f"{beginning}{text}" for text in ("one", "another", "another")])


class Stopping(LeftoversTestCase):
    def test_before_the_start(self) -> None:
        self.leftovers.stop()
        self.assertEqual((self.ec2.calls, self.clock.getDelayedCalls()), ([], []))

    def test_between_looks(self) -> None:
        self.leftovers.start()
        self.answer(tagged_instance())
        self.leftovers.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(2 * INTERVAL)
        self.assertEqual(self.looks(), 1)

    def test_during_a_look(self) -> None:
        """It is cancelled, and nothing comes of it any more."""
        self.leftovers.start()
        self.leftovers.stop()
        self.assertTrue(self.ec2.last("describe").cancelled)
        self.clock.advance(2 * INTERVAL)
        self.assertEqual((self.looks(), self.ended, self.clock.getDelayedCalls()), (1, [], []))


class WithFleet(FleetTestCase):
    """A fleet ends leftovers as it ends everything: until EC2 has accepted, and confirmed."""

    def setUp(self) -> None:
        super().setUp()
        self.leftovers = Leftovers(self.ec2, self.clock, MASTER, lambda: self.fleet.rentals, self.end)
        self.addCleanup(self.leftovers.stop)

    def end(self, leftover: Instance) -> Any:
        return self.fleet.terminate(self.fleet.rent(leftover.tags[WORKER_TAG], leftover))

    def test_refused(self) -> None:
        """A refusal is the fleet's affair: it goes on; further looks do not hand the instance over again."""
        self.leftovers.start()
        self.ec2.last("describe").answer(tagged_instance("i-1", "stopped"))
        times = self.times("terminate", 3 * INTERVAL, lambda call: call.fail(refusal("RequestLimitExceeded")))
        self.assertEqual(times, [0, *growing(len(times) - 1)])
        self.ec2.last("describe").answer(tagged_instance("i-1", "stopped"))
        self.pump(INTERVAL)
        self.ec2.last("terminate").answer()
        self.ec2.last("describe").answer(tagged_instance("i-1", "stopped"))
        calls = len(self.ec2.made("terminate"))
        self.pump(INTERVAL)
        self.assertEqual(len(self.ec2.made("terminate")), calls)
        self.assertEqual([text for text in self.texts if text.startswith("EC2 leftover")], self.texts[:1])
        self.assertIn("i-1", self.fleet.rentals)
        self.ec2.last("look").answer(tagged_instance("i-1", "terminated"))
        self.assertEqual(self.fleet.rentals, {})

    def test_stale_listing(self) -> None:
        """An instance whose end is confirmed, and that one look still lists as running, is not ended again."""
        rental = self.rent()
        self.leftovers.start()
        self.ec2.last("describe").answer()
        self.fleet.terminate(rental)
        self.ec2.last("terminate").answer()
        self.pump(1)
        self.ec2.last("look").answer(tagged_instance("i-1", "terminated"))
        self.assertEqual(self.fleet.rentals, {})
        self.pump(INTERVAL)
        self.ec2.last("describe").answer(tagged_instance("i-1"))
        self.pump(INTERVAL)
        self.ec2.last("describe").answer()
        self.pump(ABSENT_LIMIT)
        self.assertEqual(len(self.ec2.made("terminate")), 1)
