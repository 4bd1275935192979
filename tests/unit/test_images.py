"""Which of EC2's images is taken; and one look-up for all who want the same."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from buildbot.worker.ec2 import EC2LatentWorker
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, task
from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import EC2CallError, EC2Error, ErrorClass, NoAnswer
from buildbot_ec2ud.ec2.images import Image
from buildbot_ec2ud.fleet.image_rules import ImageRule
from buildbot_ec2ud.fleet.images import KEEP, LIMIT, Images, NoImage, choose
from tests.unit.fleets import SilentEC2, refusal

RULE = ImageRule.of({"owners": "self", "name": "a-*"})


def image(image_id: str, location: str | None = None, date: str = "", state: str = "available") -> Image:
    return Image(image_id, state, location, creation_date=date)


def located(*locations: str | None) -> list[Image]:
    """Available images, ``ami-0`` and so on."""
    return [image(f"ami-{number}", location) for number, location in enumerate(locations)]


class ListingEC2(SilentEC2):
    """A client that waits with its listings of images too."""

    def describe_images(self, *ids: str, owners: Any = (), filters: Any = None) -> defer.Deferred[Any]:
        return self._call("images", ids, owners, filters)


class ByLocation(SynchronousTestCase):
    """The rule of Buildbot's manual: the last one wins."""

    def chosen(self, regex: str, *locations: str | None) -> str | None:
        """The location that is chosen, in whatever order EC2 lists them."""
        rule = ImageRule.of_locations("self", regex)
        images = located(*locations)
        found = choose(rule, images)
        self.assertEqual(choose(rule, images[::-1]), found)
        return found.location

    def test_without_a_group(self) -> None:
        self.assertEqual(self.chosen("mine/", "mine/9", "mine/10", "theirs/99"), "mine/9")

    def test_numbers(self) -> None:
        """As numbers, 9 comes before 10; whatever stands around them."""
        self.assertEqual(self.chosen(r"mine/\w-(\d+)", "mine/z-9", "mine/a-10", "mine/b-08x"), "mine/a-10")
        self.assertEqual(self.chosen(r"mine/(\d+)", "mine/9", "mine/10", "mine/1000"), "mine/1000")
        self.assertEqual(self.chosen(r"mine(-\d+)", "mine-9", "mine-10"), "mine-9")

    def test_not_all_numbers(self) -> None:
        """One that is no number makes texts of all, wherever it is listed."""
        for locations in (("m/9", "m/10", "m/1a"), ("m/1a", "m/10", "m/9"), ("m/10", "m/1a", "m/9")):
            self.assertEqual(self.chosen("m/(.*)", *locations), "m/9")
        self.assertEqual(self.chosen("./(.*)", "b/x", "a/y", "c/x"), "a/y")
        # What does not match has no say in it.
        self.assertEqual(self.chosen("m/(.*)", "m/9", "m/10", "n/1a"), "m/10")
        # A number beyond what Python reads is a text.
        self.assertEqual(self.chosen("m/(.*)", "m/" + "1" * 5000, "m/2"), "m/2")

    def test_group_that_is_not_always_there(self) -> None:
        """Then the location decides. (Buildbot's own class crashes.)"""
        self.assertEqual(self.chosen(r"(?:b/(\d+)|\w)", "b/7", "a", "c"), "c")

    def test_only_the_first_group(self) -> None:
        self.assertEqual(self.chosen(r"(\d)/(\d)", "2/1", "1/2"), "2/1")

    def test_ties(self) -> None:
        """Equal numbers: by their texts; equal groups: by location; equal locations: by id."""
        self.assertEqual(self.chosen(r"\w/(\d)", "b/1", "a/1"), "b/1")
        self.assertEqual(self.chosen(r"\w/(\d+)", "b/01", "a/1"), "a/1")
        images = [image("ami-2", "a"), image("ami-3", "a"), image("ami-1", "a")]
        self.assertEqual(choose(ImageRule.of_locations("self", "a"), images).image_id, "ami-3")

    def test_beginning(self) -> None:
        """The beginning of a location has to match, not all of it, nor its middle."""
        self.assertEqual(self.chosen("mine", "mine/1", "not-mine/2"), "mine/1")

    def test_any_location(self) -> None:
        """Owners without a regular expression: the last location of theirs, as Buildbot's manual has it."""
        images = [image("ami-1", "b/1", date="2020"), image("ami-2", "a/1", date="2030")]
        self.assertEqual(choose(ImageRule.of_locations("self"), images).image_id, "ami-1")

    def test_without_a_location(self) -> None:
        """An image without a location matches nothing, and harms nobody. (Buildbot's own class crashes.)"""
        for regex in ("", ".*", "(.*)", "None"):
            self.assertRaises(NoImage, choose, ImageRule.of_locations("self", regex), located(None, None))
        self.assertEqual(self.chosen("(.*)", None, "1", None), "1")

    def test_not_available(self) -> None:
        for state in ("pending", "failed", "deregistered", "disabled", "invalid"):
            images = [image("ami-1", "a/1"), image("ami-2", "a/2", state=state), image("ami-3", "a/x", state=state)]
            self.assertEqual(choose(ImageRule.of_locations("self", "a/(.*)"), images).image_id, "ami-1")

    def test_none(self) -> None:
        """What is said names the rule, and how many images EC2 listed; a build does not try again."""
        rule = ImageRule.of_locations(99720109477, "a\n/(.*)")
        error = self.assertRaises(NoImage, choose, rule, located("b/1", "c/1"))
        text = r"no available image fits: owners 099720109477; location 'a\n/(.*)' (EC2 lists 2)"
        self.assertEqual(str(error), text)
        self.assertIsInstance(error, EC2CallError)
        self.assertIs(error.error_class, ErrorClass.CONFIGURATION)
        self.assertIn("(EC2 lists 0)", str(self.assertRaises(NoImage, choose, rule, [])))

    @settings(deadline=None)
    @given(
        st.sampled_from(
            ("", "a", "b*", "(a)", "([0-9]+)", "[ab/]*([0-9]*)", "(.*)", "a(.)(.)", ".*/(.+)", "(-?[0-9]+)")
        ),
        st.lists(st.text("ab/-_ 0129", max_size=5), min_size=1, max_size=8),
    )
    def test_as_upstream(self, regex: str, locations: list[str]) -> None:
        """Buildbot's own class takes the same one."""
        images = [
            SimpleNamespace(id=f"ami-{number}", image_location=location, state="available")
            for number, location in enumerate(locations)
        ]
        worker = EC2LatentWorker.__new__(EC2LatentWorker)
        worker.image = worker.valid_ami_owners = None
        worker.valid_ami_location_regex = re.compile(regex)
        worker.ec2 = SimpleNamespace(images=SimpleNamespace(all=lambda: images))
        self.patch(log, "msg", lambda *_: None)
        try:
            expected = worker.get_image().id
        except ValueError:
            expected = None
        try:
            found = choose(ImageRule.of_locations("self", regex), located(*locations)).image_id
        except NoImage:
            found = None
        self.assertEqual(found, expected)


class ByDate(SynchronousTestCase):
    """Without a regular expression, the newest one wins."""

    def test_newest(self) -> None:
        images = [
            image("ami-3", "z", "2031-02-03T04:05:06.000Z"),
            image("ami-1", "a", "2031-11-03T04:05:06.000Z"),
            image("ami-2", "b", "2030-12-03T04:05:06.000Z"),
            image("ami-4", None, ""),
            image("ami-5", "c", "2032-01-01T00:00:00.000Z", state="pending"),
        ]
        self.assertEqual(choose(RULE, images).image_id, "ami-1")
        self.assertEqual(choose(RULE, images[::-1]).image_id, "ami-1")

    def test_tie(self) -> None:
        date = "2031-02-03T04:05:06.000Z"
        images = [image("ami-1", "z", date), image("ami-2", "a", date)]
        self.assertEqual(choose(RULE, images).image_id, "ami-2")
        self.assertEqual(choose(RULE, images[::-1]).image_id, "ami-2")

    def test_none(self) -> None:
        error = self.assertRaises(NoImage, choose, RULE, [image("ami-1", state="failed")])
        self.assertEqual(str(error), "no available image fits: owners self; name 'a-*' (EC2 lists 1)")


class ImagesTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.ec2 = ListingEC2()
        self.images = Images(self.ec2, self.clock)

    def find(self, rule: ImageRule = RULE) -> defer.Deferred[Image]:
        return self.images.find(rule)

    def asked(self) -> list[Any]:
        return [call.args for call in self.ec2.calls]


class Finding(ImagesTestCase):
    def test_what_is_asked(self) -> None:
        """EC2 is told the owners and the filters, and the regular expression is ours to match."""
        self.find(ImageRule.of({"owners": ["self", 1], "name": ["b", "a"], "tag:x": ""}))
        self.find(ImageRule.of_locations("amazon", "(.*)"))
        self.assertEqual(
            self.asked(),
            [((), ("000000000001", "self"), {"name": ("a", "b"), "tag:x": ("",)}), ((), ("amazon",), {})],
        )

    def test_shared(self) -> None:
        """Who wants the same while it is looked for waits for the same call."""
        waiting = [self.find() for _ in range(20)]
        self.assertEqual(len(self.ec2.calls), 1)
        for one in waiting:
            self.assertNoResult(one)
        found = image("ami-1")
        self.ec2.calls[0].answer(found)
        self.assertEqual([self.successResultOf(one) for one in waiting], [found] * 20)

    def test_not_shared(self) -> None:
        """Who wants something else does not."""
        first, other = self.find(), self.find(ImageRule.of({"owners": "self", "name": "b-*"}))
        self.ec2.calls[1].answer(image("ami-2"))
        self.assertNoResult(first)
        self.assertEqual(self.successResultOf(other).image_id, "ami-2")

    def test_kept(self) -> None:
        """What was found is kept for a while from then on, and then looked for again."""
        self.find()
        self.clock.advance(KEEP)
        self.ec2.calls[0].answer(image("ami-1"))
        self.clock.advance(KEEP - 1)
        self.assertEqual(self.successResultOf(self.find()).image_id, "ami-1")
        self.assertEqual(len(self.ec2.calls), 1)
        self.clock.advance(1)
        again = self.find()
        self.assertNoResult(again)
        self.ec2.calls[1].answer(image("ami-2"))
        self.assertEqual(self.successResultOf(again).image_id, "ami-2")
        self.assertEqual(self.successResultOf(self.find()).image_id, "ami-2")
        self.assertEqual(len(self.ec2.calls), 2)

    def test_not_kept_for_ever(self) -> None:
        """Rules that nobody asks for any more do not pile up."""
        for number in range(5):
            self.find(ImageRule.of({"owners": "self", "name": str(number)}))
            self.ec2.calls[-1].answer(image("ami-1"))
            self.clock.advance(KEEP)
        self.assertEqual(len(self.images._kept), 1)

    def test_none(self) -> None:
        """That there is none is told to all, and not kept: somebody may have made one meanwhile."""
        waiting = [self.find(), self.find()]
        self.ec2.calls[0].answer()
        for one in waiting:
            self.failureResultOf(one, NoImage)
        again = self.find()
        self.ec2.calls[1].answer(image("ami-1"))
        self.assertEqual(self.successResultOf(again).image_id, "ami-1")

    def test_refused(self) -> None:
        """A failure is told to all, and not kept."""
        error = refusal("UnauthorizedOperation")
        waiting = [self.find(), self.find()]
        self.ec2.calls[0].fail(error)
        for one in waiting:
            self.assertIs(self.failureResultOf(one, EC2Error).value, error)
        self.assertNoResult(self.find())
        self.assertEqual(len(self.ec2.calls), 2)

    def test_failed_at_once(self) -> None:
        """A call that is not even made is no trap either."""
        self.ec2.describe_images = lambda *_, **__: defer.fail(refusal("MissingParameter"))
        self.failureResultOf(self.find(), EC2Error)
        self.ec2.describe_images = lambda *_, **__: defer.succeed([image("ami-1")])
        self.assertEqual(self.successResultOf(self.find()).image_id, "ami-1")

    def test_mistake_of_the_code(self) -> None:
        """Whatever it is, who waits is told."""
        waiting = self.find()
        self.ec2.calls[0].answer("no image")
        self.failureResultOf(waiting, AttributeError)

    def test_too_long(self) -> None:
        """A listing without end ends."""
        waiting = self.find()
        self.clock.advance(LIMIT - 1)
        self.assertNoResult(waiting)
        self.clock.advance(1)
        self.assertTrue(self.ec2.calls[0].cancelled)
        failure = self.failureResultOf(waiting, NoAnswer)
        self.assertEqual(str(failure.value), "DescribeImages: not all images within 600 s")
        self.assertNoResult(self.find())
        self.assertEqual(len(self.ec2.calls), 2)

    def test_nothing_left_behind(self) -> None:
        """When it is found, no timer runs on."""
        self.find()
        self.ec2.calls[0].answer(image("ami-1"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asked_again_from_inside(self) -> None:
        """Who hears of a failure and asks again at once gets another look-up."""
        again: list[defer.Deferred[Image]] = []
        self.find().addErrback(lambda _: again.append(self.find()))
        self.ec2.calls[0].fail(refusal("UnauthorizedOperation"))
        self.assertEqual(len(self.ec2.calls), 2)
        self.ec2.calls[1].answer(image("ami-1"))
        self.assertEqual(self.successResultOf(again[0]).image_id, "ami-1")


class Cancelling(ImagesTestCase):
    def test_one_of_two(self) -> None:
        """Who waits no longer does not keep the others from their image."""
        first, second = self.find(), self.find()
        first.cancel()
        self.failureResultOf(first, defer.CancelledError)
        self.assertFalse(self.ec2.calls[0].cancelled)
        self.ec2.calls[0].answer(image("ami-1"))
        self.assertEqual(self.successResultOf(second).image_id, "ami-1")

    def test_the_last_one(self) -> None:
        """When nobody waits any more, the call is cancelled, and the next one to ask begins anew."""
        waiting = [self.find(), self.find()]
        for one in waiting:
            one.cancel()
            self.failureResultOf(one, defer.CancelledError)
        self.assertTrue(self.ec2.calls[0].cancelled)
        again = self.find()
        self.ec2.calls[1].answer(image("ami-1"))
        self.assertEqual(self.successResultOf(again).image_id, "ami-1")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_call_that_takes_its_time_to_end(self) -> None:
        """Who asks while a cancelled call still ends shares the next one, and not its end."""
        ending: defer.Deferred[Any] = defer.Deferred()
        slow = defer.Deferred(lambda d: d.callback(None)).addCallback(lambda _: ending)
        self.ec2.describe_images, quick = lambda *_, **__: slow, self.ec2.describe_images
        self.find().addErrback(lambda failure: failure.trap(defer.CancelledError)).cancel()
        self.ec2.describe_images = quick
        again = [self.find()]
        ending.errback(refusal("RequestExpired"))
        again.append(self.find())
        self.assertEqual(len(self.ec2.calls), 1)
        self.ec2.calls[0].answer(image("ami-2"))
        self.assertEqual([self.successResultOf(one).image_id for one in again], ["ami-2"] * 2)

    def test_from_inside(self) -> None:
        """Who hears first may cancel the others."""
        first = self.find()
        second = self.find()
        first.addCallback(lambda _: second.cancel())
        self.ec2.calls[0].answer(image("ami-1"))
        self.failureResultOf(second, defer.CancelledError)
        self.assertEqual(self.successResultOf(self.find()).image_id, "ami-1")

    def test_stop(self) -> None:
        waiting = [self.find(), self.find(), self.images.by_id("ami-1")]
        self.images.stop()
        for one in waiting:
            self.failureResultOf(one, defer.CancelledError)
        self.assertTrue(all(call.cancelled for call in self.ec2.calls))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ById(ImagesTestCase):
    def test_shared_and_kept(self) -> None:
        waiting = [self.images.by_id("ami-1") for _ in range(3)]
        self.assertEqual(self.asked(), [(("ami-1",), (), None)])
        found = Image("ami-1", "disabled", root_device_name="/dev/xvda")
        self.ec2.calls[0].answer(found)
        self.assertEqual([self.successResultOf(one) for one in waiting], [found] * 3)
        self.assertEqual(self.successResultOf(self.images.by_id("ami-1")), found)
        self.assertNoResult(self.images.by_id("ami-2"))
        self.clock.advance(KEEP)
        self.assertNoResult(self.images.by_id("ami-1"))

    def test_unknown(self) -> None:
        waiting = self.images.by_id("ami-1")
        self.ec2.calls[0].fail(refusal("InvalidAMIID.NotFound"))
        error = self.failureResultOf(waiting, EC2Error).value
        self.assertEqual((error.code, error.error_class), ("InvalidAMIID.NotFound", ErrorClass.CONFIGURATION))

    def test_gone(self) -> None:
        """An answer without the image, or with another one, is no image."""
        for answer in ((), (image("ami-2"),)):
            waiting = self.images.by_id("ami-1")
            self.ec2.calls[-1].answer(*answer)
            error = self.failureResultOf(waiting, NoImage).value
            self.assertEqual(str(error), "EC2 has no image ami-1 any more")
