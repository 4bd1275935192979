"""Finds the image that is wanted: one look-up for all who want the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from twisted.internet import defer
from twisted.python.failure import Failure

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass, NoAnswer
from buildbot_ec2ud.ec2.images import Image
from buildbot_ec2ud.fleet.image_rules import ImageRule

#: Seconds for which an image that was found is not looked for again.
KEEP = 60.0
#: Seconds for all pages of a listing together.
LIMIT = 600.0


class NoImage(EC2CallError):
    """EC2 has no image of the kind that is wanted."""

    error_class = ErrorClass.CONFIGURATION


def choose(rule: ImageRule, images: Collection[Image]) -> Image:
    """Choose among what EC2 lists by *rule*. Only available images count.

    With a regular expression, as Buildbot's manual has it ("AWS EC2", of ``EC2LatentWorker``): of the images whose location
    it matches, the last one, by its first group if it has one, as a number if all of them are numbers, then by location.
    Without one, the newest.

    :raises NoImage: there is none.
    """
    available = [image for image in images if image.available]
    if rule.location_regex is None:
        ranked = [((image.creation_date,), image) for image in available]
    else:
        ranked = _by_location(re.compile(rule.location_regex), available)
    if not ranked:
        raise NoImage(f"no available image fits: {rule} (EC2 lists {len(images)})")
    return max(ranked, key=lambda one: (*one[0], one[1].image_id))[1]


def _by_location(pattern: re.Pattern[str], images: Iterable[Image]) -> list[tuple[tuple[Any, ...], Image]]:
    """The images that match, each with what it is ranked by."""
    found = []
    for image in images:
        # A location that is not told cannot match.
        if image.location is not None and (match := pattern.match(image.location)):
            found.append((match[1] if pattern.groups else None, image.location, image))
    groups = [group for group, *_ in found if group is not None]
    ranks: list[tuple[Any, ...]]
    if len(groups) < len(found):
        ranks = [()] * len(found)
    else:
        try:
            ranks = [(int(group), group) for group in groups]
        except ValueError:
            ranks = [(group,) for group in groups]
    return [((*rank, location), image) for rank, (_, location, image) in zip(ranks, found, strict=True)]


class Images:
    """Finds images; who wants the same shares one look-up, and what it finds for :data:`KEEP` seconds.

    :param client: what to ask.
    :param clock: the reactor.
    """

    def __init__(self, client: EC2Client, clock: Any) -> None:
        self._client = client
        self._clock = clock
        self._kept: dict[ImageRule | str, tuple[float, Image]] = {}
        self._looks: dict[ImageRule | str, _LookUp] = {}

    def find(self, rule: ImageRule) -> defer.Deferred[Image]:
        """Find the image that *rule* is about.

        :return: fires within :data:`LIMIT` seconds. Cancelling it cancels only the waiting, and the look-up where nobody
            else waits for it.
        :raises NoImage: there is none.
        :raises EC2CallError: EC2 refused, or did not answer.
        """

        def look() -> defer.Deferred[Image]:
            listed = self._client.describe_images(owners=rule.owners, filters=dict(rule.filters))
            return listed.addCallback(lambda images: choose(rule, images))

        return self._get(rule, look)

    def by_id(self, image_id: str) -> defer.Deferred[Image]:
        """Get an image, whatever its state; see :meth:`find`.

        :param image_id: such as ``ami-0123456789abcdef0``.
        :raises EC2Error: with the code ``InvalidAMIID.NotFound``, where EC2 knows none.
        :raises NoImage: EC2 knows only that there was one.
        """

        def only(images: list[Image]) -> Image:
            for image in images:
                if image.image_id == image_id:
                    return image
            raise NoImage(f"EC2 has no image {image_id} any more")

        return self._get(image_id, lambda: self._client.describe_images(image_id).addCallback(only))

    def stop(self) -> None:
        """Cancel all look-ups."""
        for look in list(self._looks.values()):
            look.cancel()

    def _get(self, wanted: ImageRule | str, ask: Callable[[], defer.Deferred[Image]]) -> defer.Deferred[Image]:
        until, image = self._kept.get(wanted, (0.0, None))
        if image is not None and self._clock.seconds() < until:
            return defer.succeed(image)
        look = self._looks.get(wanted)
        if look is not None:
            return look.join()

        def over() -> None:
            if self._looks.get(wanted) is look:
                del self._looks[wanted]

        def late(_: Any, seconds: float) -> None:
            raise NoAnswer(f"DescribeImages: not all images within {seconds:g} s")

        look = self._looks[wanted] = _LookUp(over)
        waiter = look.join()
        asked = ask().addCallback(self._keep, wanted)
        look.begin(asked.addTimeout(LIMIT, self._clock, late))
        return waiter

    def _keep(self, image: Image, wanted: ImageRule | str) -> Image:
        now = self._clock.seconds()
        self._kept = {key: kept for key, kept in self._kept.items() if now < kept[0]}
        self._kept[wanted] = now + KEEP, image
        return image


class _LookUp:
    """A look-up, and those who wait for it.

    :param over: called when nobody can join it any more.
    """

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self._waiters: list[defer.Deferred[Image]] = []

    def begin(self, work: defer.Deferred[Image]) -> None:
        self._work = work
        work.addBoth(self._tell)

    def join(self) -> defer.Deferred[Image]:
        waiter: defer.Deferred[Image] = defer.Deferred(self._leave)
        self._waiters.append(waiter)
        return waiter

    def cancel(self) -> None:
        self._work.cancel()

    def _leave(self, waiter: defer.Deferred[Image]) -> None:
        self._waiters.remove(waiter)
        if not self._waiters:
            self._over()
            self._work.cancel()

    def _tell(self, result: Image | Failure) -> None:
        self._over()
        while self._waiters:
            self._waiters.pop(0).callback(result)
