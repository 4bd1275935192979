"""What all workers of a region share: launching."""

from __future__ import annotations

import gc
import os
import weakref

from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass, NoAnswer, NotConnected
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.fleet import region
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.fleet.region import STOP_TIMEOUT, Fleet, fleets
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT
from tests.unit.fleets import ENDPOINT, OFFERS, SECRET, FleetTestCase, growing, instance, refusal

NO_CAPACITY, BAD_IMAGE = "InsufficientInstanceCapacity", "InvalidAMIID.NotFound"


class Sharing(FleetTestCase):
    def test_same_arguments(self):
        """Workers with the same arguments share a fleet, others have another one."""
        self.assertIs(self.get_fleet(), self.fleet)
        others = [
            self.get_fleet("us-west-2", ENDPOINT, "AKID", SECRET),
            self.get_fleet("us-east-1", "http://127.0.0.1:1", "AKID", SECRET),
            self.get_fleet("us-east-1", ENDPOINT, "OTHER", SECRET),
            self.get_fleet("us-east-1", ENDPOINT, "AKID", "other"),
            self.get_fleet("us-east-1", ENDPOINT),
        ]
        self.assertEqual(len({*others, self.fleet}), 6)
        self.assertEqual(set(fleets(self.master.namedServices)), {*others, self.fleet})

    def test_name_holds_no_secret(self):
        """Names of services are logged: they say nothing of the account."""
        for name in (self.fleet.name, Fleet.getName("us-east-1", ENDPOINT, secret_key=SECRET)):
            self.assertRegex(name, "^Fleet_[0-9a-f]{32}$")
        self.assertNotIn(SECRET, repr(vars(self.fleet)["name"]) + repr(self.fleet))


class Launching(FleetTestCase):
    def test_accepted(self):
        launched = self.launch()
        self.assertNoResult(launched)
        parameters = self.ec2.last("run").args[0]
        self.assertEqual(parameters, {"InstanceType": "c7i.large", "ClientToken": parameters["ClientToken"]})
        self.ec2.last("run").answer(instance())
        rental = self.successResultOf(launched)
        self.assertEqual((rental.instance_id, rental.worker), ("i-1", "w"))
        self.assertEqual(self.fleet.rentals, {"i-1": rental})
        self.assertEqual(len(self.ec2.made("run")), 1)
        self.clock.advance(1)
        self.assertEqual(self.ec2.last("look").args, ("i-1",))

    def test_offers_are_not_kept(self):
        """There is user-data in them, and a password in that: nobody needs it as long as the instance runs."""

        class Parameters(dict):
            """One that can be referred to weakly."""

        offers = [Offer("c7i.large", None, "on-demand", Parameters(UserData="secret"))]
        kept = weakref.ref(offers[0]), weakref.ref(offers[0].parameters)
        launched = self.launch(offers)
        self.ec2.last("run").answer(instance())
        rental = self.successResultOf(launched)
        del offers, launched
        gc.collect()
        self.assertEqual([one() for one in kept], [None, None])
        self.assertEqual(rental.pool, ("c7i.large", None, "on-demand"))

    def test_next_offer(self):
        """Where EC2 has no capacity, the next offer is asked for, with a token of its own."""
        launched = self.launch()
        for _ in OFFERS[:-1]:
            self.assertNoResult(launched)
            self.ec2.last("run").fail(refusal(NO_CAPACITY))
        self.ec2.last("run").answer(instance())
        self.assertEqual(self.successResultOf(launched).instance_id, "i-1")
        asked = [call.args[0] for call in self.ec2.made("run")]
        self.assertEqual([one["InstanceType"] for one in asked], ["c7i.large", "c6i.large", "m7i.large"])
        self.assertEqual(len({one["ClientToken"] for one in asked}), 3)

    def test_token_of_each_launch(self):
        self.rent("i-1")
        self.rent("i-2")
        self.assertEqual(len({call.args[0]["ClientToken"] for call in self.ec2.made("run")}), 2)
        self.assertNotIn("ClientToken", OFFERS[0].parameters)

    def test_last_offer_refused(self):
        """When no offer has capacity, the caller learns what EC2 said of each."""
        launched = self.launch()
        for error in (refusal(NO_CAPACITY), refusal(NO_CAPACITY), refusal("InsufficientHostCapacity")):
            self.ec2.last("run").fail(error)
        failure = self.failureResultOf(launched, EC2CallError).value
        self.assertEqual(
            str(failure),
            f"c7i.large on-demand: {NO_CAPACITY}: no; c6i.large on-demand: {NO_CAPACITY}: no; "
            "m7i.large on-demand: InsufficientHostCapacity: no",
        )
        self.assertEqual((failure.error_class, failure.outcome_unknown), (ErrorClass.NO_CAPACITY, False))
        self.assertEqual(self.told(), [("request", None), ("refused", None)] * 3)
        self.assertEqual(self.events[-1].text, "m7i.large on-demand: InsufficientHostCapacity: no")

    def test_mistake(self):
        """What another offer does not mend ends the launch at once; nothing is looked for."""
        for error in (refusal(BAD_IMAGE), refusal("AuthFailure"), NotConnected("refused")):
            before = len(self.ec2.made("run"))
            launched = self.launch()
            self.ec2.last("run").fail(error)
            self.assertIs(self.failureResultOf(launched, EC2CallError).value, error)
            self.assertEqual(len(self.ec2.made("run")), before + 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self):
        """A launch that EC2 accepts after its caller has gone is ended."""
        launched = self.launch()
        launched.cancel()
        self.failureResultOf(launched, defer.CancelledError)
        self.assertFalse(self.ec2.last("run").cancelled)
        self.ec2.last("run").answer(instance())
        self.assertEqual(self.ec2.last("terminate").args, ("i-1",))
        self.assertIn("i-1", self.fleet.rentals)

    def test_cancelled_before_it_was_sent(self):
        """A launch that still waits for its turn is taken out, and nothing is looked for."""
        self.ec2.sent = False
        launched = self.launch()
        launched.cancel()
        self.failureResultOf(launched, defer.CancelledError)
        self.assertTrue(self.ec2.last("run").cancelled)
        self.assertEqual((self.fleet.rentals, len(self.fleet.background), self.clock.getDelayedCalls()), ({}, 0, []))
        self.assertFalse([text for text in self.texts if "may have started" in text])

    def test_abandoned(self):
        """The call knows that nobody wants its effect any more, so that it is not attempted again."""
        launched = self.launch()
        call = self.ec2.last("run").args[1]
        self.assertEqual((call.caller, call.abandoned), ("w", False))
        launched.cancel()
        self.failureResultOf(launched, defer.CancelledError)
        self.assertTrue(call.abandoned)

    def test_abandoned_without_an_answer(self):
        """An instance that the call may have started all the same is looked for."""
        launched = self.launch()
        launched.cancel()
        self.failureResultOf(launched, defer.CancelledError)
        self.ec2.last("run").fail(NoAnswer("a bad day"))
        self.pump(1)
        self.ec2.last("describe").answer(instance("i-9"))
        self.assertEqual(self.ec2.last("terminate").args, ("i-9",))

    def test_cancelled_after_silence(self):
        """A launch that waits to be repeated and is cancelled is not, and what it may have started is looked for."""
        launched = self.launch()
        self.ec2.last("run").args[1].under_way = False  # it waits; an earlier attempt has had no answer
        launched.cancel()
        self.failureResultOf(launched, defer.CancelledError)
        self.assertTrue(self.ec2.last("run").cancelled)
        self.pump(1)
        self.ec2.last("describe").answer(instance("i-9"))
        self.assertEqual(self.ec2.last("terminate").args, ("i-9",))

    def test_mistake_of_the_code(self):
        """Whatever goes wrong while EC2 answers, an instance that may have been started is looked for, in spite of all."""
        launched = self.launch()
        self.ec2.last("run").fail(ZeroDivisionError("a bug"))
        self.failureResultOf(launched, ZeroDivisionError)
        self.pump(1)
        self.ec2.last("describe").fail(ZeroDivisionError("another one"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.pump(2)
        self.ec2.last("describe").answer(instance("i-9"))
        self.assertEqual(self.ec2.last("terminate").args, ("i-9",))

    def test_certificates(self):
        """The certificates that AWS's own settings name are those that EC2's is held against."""
        given = []
        self.patch(region, "Transport", lambda *arguments: given.append(arguments) or Transport(self.clock))
        self.patch(os, "environ", {**os.environ, "AWS_CA_BUNDLE": "/etc/farm.pem"})
        self.get_fleet("us-west-2", ENDPOINT)
        self.assertEqual(given, [(self.clock, "/etc/farm.pem")])

    def test_token_of_an_ended_instance(self):
        """A reply was lost and its instance has ended before the call was repeated: the offer is asked for once more."""
        launched = self.launch()
        self.ec2.last("run").fail(refusal("IdempotentInstanceTerminated"))
        self.assertNoResult(launched)
        first, second = (call.args[0] for call in self.ec2.made("run"))
        self.assertEqual(first["InstanceType"], second["InstanceType"])
        self.assertNotEqual(first["ClientToken"], second["ClientToken"])
        self.ec2.last("run").fail(refusal("IdempotentInstanceTerminated"))
        self.failureResultOf(launched, EC2CallError)
        self.assertEqual(len(self.ec2.made("run")), 2)

    def test_no_capacity_after_silence(self):
        """Where an earlier attempt may have started an instance, no other offer is asked for under the same tag."""
        launched = self.launch()
        error = refusal(NO_CAPACITY)
        error.after_unknown = True
        self.ec2.last("run").fail(error)
        self.assertIs(self.failureResultOf(launched, EC2CallError).value, error)
        self.pump(1)
        self.assertEqual((len(self.ec2.made("run")), len(self.ec2.made("describe"))), (1, 1))

    def test_cancelled_asks_for_no_other_offer(self):
        launched = self.launch()
        launched.cancel()
        self.failureResultOf(launched, defer.CancelledError)
        self.ec2.last("run").fail(refusal(NO_CAPACITY))
        self.assertEqual(len(self.ec2.made("run")), 1)

    def test_events(self):
        """Listeners are told everything that happens to an instance, in order."""
        rental = self.rent()
        for state in ("running", "running"):
            self.pump(3)
            self.ec2.last("look").answer(instance(state=state))
        self.fleet.terminate(rental)
        self.ec2.last("terminate").answer()
        self.pump(2)
        self.ec2.last("look").answer(instance(state="terminated", code="Client.User", message="bye"))
        kinds = ["request", "launch", "pending", "running", "terminate", "terminated"]
        self.assertEqual(self.told(), [(kind, None if kind == "request" else "i-1") for kind in kinds])
        self.assertEqual({event.worker for event in self.events}, {"w"})
        texts = [event.text for event in self.events]
        self.assertEqual(texts[:2], ["c7i.large on-demand", "t3.micro on-demand in us-east-1a"])
        self.assertEqual(texts[-1], "Client.User: bye")
        self.assertEqual((self.fleet.rentals, self.clock.getDelayedCalls()), ({}, []))


class Unanswered(FleetTestCase):
    """EC2 may have started an instance, and we do not know."""

    def setUp(self):
        super().setUp()
        launched = self.launch()
        self.ec2.last("run").fail(NoAnswer("a bad day"))
        self.failureResultOf(launched, NoAnswer)

    def test_no_other_offer(self):
        self.assertEqual(len(self.ec2.made("run")), 1)

    def test_nothing_was_started(self):
        """The instance is looked for by its tag, ever more rarely, for as long as EC2 may not know it."""
        times = self.times("describe", ABSENT_LIMIT * 3, lambda call: call.answer())
        self.assertEqual(times, growing(len(times)))
        self.assertGreaterEqual(times[-1] - times[0], ABSENT_LIMIT)
        self.assertLess(times[-2] - times[0], ABSENT_LIMIT)
        self.assertEqual(self.ec2.last("describe").args, ({"tag:buildbot:launch": ["launch-1"]},))
        self.assertEqual((self.ec2.made("terminate"), self.clock.getDelayedCalls()), ([], []))

    def test_found(self):
        """What is found is ended, and watched until its end."""
        self.pump(3)
        for answer in ([], [instance("i-9", "running")]):
            self.ec2.last("describe").answer(*answer)
            self.pump(4)
        self.assertEqual([call.args for call in self.ec2.made("terminate")], [("i-9",)])
        self.ec2.last("terminate").answer()
        self.assertEqual(self.ec2.last("look").args, ("i-9",))
        self.ec2.last("look").answer(instance("i-9", "terminated"))
        self.pump(ABSENT_LIMIT)
        self.assertEqual(len(self.ec2.made("describe")), 2)
        self.assertEqual((self.fleet.rentals, self.clock.getDelayedCalls()), ({}, []))

    def test_long_outage(self):
        """As long as EC2 does not answer, the time does not run: what is found after it is ended all the same."""
        self.times("describe", ABSENT_LIMIT * 3, lambda call: call.fail(NotConnected("still a bad day")))
        self.pump(100)
        self.ec2.last("describe").answer(instance("i-9"))
        self.assertEqual(self.ec2.last("terminate").args, ("i-9",))

    def test_found_ended(self):
        self.pump(1)
        self.ec2.last("describe").answer(instance("i-9", "terminated"))
        self.assertEqual((self.ec2.made("terminate"), self.fleet.rentals), ([], {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_trouble_while_looking(self):
        self.pump(1)
        self.ec2.last("describe").fail(NotConnected("still a bad day"))
        self.pump(2)
        self.ec2.last("describe").answer(instance("i-9"))
        self.assertEqual(self.ec2.last("terminate").args, ("i-9",))

    def test_stop_says_what_may_be_left(self):
        """A master that stops before it is known names the tag to look for."""
        self.pump(1)
        stopped = self.fleet.stopService()
        self.pump(STOP_TIMEOUT)
        self.successResultOf(stopped)
        self.assertIn(
            "worker w: EC2 may have started an instance for it, tagged buildbot:launch=launch-1; it may run", self.texts
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Absent(FleetTestCase):
    """An instance that EC2 does not list any more is ended, to be sure."""

    def setUp(self):
        super().setUp()
        self.rental = self.rent(state="running")
        self.times("look", 3 * ABSENT_LIMIT, lambda call: self.ec2.made("terminate") or call.answer())

    def test_gone(self):
        """EC2 says that there is no such instance: that, and no listing, is the end."""
        self.assertFalse(self.rental.ended)
        [call] = self.ec2.made("terminate")
        call.fail(refusal("InvalidInstanceID.NotFound"))
        self.assertEqual((self.rental.ended, self.told()[-1], self.fleet.rentals), (True, ("terminated", "i-1"), {}))

    def test_there_it_is(self):
        """EC2 has accepted, so there was one: it is watched until its end."""
        self.ec2.last("terminate").answer()
        self.ec2.last("look").answer(instance("i-1", "shutting-down"))
        self.assertEqual((self.rental.state, list(self.fleet.rentals)), ("shutting-down", ["i-1"]))

    def test_trouble(self):
        """Without an answer, nothing is known: it comes up again."""
        self.ec2.last("terminate").fail(NotConnected("a bad day"))
        self.assertFalse(self.rental.ended)
        self.ec2.last("look").answer()
        self.times("look", 3 * ABSENT_LIMIT, lambda call: None if call.waiting.called else call.answer())
        self.assertGreater(len(self.ec2.made("terminate")), 1)
