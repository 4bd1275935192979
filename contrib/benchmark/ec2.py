"""A stand-in for EC2 that launches, describes and ends instances, as fast as a service of Amazon's would.

moto, which the embedded EC2 is made of, takes 2 seconds to describe 1,000 instances, and 10 ms to launch one. Here an
instance's description is made of one that moto has given, once for each state. Both sides of the comparison ask the same
stand-in, in a process of its own.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import html
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from machines import Machine, Template, state_xml

from buildbot_ec2ud.fleet.pacing import INSTANCES, Bucket, request_limit

#: What an answer has at most, where it says no less; EC2's limit of a page.
_PAGE = 1000


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How the stand-in behaves.

    :ivar latency: seconds by which each answer is late.
    :ivar pending: seconds from a launch to ``running``.
    :ivar shutting_down: seconds from a termination to ``terminated``.
    :ivar throttle: whether calls beyond what AWS documents are refused.
    """

    latency: float = 0.1
    pending: float = 2.0
    shutting_down: float = 2.0
    throttle: bool = False


class Refused(Exception):
    """What EC2 says instead of an answer: its code, a message and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status

    def body(self) -> bytes:
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{self.code}</Code>'
            f"<Message>{html.escape(str(self))}</Message></Error></Errors><RequestID>r</RequestID></Response>"
        ).encode()


class EC2:
    """What answers.

    :param clock: the reactor.
    :param behaviour: how it behaves.
    :param template: what it says of an instance.
    :param changed: called with an instance that has begun to run, or has ended.
    :ivar calls: how often each action was called.
    :ivar refused: how often each was refused, by its name and the code.
    :ivar moments: when the first and the last instance came to each state, and was launched.
    """

    def __init__(
        self, clock: Any, behaviour: Behaviour, template: Template, changed: Callable[[Machine], Any] = lambda _: None
    ) -> None:
        self.behaviour = behaviour
        self.machines: dict[str, Machine] = {}
        self.calls: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self.moments: dict[str, float] = {}
        self._clock = clock
        self._template = template
        self._changed = changed
        self._tokens: dict[str, Machine] = {}
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def answer(self, asked: Mapping[str, str]) -> tuple[int, bytes]:
        """Do what a call asks for.

        :param asked: its parameters.
        :return: the HTTP status, and the body of the answer.
        """
        action = asked.get("Action", "")
        self.calls[action] += 1
        try:
            call = getattr(self, f"_{action}", None)
            if call is None:
                raise Refused("InvalidAction", f"this stand-in does not know the action {action!r}")
            self._admit(action, asked)
            return 200, self._response(action, call(asked))
        except Refused as refusal:
            self.refused[f"{action} {refusal.code}"] += 1
            return refusal.status, refusal.body()

    def report(self) -> dict[str, Any]:
        """What has happened since the last report, and how many instances are in which state."""
        states = collections.Counter(machine.state for machine in self.machines.values())
        report = {"calls": dict(self.calls), "refused": dict(self.refused), "moments": self.moments, "states": states}
        self.calls.clear()
        self.refused.clear()
        self.moments = {}
        return report

    def _admit(self, action: str, asked: Mapping[str, str]) -> None:
        if not self.behaviour.throttle:
            return
        now = self._clock.seconds()
        count = max(1, sum(name.startswith("InstanceId.") for name in asked))
        wanted = [("calls", request_limit(action), 1), ("instances", INSTANCES.get(action), count)]
        buckets = []
        for kind, limit, tokens in wanted:
            if limit is not None:
                bucket = self._buckets.setdefault((action, kind), Bucket(limit, now))
                if bucket.wait(now, tokens) > 0:
                    raise Refused("RequestLimitExceeded", "Request limit exceeded.", 503)
                buckets.append((bucket, tokens))
        for bucket, tokens in buckets:
            bucket.take(now, tokens)

    def _response(self, action: str, *parts: bytes) -> bytes:
        start = f'<?xml version="1.0" encoding="UTF-8"?>\n<{action}Response xmlns="{self._template.namespace}">'
        return b"".join((start.encode(), b"<requestId>r</requestId>", *parts, f"</{action}Response>".encode()))

    def _note(self, what: str) -> None:
        now = self._clock.seconds()
        self.moments.setdefault(f"first {what}", now)
        self.moments[f"last {what}"] = now

    def _become(self, machine: Machine, state: str) -> None:
        if machine.state == "terminated" or (state == "running" and machine.state != "pending"):
            return
        machine.state = state
        self._note(state)
        if state in ("running", "terminated"):
            self._changed(machine)

    # The actions

    def _RunInstances(self, asked: Mapping[str, str]) -> bytes:
        token = asked.get("ClientToken", "")
        if token and token in self._tokens:
            return self._tokens[token].text(self._template)
        tags = {}
        for name, kind in asked.items():
            if re.fullmatch(r"TagSpecification\.\d+\.ResourceType", name) and kind == "instance":
                tags = _tags(asked, name.removesuffix("ResourceType"))
        machine = Machine(f"i-{len(self.machines) + 1:017x}", asked, tags)
        self.machines[machine.id] = machine
        if token:
            self._tokens[token] = machine
        self._note("launch")
        self._clock.callLater(self.behaviour.pending, self._become, machine, "running")
        return machine.text(self._template)

    def _TerminateInstances(self, asked: Mapping[str, str]) -> bytes:
        machines = self._known(_list(asked, "InstanceId"))
        items = []
        for machine in machines:
            before = machine.state
            if before not in ("shutting-down", "terminated"):
                self._become(machine, "shutting-down")
                self._clock.callLater(self.behaviour.shutting_down, self._become, machine, "terminated")
            items.append(
                f"<item><instanceId>{machine.id}</instanceId><currentState>{state_xml(machine.state)}</currentState>"
                f"<previousState>{state_xml(before)}</previousState></item>"
            )
        return f"<instancesSet>{''.join(items)}</instancesSet>".encode()

    def _DescribeInstances(self, asked: Mapping[str, str]) -> bytes:
        ids, most, start = _list(asked, "InstanceId"), asked.get("MaxResults"), int(asked.get("NextToken") or 0)
        if ids and most:
            raise Refused("InvalidParameterCombination", "MaxResults and instance ids exclude each other")
        machines = self._known(ids) if ids else list(self.machines.values())
        for name, values in _filters(asked):
            if name == "instance-id" and not ids:
                known = [self.machines[one] for one in values if one in self.machines]
                machines = known if len(machines) == len(self.machines) else [one for one in machines if one in known]
            else:
                machines = [one for one in machines if _passes(one, name, values)]
        end = start + int(most or _PAGE)
        parts = [b"<item>" + machine.text(self._template) + b"</item>" for machine in machines[start:end]]
        more = f"<nextToken>{end}</nextToken>".encode() if end < len(machines) else b""
        return b"".join((b"<reservationSet>", *parts, b"</reservationSet>", more))

    def _CreateTags(self, asked: Mapping[str, str]) -> bytes:
        for machine in self._known(_list(asked, "ResourceId")):
            machine.tags.update(_tags(asked, ""))
            machine.texts.clear()
        return b"<return>true</return>"

    def _GetConsoleOutput(self, asked: Mapping[str, str]) -> bytes:
        (machine,) = self._known([asked.get("InstanceId", "")])
        return f"<instanceId>{machine.id}</instanceId><timestamp>{machine.launched}</timestamp>".encode()

    def _DescribeKeyPairs(self, asked: Mapping[str, str]) -> bytes:
        names = "".join(f"<item><keyName>{html.escape(name)}</keyName></item>" for name in _list(asked, "KeyName"))
        return f"<keySet>{names}</keySet>".encode()

    def _DescribeSecurityGroups(self, asked: Mapping[str, str]) -> bytes:
        groups = "".join(
            f"<item><groupId>sg-{number}</groupId><groupName>{html.escape(name)}</groupName></item>"
            for number, name in enumerate(_list(asked, "GroupName"))
        )
        return f"<securityGroupInfo>{groups}</securityGroupInfo>".encode()

    def _known(self, ids: list[str]) -> list[Machine]:
        if unknown := [one for one in ids if one not in self.machines]:
            raise Refused("InvalidInstanceID.NotFound", f"The instance IDs '{', '.join(unknown)}' do not exist")
        return [self.machines[one] for one in ids]


def _list(asked: Mapping[str, str], name: str) -> list[str]:
    return [value for key, value in asked.items() if re.fullmatch(rf"{re.escape(name)}\.\d+", key)]


def _tags(asked: Mapping[str, str], beginning: str) -> dict[str, str]:
    found = {}
    for name, key in asked.items():
        if name.startswith(f"{beginning}Tag.") and name.endswith(".Key"):
            found[key] = asked.get(f"{name.removesuffix('Key')}Value", "")
    return found


def _filters(asked: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    for name, value in asked.items():
        if re.fullmatch(r"Filter\.\d+\.Name", name):
            yield value, _list(asked, f"{name.removesuffix('Name')}Value")


def _passes(machine: Machine, name: str, values: list[str]) -> bool:
    if name == "instance-state-name":
        return machine.state in values
    if name == "instance-id":
        return machine.id in values
    if name == "tag-key":
        return any(fnmatch.fnmatchcase(key, value) for key in machine.tags for value in values)
    if name.startswith("tag:"):
        tag = machine.tags.get(name.removeprefix("tag:"))
        return tag is not None and any(fnmatch.fnmatchcase(tag, value) for value in values)
    raise Refused("InvalidParameterValue", f"The filter {name!r} is invalid")
