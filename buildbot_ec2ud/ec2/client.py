"""The calls to EC2 that the project makes, on top of txAWS's client."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet import defer
from txaws.ec2 import client
from txaws.service import AWSServiceEndpoint

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.ec2.attaching import ALLOCATION_PREFIX, Address, Volume
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import BadParameters
from buildbot_ec2ud.ec2.images import Image
from buildbot_ec2ud.ec2.parser import Instance, Parser
from buildbot_ec2ud.ec2.query import Call, QueryFactory

_T = TypeVar("_T")

#: Prices asked for in one page: EC2 takes up to 1000.
PRICES_PAGE = 500
#: Instances asked for in one page. EC2 takes 5 to 1000.
PAGE = 1000
#: Values that EC2 takes for one filter (EC2 user guide, "Filtering").
FILTER_VALUES = 200
#: Images asked for in one page. EC2 takes up to 1000; to parse 200 takes 3 ms, or 12 where each has two dozen devices.
IMAGES_PAGE = 200


class EC2Client(client.EC2Client):
    """txAWS's client for today's EC2: Signature Version 4, all parameters of RunInstances, pages.

    Calls that are not redefined here are txAWS's own (``create_volume`` and so on). Every call is attempted again where
    that helps, and fails with an :class:`~buildbot_ec2ud.ec2.errors.EC2CallError`.

    :param creds: what to sign with.
    :param endpoint_url: where EC2 answers.
    :param query_factory: makes and sends the queries.
    """

    def __init__(self, creds: AWSCredentials, endpoint_url: str, query_factory: QueryFactory) -> None:
        super().__init__(creds, AWSServiceEndpoint(endpoint_url, method="POST"), query_factory, Parser())

    def _call(
        self, action: str, parameters: Mapping[str, Any], parse: Callable[[bytes], _T], call: Call | None = None
    ) -> defer.Deferred[_T]:
        try:
            flat = shapes.flatten(action, parameters)
        except BadParameters:
            return defer.fail()
        query = self.query_factory(action=action, creds=self.creds, endpoint=self.endpoint, other_params=flat)
        query.parse = parse
        query.call = call or query.call
        return query.submit()

    def run_instances(self, parameters: Mapping[str, Any], call: Call | None = None) -> defer.Deferred[list[Instance]]:
        """Start instances.

        :param parameters: as in the EC2 API, nested, ``UserData`` already in base64. Without a ``ClientToken``, a call
            that was not answered is not repeated.
        :param call: whom it is for, and what becomes of it.
        """
        return self._call("RunInstances", parameters, self.parser.run_instances, call)

    def terminate_instances(self, *instance_ids: str) -> defer.Deferred[list[tuple[str, str, str]]]:
        """End instances: all, or, where EC2 refuses one of them, none.

        :return: fires with the id, the state before and the state now of each.
        """
        call = Call(instances=len(instance_ids))
        parameters = {"InstanceIds": list(instance_ids)}
        return self._call("TerminateInstances", parameters, self.parser.terminate_instances, call)

    @defer.inlineCallbacks
    def _pages(
        self, action: str, parameters: Mapping[str, Any], parse: Callable[[bytes], Any]
    ) -> Generator[Any, Any, list[_T]]:
        """Get all pages of a listing, one after the other. A page may be empty, and others follow.

        :param parse: makes a list and the token of the next page of a body, or a Deferred of them.
        """
        found: list[_T] = []
        while True:
            items, next_token = yield self._call(action, parameters, parse)
            found.extend(items)
            if next_token is None:
                return found
            parameters = {**parameters, "NextToken": next_token}

    def describe_instances(
        self, *instance_ids: str, filters: Mapping[str, Sequence[str]] | None = None
    ) -> defer.Deferred[list[Instance]]:
        """Describe instances, page by page.

        :param instance_ids: up to 200 ids. They are asked for by a filter, so that one which EC2 does not know (yet, or
            any more) is merely absent from the answer.
        :param filters: further filters, by name.
        """
        wanted = dict(filters or {})
        if instance_ids:
            wanted["instance-id"] = list(instance_ids)
        parameters = {"Filters": _filters(wanted), "MaxResults": PAGE}
        return self._pages("DescribeInstances", parameters, self._parse_instances)

    def _parse_instances(self, body: bytes) -> defer.Deferred[tuple[list[Instance], str | None]]:
        return self.parser.describe_instances_long_page(body, self.query_factory.reactor)

    def describe_images(
        self, *image_ids: str, owners: Sequence[str] = (), filters: Mapping[str, Sequence[str]] | None = None
    ) -> defer.Deferred[list[Image]]:
        """Describe images: those with some ids, or, page by page, those of some owners that pass some filters.

        :param image_ids: ids; deprecated images are described too. Without any, EC2 leaves those of others out.
        :param owners: ids of accounts, or :data:`~buildbot_ec2ud.ec2.images.OWNER_ALIASES`.
        :param filters: filters, by name.
        :raises EC2Error: with the code ``InvalidAMIID.NotFound``, where there is none with one of *image_ids*.
        """
        parameters: dict[str, Any] = {"Owners": list(owners), "Filters": _filters(filters or {})}
        if image_ids:
            # EC2 does not take MaxResults with ids (https://github.com/aws/aws-sdk-ruby/issues/3028).
            parameters.update({"ImageIds": list(image_ids), "IncludeDeprecated": True})
        else:
            parameters["MaxResults"] = IMAGES_PAGE
        return self._pages("DescribeImages", parameters, self.parser.describe_images_page)

    def describe_spot_price_history(
        self, instance_type: str, product: str, zone: str | None, since: datetime.datetime
    ) -> defer.Deferred[list[float]]:
        """Prices on the spot market, in dollars an hour, from when each began to hold.

        :param instance_type: an EC2 instance type.
        :param product: EC2's product description, such as ``Linux/UNIX``.
        :param zone: an availability zone; None for all of the region.
        :param since: the first moment that matters.
        """
        parameters: dict[str, Any] = {
            "InstanceTypes": [instance_type],
            "ProductDescriptions": [product],
            "StartTime": since,
            "MaxResults": PRICES_PAGE,
        }
        if zone is not None:
            parameters["AvailabilityZone"] = zone
        return self._pages("DescribeSpotPriceHistory", parameters, self.parser.describe_spot_price_history_page)

    def get_console_output(self, instance_id: str, latest: bool = False) -> defer.Deferred[str]:
        """Get what an instance wrote to its console.

        :param latest: the console as it is now, which only instances on Nitro have; else as EC2 last recorded it.
        """
        parameters: dict[str, Any] = {"InstanceId": instance_id}
        if latest:
            parameters["Latest"] = True
        return self._call("GetConsoleOutput", parameters, self.parser.get_console_output)

    def modify_instance_attribute(self, instance_id: str, attribute: Mapping[str, Any]) -> defer.Deferred[None]:
        """Change an attribute of an instance.

        :param attribute: the parameter that says so, as in the EC2 API:
            ``{"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}]}``.
        """
        parameters = {"InstanceId": instance_id, **attribute}
        return self._call("ModifyInstanceAttribute", parameters, self.parser.modify_instance_attribute)

    def attach_volume(self, volume_id: str, instance_id: str, device: str) -> defer.Deferred[str]:
        """Attach a volume to an instance in the same availability zone.

        A call that was not answered is not repeated: EC2 would refuse it with ``VolumeInUse`` if it took effect.

        :param device: the name that the volume gets there, such as ``/dev/sdf``.
        :return: fires with the state of the attachment, ``attaching`` or ``attached``.
        """
        parameters = {"VolumeId": volume_id, "InstanceId": instance_id, "Device": device}
        return self._call("AttachVolume", parameters, self.parser.attach_volume)

    def describe_volumes(self, *volume_ids: str) -> defer.Deferred[list[Volume]]:
        """Describe volumes.

        :param volume_ids: from 1 to 200 ids. They are asked for by a filter, so that one which EC2 does not know is merely
            absent from the answer.
        """
        parameters = {"Filters": _filters({"volume-id": volume_ids})}
        return self._call("DescribeVolumes", parameters, self.parser.describe_volumes)

    def describe_addresses(self, address: str) -> defer.Deferred[list[Address]]:
        """Describe an Elastic IP address.

        :param address: the address itself, or its allocation id (``eipalloc-...``).
        :return: fires with that one, or with none if the account has it not.
        """
        name = "allocation-id" if address.startswith(ALLOCATION_PREFIX) else "public-ip"
        return self._call("DescribeAddresses", {"Filters": _filters({name: [address]})}, self.parser.describe_addresses)

    def associate_address(self, allocation_id: str, instance_id: str) -> defer.Deferred[str]:
        """Associate an Elastic IP address with an instance, whatever it was associated with before.

        :param allocation_id: of the address.
        :return: fires with the id of the association.
        """
        # Reassociation is EC2's default, too; but not that of all who imitate it.
        parameters = {"AllocationId": allocation_id, "InstanceId": instance_id, "AllowReassociation": True}
        return self._call("AssociateAddress", parameters, self.parser.associate_address)

    def disassociate_address(self, association_id: str) -> defer.Deferred[None]:
        """End the association of an Elastic IP address."""
        parameters = {"AssociationId": association_id}
        return self._call("DisassociateAddress", parameters, self.parser.disassociate_address)


def _filters(filters: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Filters as the calls take them."""
    return [{"Name": name, "Values": list(values)} for name, values in filters.items()]
