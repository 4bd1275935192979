"""What to launch: a worker's configuration -> checked parameters of RunInstances, as an ordered list of offers."""

from __future__ import annotations

import base64
import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from buildbot.interfaces import IRenderable

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, NAME_TAG, WORKER_TAG, Offer

MARKETS = {
    "on-demand": ("on-demand",),
    "spot": ("spot",),
    "spot-then-on-demand": ("spot", "on-demand"),
}

#: What is tagged when it is created, so that nothing of an instance is ever without an owner's name.
_TAGGED = ("instance", "volume", "network-interface")

#: Parameters of RunInstances that are this package's own to set.
_OURS = {
    "ClientToken": "it is made for each launch",
    "DisableApiTermination": "nothing could end the instance",
    "DryRun": "nothing would ever start",
    "InstanceMarketOptions": "use market",
    "MaxCount": "a worker is one instance",
    "MinCount": "a worker is one instance",
    "TagSpecifications": "use tags",
    "UserData": "use bootstrap_script",
}

#: Parameters of RunInstances, and the argument that sets each.
_ARGUMENT_OF = {
    "BlockDeviceMappings": "block_device_map",
    "IamInstanceProfile": "instance_profile_name",
    "ImageId": "ami",
    "InstanceType": "instance_type",
    "KeyName": "keypair_name",
    "Placement": "placement",
    "SecurityGroupIds": "security_group_ids",
    "SecurityGroups": "security_name",
    "SubnetId": "subnet_id",
}


class LaunchError(ValueError):
    """What was rendered for a build cannot be launched; the text names the arguments."""


def as_list(value: Any) -> list[Any]:
    """One value, or a list of them in order of preference, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(frozen=True)
class LaunchConfig:
    """The arguments of a worker that shape its instance; named as in ``EC2LatentWorker`` where that has them."""

    instance_type: Any = None
    ami: Any = None
    region: str = ""
    keypair_name: str | None = None
    security_name: str | None = None
    spot_instance: bool = False
    placement: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    subnet_id: Any = None
    security_group_ids: Sequence[str] | None = None
    instance_profile_name: str | None = None
    block_device_map: Sequence[Mapping[str, Any]] | None = None
    market: str | None = None
    launch_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def markets(self) -> tuple[str, ...]:
        """The markets to try, in order."""
        return MARKETS[self.market or ("spot" if self.spot_instance else "on-demand")]

    def check(self) -> Iterator[str]:
        """Give a line for each thing that is wrong, naming the argument; EC2 is not asked."""
        types = as_list(self.instance_type)
        if not types or any(_is_empty(value) for value in types):
            yield "instance_type: name an EC2 instance type, or a list of them in order of preference"
        if self.ami is None or _is_empty(self.ami):
            yield "ami: name an image: an id (ami-...), resolve:ssm:PARAMETER, a renderable or a callable"
        if self.market is not None and not (isinstance(self.market, str) and self.market in MARKETS):
            yield f"market: {self.market!r} is none of {', '.join(map(repr, MARKETS))}"
        elif self.market == "on-demand" and self.spot_instance:
            yield "spot_instance: contradicts market='on-demand'"
        if self.security_name and self.subnet_id:
            yield "security_name: not possible with subnet_id, use security_group_ids"
        if not isinstance(self.tags, Mapping):
            yield f"tags: not a dict: {self.tags!r}"
        else:
            if own := sorted({LAUNCH_TAG, MASTER_TAG, WORKER_TAG} & set(self.tags)):
                yield f"tags: {', '.join(own)} are set for each launch"
            for key, value in self.tags.items():
                if not isinstance(key, str) or not isinstance(value, str):
                    yield f"tags: not a text: {key!r}: {value!r}"
        if self.placement is not None and (
            not isinstance(self.placement, str) or (self.region and self.placement.startswith(self.region))
        ):
            yield f"placement: not the letter of an availability zone: {self.placement!r}"
        if not isinstance(self.launch_options, Mapping):
            yield f"launch_options: not a dict: {self.launch_options!r}"
        else:
            yield from self._check_options()
        yield from self._check_shapes()

    def _check_options(self) -> Iterator[str]:
        for name in self.launch_options:
            argument = _ARGUMENT_OF.get(name)
            if name in _OURS:
                yield f"launch_options: {name} cannot be set: {_OURS[name]}"
            elif argument and getattr(self, argument):
                yield f"launch_options: {name} contradicts {argument}"

    def _check_shapes(self) -> Iterator[str]:
        """Hold the parameters against EC2's own model, as far as they are known without a build."""
        fixed = LaunchConfig(
            **{
                **vars(self),
                "instance_type": [value for value in as_list(self.instance_type) if not is_dynamic(value)],
                "subnet_id": [value for value in as_list(self.subnet_id) if not is_dynamic(value)],
                "ami": "ami-0" if self.ami is None or is_dynamic(self.ami) else self.ami,
                "market": None,
                "tags": {},
                "launch_options": self.launch_options if isinstance(self.launch_options, Mapping) else {},
            }
        )
        names = _Names("master", "worker", "launch")
        seen = set()
        for instance_type, subnet_id in itertools.product(
            fixed.instance_type or ["t3.micro"], fixed.subnet_id or [None]
        ):
            parameters = fixed._parameters(instance_type, subnet_id, "on-demand", fixed.ami, b"", names)
            for line in shapes.check("RunInstances", parameters):
                if line not in seen:
                    seen.add(line)
                    yield f"{fixed._argument(line)}: {line}"

    def _argument(self, line: str) -> str:
        """The argument that is to blame for what EC2's model says of a parameter."""
        named = re.search(r"parameter (?:in )?(\w+)", line)
        if named is None or named[1] in self.launch_options:
            return "launch_options"
        return _ARGUMENT_OF.get(named[1], "launch_options")

    def offers(self, user_data: bytes, master_name: str, worker_name: str, launch_id: str) -> list[Offer]:
        """The ways to get the instance, in order of preference: markets, then types, then subnets.

        All renderables must have been rendered.

        :param user_data: text of the user-data, at most 16,384 bytes.
        :param master_name: identity of this master, for the tags.
        :param worker_name: name of the worker.
        :param launch_id: what only this launch has.
        """
        names = _Names(master_name, worker_name, launch_id)
        return [
            Offer(
                instance_type,
                subnet_id,
                market,
                self._parameters(instance_type, subnet_id, market, self.ami, user_data, names),
            )
            for market, instance_type, subnet_id in itertools.product(
                self.markets, as_list(self.instance_type), as_list(self.subnet_id) or [None]
            )
        ]

    def _parameters(
        self, instance_type: str, subnet_id: str | None, market: str, ami: str, user_data: bytes, names: _Names
    ) -> dict[str, Any]:
        tags = [
            {"Key": key, "Value": value} for key, value in {NAME_TAG: names.worker, **self.tags, **names.tags()}.items()
        ]
        options = copy.deepcopy(dict(self.launch_options))
        metadata = options.get("MetadataOptions", {})
        if isinstance(metadata, Mapping):  # whoever changes one of them keeps the others
            options["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, **metadata}
        parameters: dict[str, Any] = {
            # What the person wrote in launch_options wins over this; everything below over that.
            "InstanceInitiatedShutdownBehavior": "terminate",
            **options,
            "ImageId": ami,
            "InstanceType": instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "UserData": base64.b64encode(user_data).decode("ascii"),
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in _TAGGED],
        }
        optional = {
            "SubnetId": subnet_id,
            "KeyName": self.keypair_name,
            "SecurityGroups": [self.security_name] if self.security_name else None,
            "SecurityGroupIds": self.security_group_ids,
            "IamInstanceProfile": _profile(self.instance_profile_name),
            "BlockDeviceMappings": _mappings(self.block_device_map),
            "Placement": {"AvailabilityZone": f"{self.region}{self.placement}"} if self.placement else None,
        }
        parameters.update({name: value for name, value in optional.items() if value})
        if market == "spot":
            parameters["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            }
        return parameters


@dataclass(frozen=True)
class _Names:
    master: str
    worker: str
    launch: str

    def tags(self) -> dict[str, str]:
        return {MASTER_TAG: self.master, WORKER_TAG: self.worker, LAUNCH_TAG: self.launch}


def is_dynamic(value: Any) -> bool:
    """Whether *value* is known only when a build starts."""
    return callable(value) or IRenderable.providedBy(value)


def _is_empty(value: Any) -> bool:
    # A renderable cannot be compared: the result would be another one.
    return isinstance(value, str) and not value


def _profile(name: str | None) -> dict[str, str] | None:
    if not name:
        return None
    return {"Arn" if str(name).startswith("arn:") else "Name": name}


def _mappings(items: Any) -> Any:
    """Block device mappings whose volumes go with the instance, unless they say otherwise.

    What has another form stays as it is, for EC2's model to tell.
    """
    return [_mapping(item) for item in items] if isinstance(items, (list, tuple)) else items


def _mapping(item: Any) -> Any:
    mapping = copy.deepcopy(item)
    if isinstance(mapping, Mapping) and isinstance(mapping.get("Ebs"), Mapping):
        mapping = {**mapping, "Ebs": {"DeleteOnTermination": True, **mapping["Ebs"]}}
    return mapping
