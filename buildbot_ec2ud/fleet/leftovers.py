"""Instances that nobody owns, of this master and of those that are dead: found, and ended."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.python import log

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet.background import pauses
from buildbot_ec2ud.fleet.masters import NOBODY, Others
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, WORKER_TAG

#: Seconds from a look to the next one. Two that are so far apart have to agree before an instance is ended: EC2 may go on
#: listing one as running whose end it has confirmed (EC2 developer guide, "Eventual consistency").
INTERVAL = 60.0

#: Seconds after a master was last active, as Buildbot's database has it, in which it may have started instances all the
#: same: it says that it is active each minute, and clocks differ. Buildbot calls it inactive after twice as long; what it
#: starts when it comes back is younger than that.
LAST_LAUNCH = 300.0

#: States of an instance that costs, or that will again when somebody starts it: what of it is on EBS does in any case. One
#: that is shutting down has been told to end.
LEFT = ("pending", "running", "stopping", "stopped")


@defer.inlineCallbacks
def tagged(
    client: EC2Client, owners: Collection[str] | None, states: Collection[str] = LEFT
) -> Generator[Any, Any, list[Instance]]:
    """Find the instances of masters.

    :param client: what to ask.
    :param owners: the masters' identities; None for all masters.
    :param states: which states matter.
    :raises EC2CallError: EC2 refused, or did not answer.
    """
    filters = {"instance-state-name": list(states)}
    if owners is None:
        filters["tag-key"] = [MASTER_TAG]
    else:
        filters[f"tag:{MASTER_TAG}"] = [_pattern(owner) for owner in sorted(owners)]
    found = yield client.describe_instances(filters=filters)
    return [
        instance
        for instance in found
        if instance.instance_state in states
        and MASTER_TAG in instance.tags
        and (owners is None or instance.tags[MASTER_TAG] in owners)
    ]


def _pattern(owner: str) -> str:
    # Characters that mean something in a filter, to EC2 or to those who imitate it, are left open: what is found is
    # compared anyway. Source: EC2 user guide, "List and filter your resources".
    return re.sub(r"[*?\[\\]", "?", owner)


class Leftovers:
    """Looks for instances of this master that nobody owns: of an earlier process, or of a call without an answer.

    The first look tells what was there before this process: that is ended at once. Later, what two looks in a row find
    without an owner is ended. A look that fails counts as none.

    Of a master that shares our database and is dead, it is ended what two looks in a row find. While an instance of that
    identity is younger than its master's death, somebody lives who has the identity and another database, such as the one
    of which ours is a copy: then nothing of it is touched. Nor is anything ended while another active master has our own.

    :param client: what to ask.
    :param clock: the reactor.
    :param owner: identity of this master, which no other one may have.
    :param owned: gives the ids of the instances that this master has, in whatever fleet, and the launch tags of launches
        that are under way.
    :param end: called with an instance that is to be ended; from then on, *owned* has to know it.
    :param others: gives a Deferred of what is known of the masters that share our database; by default there are none.
    """

    def __init__(
        self,
        client: EC2Client,
        clock: Any,
        owner: str,
        owned: Callable[[], Collection[str]],
        end: Callable[[Instance], Any],
        others: Callable[[], defer.Deferred[Others]] = lambda: defer.succeed(NOBODY),
    ) -> None:
        self._client = client
        self._clock = clock
        self._owner = owner
        self._owned = owned
        self._end = end
        self._others = others
        self._unowned: set[str] | None = None  # at the last look; None before the first one
        self._orphans: set[tuple[str, str, float]] = set()  # at the last look
        self._living: set[str] = set()
        self._pauses = pauses()
        self._timer: IDelayedCall | None = None
        self._looking: defer.Deferred[None] | None = None
        self._trouble = ""

    def start(self) -> None:
        """Look now, and from now on."""
        self._tick()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()

    def _tick(self) -> None:
        self._timer = None
        self._looking = self._look()
        self._looking.addErrback(lambda failure: log.err(failure, "while looking for leftovers on EC2"))
        self._looking.addCallback(self._looked)

    def _looked(self, _: None) -> None:
        if self._looking is None:
            return  # stopped
        self._looking = None
        pause = next(self._pauses) if self._unowned is None else INTERVAL
        self._timer = self._clock.callLater(pause, self._tick)

    @defer.inlineCallbacks
    def _look(self) -> Generator[Any, Any, None]:
        # An instance may end, and be forgotten, while EC2's answer is on its way; another may start.
        before = set(self._owned())
        found: list[Instance] = []
        try:
            others = yield self._others()
            if not others.rivals:
                found = yield tagged(self._client, [self._owner, *others.dead])
                found = self._unowned_of(found, before)
            if found:  # it is to be ended; but a master may have come back meanwhile
                others = yield self._others()
        except (EC2CallError, defer.CancelledError) as error:
            self._report_trouble(str(error))
            return
        if others.rivals:
            self._report_trouble(
                f"the identity {self._owner!r} is also that of {', '.join(others.rivals)}, which Buildbot calls active; "
                "give each master an owner of its own"
            )
            return
        self._report_trouble("")
        found = self._unowned_of(found, before)
        self._judge([instance for instance in found if instance.tags[MASTER_TAG] == self._owner])
        self._judge_orphans([instance for instance in found if instance.tags[MASTER_TAG] != self._owner], others)

    def _unowned_of(self, found: Sequence[Instance], before: Collection[str]) -> list[Instance]:
        """Those that nobody has, nor had *before*."""
        owned = {*before, *self._owned()}
        return [
            instance
            for instance in found
            if instance.instance_id not in owned and instance.tags.get(LAUNCH_TAG) not in owned
        ]

    def _judge(self, unowned: Sequence[Instance]) -> None:
        last, self._unowned = self._unowned, {instance.instance_id for instance in unowned}
        for instance in unowned:
            if last is None:
                self._end_leftover(instance, "it is older than this process")
            elif instance.instance_id in last:
                self._end_leftover(instance, "it was found twice without an owner")

    def _judge_orphans(self, unowned: Sequence[Instance], others: Others) -> None:
        """The instances of dead masters: *others* tells whether these are still dead."""
        living = {
            instance.tags[MASTER_TAG]
            for instance in unowned
            if instance.tags[MASTER_TAG] in others.dead
            and _launched(instance) > others.dead[instance.tags[MASTER_TAG]] + LAST_LAUNCH
        }
        for owner in living - self._living:
            log.msg(
                f"EC2 leftover: leaving the instances of {owner}: Buildbot calls this master inactive, but one of them was "
                "launched after that; the database may be a copy of another one"
            )
        self._living = living
        last, self._orphans = self._orphans, set()
        for instance in unowned:
            owner = instance.tags[MASTER_TAG]
            if owner not in others.dead or owner in living:
                continue
            orphan = instance.instance_id, owner, others.dead[owner]
            self._orphans.add(orphan)
            if orphan in last:
                self._end_leftover(instance, f"its master {owner} is dead, since {_text(others.dead[owner])}")

    def _end_leftover(self, instance: Instance, why: str) -> None:
        log.msg(
            f"EC2 leftover: ending {instance.instance_id} of worker {instance.tags.get(WORKER_TAG, '(unknown)')}, "
            f"{instance.instance_state}, launched {instance.launch_time}: {why}"
        )
        try:
            self._end(instance)
        except Exception:
            log.err(None, f"cannot end {instance.instance_id}")  # the next look finds it again

    def _report_trouble(self, text: str) -> None:
        """Log trouble once, not at each look."""
        if text and text != self._trouble:
            log.msg(f"cannot look for leftovers on EC2, will go on trying: {text}")
        self._trouble = text


def _launched(instance: Instance) -> float:
    """When it was launched, in seconds since 1970; infinite where EC2 does not tell, or in words that are not known."""
    try:
        return datetime.datetime.fromisoformat(instance.launch_time).timestamp()
    except (TypeError, ValueError):
        return float("inf")


def _text(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
