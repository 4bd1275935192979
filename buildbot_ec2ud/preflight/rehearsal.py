"""Dry runs of the calls that a master makes: EC2 says whether it would do them, and does nothing."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import EC2CallError, EC2Error
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.preflight.candidates import Candidate, Needs, question
from buildbot_ec2ud.preflight.findings import State, missing_permission, not_allowed

if TYPE_CHECKING:
    from buildbot_ec2ud.preflight import Preflight

#: What nobody has, in the form of EC2's ids: whoever takes a dry run for a real call can do no harm with it.
NO_INSTANCE, NO_ASSOCIATION = "i-00000000000000000", "eipassoc-00000000000000000"
_NO_VOLUME, _NO_ADDRESS = "vol-00000000000000000", "eipalloc-00000000000000000"

#: What EC2 says of those, where it would do the call.
_UNKNOWN_THING = (".NotFound", ".Malformed")


class Rehearsal:
    """Makes the dry runs of one place.

    :param preflight: what is told of them.
    """

    def __init__(self, preflight: Preflight) -> None:
        self._preflight = preflight
        self._client = preflight.client

    @defer.inlineCallbacks
    def run(self, candidates: Sequence[Candidate]) -> Generator[Any, Any, None]:
        """Ask for each offer of *candidates*, once for all who would launch the same; and for the other calls."""
        offers: dict[str, tuple[Offer, list[str]]] = {}
        for candidate in candidates:
            for offer in candidate.offers if candidate.launchable else ():
                offers.setdefault(question(offer), (offer, []))[1].append(candidate.name)
        for offer, workers in offers.values():
            if not (yield self._launch(offer, workers)):
                break
        yield self._others(candidates)

    @defer.inlineCallbacks
    def _launch(self, offer: Offer, workers: Sequence[str]) -> Generator[Any, Any, bool]:
        """Ask for one offer; fires with whether to ask for others."""
        subject = f"dry run of {offer}"
        try:
            answer = yield self._client.dry_run("RunInstances", offer.parameters)
        except EC2CallError as error:
            self._preflight.tell_error(subject, error, "RunInstances", workers)
            return True
        if answer is None:
            self._preflight.tell(State.OK, subject, _granted(offer), "", workers)
            return True
        ids = [instance.instance_id for instance in self._client.parser.run_instances(answer)]
        yield self._end(subject, ids)
        return False

    @defer.inlineCallbacks
    def _end(self, subject: str, ids: Sequence[str]) -> Generator[Any, Any, None]:
        """The endpoint knows no dry runs: end what it has launched."""
        text = f"this endpoint knows no dry runs, and has launched {', '.join(ids)}"
        fix = "nothing is left, but do not check workers there"
        try:
            yield self._client.terminate_instances(*ids)
        except EC2CallError as error:
            text, fix = f"{text}, which it does not end: {error}", "end it with 'buildbot-ec2ud reap'"
        self._preflight.tell(State.PROBLEM, subject, text, fix)

    @defer.inlineCallbacks
    def _others(self, candidates: Sequence[Candidate]) -> Generator[Any, Any, None]:
        """Ask for the calls that come after a launch, as far as can be told without an instance."""
        wanted = [candidate.worker.settings.attachments for candidate in candidates]
        yield self._may("TerminateInstances", {"InstanceIds": [NO_INSTANCE]})
        yield self._may("GetConsoleOutput", {"InstanceId": NO_INSTANCE})
        mapping = {"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}
        yield self._may("ModifyInstanceAttribute", {"InstanceId": NO_INSTANCE, "BlockDeviceMappings": [mapping]})
        if any(one.volumes for one in wanted):
            volume = {"VolumeId": _NO_VOLUME, "InstanceId": NO_INSTANCE, "Device": "/dev/sdf"}
            yield self._may("AttachVolume", volume)
        if any(one.elastic_ip for one in wanted):
            yield self._may("AssociateAddress", {"AllocationId": _NO_ADDRESS, "InstanceId": NO_INSTANCE})
            yield self._may("DisassociateAddress", {"AssociationId": NO_ASSOCIATION})

    @defer.inlineCallbacks
    def _may(self, action: str, parameters: dict[str, Any]) -> Generator[Any, Any, None]:
        """Ask for a call about something that there is not."""
        subject = f"permission ec2:{action}"
        try:
            yield self._client.dry_run(action, parameters)
        except EC2CallError as error:
            if not_allowed(error):
                named = missing_permission(error, action)
                text = f"{named} is refused for what is not there; a policy that asks for this master's tags does that, too"
                self._preflight.tell(State.LATER, subject, text)
                return
            if not (isinstance(error, EC2Error) and error.code.endswith(_UNKNOWN_THING)):
                self._preflight.tell_error(subject, error, action)
                return
        self._preflight.tell(State.OK, subject, "is not refused")


def _granted(offer: Offer) -> str:
    """What EC2 has looked at."""
    needs = Needs.of(offer)
    parts = ["the permissions and the parameters"]
    if offer.parameters.get("IamInstanceProfile"):
        profile = offer.parameters["IamInstanceProfile"]
        parts.append(f"instance profile {profile.get('Name') or profile.get('Arn')}")
    if needs.image.startswith("resolve:"):
        parts.append(f"image {needs.image}")
    return f"EC2 would launch it: {', '.join(parts)}"
