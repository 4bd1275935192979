"""The calls to EC2 that the project makes, on top of txAWS's client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet import defer
from txaws.ec2 import client
from txaws.service import AWSServiceEndpoint

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import BadParameters
from buildbot_ec2ud.ec2.parser import Instance, Parser
from buildbot_ec2ud.ec2.query import Call, QueryFactory

_T = TypeVar("_T")

#: Instances asked for in one page. EC2 takes 5 to 1000; the reactor does nothing else while a page is parsed.
PAGE = 100


class EC2Client(client.EC2Client):
    """txAWS's client for today's EC2: Signature Version 4, all parameters of RunInstances, pages.

    Calls that are not redefined here are txAWS's own (``attach_volume`` and so on). Every call is attempted again where
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
    def describe_instances(
        self, *instance_ids: str, filters: Mapping[str, Sequence[str]] | None = None
    ) -> Generator[Any, Any, list[Instance]]:
        """Describe instances, page by page.

        :param instance_ids: up to 200 ids. They are asked for by a filter, so that one which EC2 does not know (yet, or
            any more) is merely absent from the answer.
        :param filters: further filters, by name.
        """
        wanted = dict(filters or {})
        if instance_ids:
            wanted["instance-id"] = list(instance_ids)
        parameters: dict[str, Any] = {
            "Filters": [{"Name": name, "Values": list(values)} for name, values in wanted.items()],
            "MaxResults": PAGE,
        }
        found: list[Instance] = []
        while True:
            instances, next_token = yield self._call(
                "DescribeInstances", parameters, self.parser.describe_instances_page
            )
            found.extend(instances)
            if next_token is None:
                return found
            parameters["NextToken"] = next_token

    def get_console_output(self, instance_id: str, latest: bool = False) -> defer.Deferred[str]:
        """Get what an instance wrote to its console.

        :param latest: the console as it is now, which only instances on Nitro have; else as EC2 last recorded it.
        """
        parameters: dict[str, Any] = {"InstanceId": instance_id}
        if latest:
            parameters["Latest"] = True
        return self._call("GetConsoleOutput", parameters, self.parser.get_console_output)
