"""Asks EC2 about everything that the starts of some workers need, in one region of one account. Nothing is launched."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.ec2.images import Image
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.ec2.surroundings import SurroundingsClient
from buildbot_ec2ud.fleet.images import Images, NoImage
from buildbot_ec2ud.fleet.leftovers import tagged
from buildbot_ec2ud.fleet.prices import SpotPrices
from buildbot_ec2ud.launch import as_list
from buildbot_ec2ud.preflight.candidates import Candidate
from buildbot_ec2ud.preflight.findings import Finding, State, not_allowed, of_error
from buildbot_ec2ud.preflight.possessions import check_possessions
from buildbot_ec2ud.preflight.premises import Premises
from buildbot_ec2ud.preflight.rehearsal import Rehearsal

_T = TypeVar("_T")

#: Calls without an answer after which no others are made: each has been waited for.
UNANSWERED = 3


class GivenUp(Exception):
    """EC2 does not answer any more."""


class Preflight:
    """Looks at one place.

    :param client: what makes the calls.
    :param place: region and endpoint, as people read them.
    :param candidates: the workers, and what they would launch.
    :param reactor: the clock.
    :ivar findings: what has been found.
    :ivar own: the master's instances there.
    :ivar images: finds images there.
    """

    def __init__(self, client: SurroundingsClient, place: str, candidates: Sequence[Candidate], reactor: Any) -> None:
        self.client = client
        self.candidates = candidates
        self.findings: list[Finding] = []
        self.own: list[Instance] = []
        self._place = place
        self._unanswered: list[EC2CallError] = []
        self._answers: dict[Any, tuple[Any, EC2CallError | None]] = {}
        self.images = Images(client, reactor)
        self._prices = SpotPrices(client, reactor)

    def tell(self, state: State, subject: str, text: str, fix: str = "", workers: Iterable[str] = ()) -> None:
        """Add a finding."""
        self.findings.append(Finding(state, self._place, subject, text, fix, tuple(dict.fromkeys(workers))))

    def tell_error(
        self,
        subject: str,
        error: EC2CallError,
        action: str,
        workers: Iterable[str] = (),
        only_checked: bool = False,
    ) -> None:
        """Add what a call has failed for; see :func:`~buildbot_ec2ud.preflight.findings.of_error`.

        :raises GivenUp: too many calls were not answered.
        """
        state, text, fix = of_error(error, action, only_checked)
        self.tell(state, subject, text, fix, workers)
        if error.error_class in (ErrorClass.UNREACHABLE, ErrorClass.SERVER_FAULT) and error not in self._unanswered:
            self._unanswered.append(error)
            if len(self._unanswered) == UNANSWERED:
                raise GivenUp

    @defer.inlineCallbacks
    def once(self, key: Any, ask: Callable[[], defer.Deferred[_T]]) -> Generator[Any, Any, _T]:
        """What *ask* gives; it is called for the first worker that wants to know.

        :param key: what tells the question from others.
        :raises EC2CallError: what it failed with, for each worker.
        """
        if key not in self._answers:
            try:
                self._answers[key] = (yield ask()), None
            except EC2CallError as error:
                self._answers[key] = None, error
        answer, error = self._answers[key]
        if error is not None:
            raise error
        return answer

    @defer.inlineCallbacks
    def run(self) -> Generator[Any, Any, None]:
        """Ask everything. Fires when all is answered, or EC2 cannot be asked."""
        try:
            yield self._run()
        except GivenUp:
            text = f"given up: {UNANSWERED} calls were not answered"
            self.tell(State.UNASKED, "EC2", text, "try again when it answers")

    @defer.inlineCallbacks
    def _run(self) -> Generator[Any, Any, None]:
        if not (yield self._reach()):
            return
        for candidate in self.candidates:
            self._tell_of_user_data(candidate)
        ready = []
        for candidate in self.candidates:
            if unknown := candidate.unknown():
                self._tell_of_unknown(candidate, unknown, "so the launch is not looked at")
                continue
            if left_out := candidate.left_out():
                self._tell_of_unknown(candidate, left_out, "and the launch is looked at without that")
            yield self._find_image(candidate)
            yield self._ask_prices(candidate)
            launch = candidate.launch
            candidate.make_offers(dict.fromkeys(as_list(launch.instance_type) or [None], launch.max_spot_price))
            ready.append(candidate)
        subnets = yield Premises(self, ready).run()
        yield check_possessions(self, ready, subnets)
        yield Rehearsal(self).run(ready)

    @defer.inlineCallbacks
    def _reach(self) -> Generator[Any, Any, bool]:
        """Make the first call, which shows whether EC2 answers, and takes the credentials and the clock."""
        owners = {candidate.owner for candidate in self.candidates}
        try:
            self.own = yield tagged(self.client, owners)
        except EC2CallError as error:
            if not not_allowed(error):
                self.tell_error("EC2", error, "DescribeInstances")
                return False
            self.tell_error("permission ec2:DescribeInstances", error, "DescribeInstances")
        self.tell(State.OK, "EC2", f"answers, and takes this machine's clock and the {self.client.creds.origin}")
        return True

    def _tell_of_user_data(self, candidate: Candidate) -> None:
        preview, workers = candidate.preview, (candidate.name,)
        for line in preview.troubles:
            self.tell(State.PROBLEM, "user-data", line, "see 'buildbot-ec2ud userdata'", workers)
        for line in preview.notes:
            self.tell(State.LATER, "user-data", line, "", workers)
        if preview.size is not None and not preview.troubles:
            self.tell(State.OK, "user-data", f"{preview.way}; EC2 takes its size", "", workers)

    def _tell_of_unknown(self, candidate: Candidate, unknown: Sequence[str], rest: str) -> None:
        verb = "is" if len(unknown) == 1 else "are"
        text = f"{', '.join(unknown)} {verb} known only when a build starts, {rest}"
        self.tell(State.LATER, "launch", text, "", (candidate.name,))

    @defer.inlineCallbacks
    def _find_image(self, candidate: Candidate) -> Generator[Any, Any, None]:
        """Find the image of a worker; where there is none, its launch is not asked for."""
        workers, wanted = (candidate.name,), candidate.wanted_image
        if wanted is None:
            if candidate.launch.ami:
                text = "EC2 itself finds it at each launch, and so in the dry run"
                self.tell(State.OK, f"image {candidate.launch.ami}", text, "", workers)
            return
        subject = f"image {wanted}"
        try:
            find = self.images.by_id if isinstance(wanted, str) else self.images.find
            candidate.image = yield self.once(wanted, lambda: find(wanted))
        except NoImage as error:
            candidate.launchable = False
            fix = "give ami an id of this region, or owners, a name and filters that fit an image"
            self.tell(State.PROBLEM, subject, str(error), fix, workers)
        except EC2CallError as error:
            # By its id, a start does not ask for it, but where its root device has to be known.
            only_checked = isinstance(wanted, str) and not candidate.launch.encrypted_volumes
            candidate.launchable = only_checked and not_allowed(error)
            self.tell_error(subject, error, "DescribeImages", workers, only_checked)
        else:
            candidate.launchable = candidate.image.available
            self.tell_of_image(subject, candidate.image, workers)

    def tell_of_image(self, subject: str, image: Image, workers: Iterable[str]) -> None:
        """Add what EC2 knows of an image."""
        named = ", ".join(filter(None, (image.name, image.architecture)))
        subject += "" if image.image_id in subject else f" is {image.image_id}"
        text = f"{image.state}{f' ({named})' if named else ''}"
        if image.available:
            self.tell(State.OK, subject, text, "", workers)
        else:
            fix = "wait until it is available, or give another ami"
            self.tell(State.PROBLEM, subject, f"its state is {text}", fix, workers)

    @defer.inlineCallbacks
    def _ask_prices(self, candidate: Candidate) -> Generator[Any, Any, None]:
        launch = candidate.launch
        zone = f"{launch.region}{launch.placement}" if launch.placement else None
        for kind in candidate.prices_of:
            try:
                wanted = (kind, launch.product_description or "Linux/UNIX", zone)
                average = yield self.once(wanted, lambda wanted=wanted: self._prices.average(*wanted))
            except EC2CallError as error:
                self.tell_error(f"spot prices of {kind}", error, "DescribeSpotPriceHistory", (candidate.name,))
                continue
            if average is None:
                text = "EC2 tells none of the last 24 hours, so price_multiplier is of no effect"
                fix = "see to product_description, or give max_spot_price"
                self.tell(State.PROBLEM, f"spot prices of {kind}", text, fix, (candidate.name,))
            else:
                self.tell(State.OK, f"spot prices of {kind}", f"{average:.4f} dollars an hour", "", (candidate.name,))
