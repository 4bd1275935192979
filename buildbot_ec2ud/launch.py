"""What to launch: a worker's configuration, checked -> an ordered list of offers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from buildbot.interfaces import IRenderable

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.fleet import image_rules
from buildbot_ec2ud.fleet.image_rules import ImageRule
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, NAME_TAG, WORKER_TAG, Offer
from buildbot_ec2ud.parameters import ARGUMENT_OF, OURS, Names, run_instances

MARKETS = {
    "on-demand": ("on-demand",),
    "spot": ("spot",),
    "spot-then-on-demand": ("spot", "on-demand"),
}
HTTP_TOKENS = ("required", "optional")

#: An image is resolved by EC2 itself; the parameter's name follows.
RESOLVED_BY_EC2 = "resolve:"

#: Tags of an instance; characters of the name and of the value of one. Source: EC2 user guide, "Tag restrictions".
TAGS_LIMIT, TAG_LIMITS = 50, (128, 256)

#: What stands behind the region's name in that of a zone: ``a``; of a local zone, ``-lax-1a``.
_PLACEMENT = re.compile(r"(-[a-z]+-\d+)?[a-z]")

#: Dollars; EC2 takes nothing up to 0.001. Source: botocore's model of EC2, ``SpotMarketOptions``.
LOWEST_SPOT_PRICE = 0.0011

#: What a network interface of ``launch_options`` has to say itself. Source: EC2 API reference, "RunInstances".
_OF_INTERFACES = ("subnet_id", "security_name", "security_group_ids")


class LaunchError(ValueError):
    """What was rendered for a build cannot be launched; the text names the arguments."""


def as_list(value: Any) -> list[Any]:
    """One value, or a list of them in order of preference, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(frozen=True)
class LaunchConfig:
    """The arguments of a worker that shape its instance; named as in ``EC2LatentWorker`` where that has them.

    All of them may be renderables, or have some inside; what is None is not set.
    """

    instance_type: Any = None
    ami: Any = None
    valid_ami_owners: Any = None
    valid_ami_location_regex: Any = None
    region: str = ""
    keypair_name: Any = None
    security_name: Any = None
    spot_instance: Any = False
    max_spot_price: Any = None
    price_multiplier: Any = None
    product_description: Any = None
    placement: Any = None
    tags: Any = field(default_factory=dict)
    subnet_id: Any = None
    security_group_ids: Any = None
    instance_profile_name: Any = None
    block_device_map: Any = None
    market: Any = None
    http_tokens: Any = None
    encrypted_volumes: Any = False
    launch_template: Any = None
    launch_options: Any = field(default_factory=dict)

    @property
    def markets(self) -> tuple[str, ...]:
        """The markets to try, in order."""
        return MARKETS[self.market or ("spot" if self.spot_instance else "on-demand")]

    @property
    def image_rule(self) -> ImageRule | None:
        """By what rule the image is to be found; None when ``ami`` names it, or a launch template does."""
        if isinstance(self.ami, Mapping):
            return ImageRule.of(self.ami)
        if self.valid_ami_owners is not None:
            return ImageRule.of_locations(self.valid_ami_owners, self.valid_ami_location_regex)
        return None

    @property
    def launch_template_given(self) -> bool:
        options = self.launch_options if isinstance(self.launch_options, Mapping) else {}
        return bool(self.launch_template or options.get("LaunchTemplate"))

    @property
    def keeps_volumes(self) -> bool:
        """Whether it is said of a volume that it is to outlive the instance."""
        options = self.launch_options if isinstance(self.launch_options, Mapping) else {}
        mappings = [*as_list(self.block_device_map), *as_list(options.get("BlockDeviceMappings"))]
        ebs = [mapping.get("Ebs") for mapping in mappings if isinstance(mapping, Mapping)]
        return any(isinstance(one, Mapping) and one.get("DeleteOnTermination") is False for one in ebs)

    def known(self) -> LaunchConfig:
        """The same without what is known only at a build."""
        known: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if not has_dynamic(value):
                continue
            if isinstance(value, Mapping):
                known[item.name] = {key: inner for key, inner in value.items() if not has_dynamic(inner)}
            elif isinstance(value, (list, tuple)):
                known[item.name] = [inner for inner in value if not has_dynamic(inner)]
            else:
                known[item.name] = {} if item.default is MISSING else item.default
        return replace(self, **known)

    def check(self) -> Iterator[str]:
        """Give a line for each thing that is wrong, naming the argument; EC2 is not asked."""
        known = self.known()
        types = as_list(self.instance_type)
        if (not types and not self.launch_template_given) or any(value is None or _is_empty(value) for value in types):
            yield "instance_type: name an EC2 instance type, or a list of them in order of preference"
        yield from self._check_image(known)
        yield from known._check_market()
        if known.security_name and known.subnet_id:
            yield "security_name: not possible with subnet_id, use security_group_ids"
        yield from known._check_tags()
        if any(value is None or _is_empty(value) for value in as_list(self.subnet_id)):
            yield f"subnet_id: name a subnet, or a list of them in order of preference: {self.subnet_id!r}"
        if known.placement is not None and not (
            isinstance(known.placement, str) and _PLACEMENT.fullmatch(known.placement)
        ):
            yield f"placement: not the letter of an availability zone: {known.placement!r}"
        if known.http_tokens is not None and known.http_tokens not in HTTP_TOKENS:
            yield f"http_tokens: {known.http_tokens!r} is none of {', '.join(map(repr, HTTP_TOKENS))}"
        if not isinstance(known.launch_options, Mapping):
            yield f"launch_options: not a dict: {known.launch_options!r}"
        else:
            yield from self._check_options(known.launch_options)
        yield from known._check_shapes()

    def _check_image(self, known: LaunchConfig) -> Iterator[str]:
        by_rule = self.valid_ami_owners is not None or self.valid_ami_location_regex is not None
        if self.ami is not None and by_rule:
            yield "ami: contradicts valid_ami_owners and valid_ami_location_regex; give one or the other"
        elif by_rule:
            yield from self._check_locations(known)
        elif isinstance(known.ami, Mapping):
            if not has_dynamic(self.ami):
                yield from (f"ami: {line}" for line in image_rules.check(known.ami))
        elif _is_empty(self.ami) or (self.ami is None and not self.launch_template_given):
            yield (
                "ami: name an image: an id (ami-...), resolve:ssm:PARAMETER, a renderable, a callable, or a dict such as "
                "{'owners': [...], 'name': ...}"
            )
        elif not isinstance(known.ami, (str, int, list, tuple, type(None))):
            yield f"ami: neither the id of an image nor a dict: {known.ami!r}"
        if known.encrypted_volumes not in (True, False):
            yield f"encrypted_volumes: neither True nor False: {known.encrypted_volumes!r}"
        elif known.encrypted_volumes and str(known.ami).startswith(RESOLVED_BY_EC2):
            # Which device is to be encrypted is known only of an image with an id.
            yield "encrypted_volumes: not possible with an ami of resolve:..., use an id, or a dict of owners and name"
        elif known.encrypted_volumes and self.ami is None and not by_rule:
            yield "encrypted_volumes: the image of a launch template is not known here, encrypt its volumes there"

    def _check_locations(self, known: LaunchConfig) -> Iterator[str]:
        if not has_dynamic(self.valid_ami_owners) and not has_dynamic(self.valid_ami_location_regex):
            yield from image_rules.check_locations(known.valid_ami_owners, known.valid_ami_location_regex)

    def _check_market(self) -> Iterator[str]:
        if self.market is not None and not (isinstance(self.market, str) and self.market in MARKETS):
            yield f"market: {self.market!r} is none of {', '.join(map(repr, MARKETS))}"
        elif self.market == "on-demand" and self.spot_instance:
            yield "spot_instance: contradicts market='on-demand'"
        if self.spot_instance not in (True, False):
            yield f"spot_instance: neither True nor False: {self.spot_instance!r}"
        for argument, least in (("max_spot_price", LOWEST_SPOT_PRICE), ("price_multiplier", 0.01)):
            value = getattr(self, argument)
            if value is not None and not (type(value) in (int, float) and least <= value < float("inf")):
                yield f"{argument}: not a number from {least} on: {value!r}"
        if self.product_description is not None and not isinstance(self.product_description, str):
            yield f"product_description: not a text: {self.product_description!r}"

    def _check_tags(self) -> Iterator[str]:
        if not isinstance(self.tags, Mapping):
            yield f"tags: not a dict: {self.tags!r}"
            return
        if len({NAME_TAG, LAUNCH_TAG, MASTER_TAG, WORKER_TAG} | set(self.tags)) > TAGS_LIMIT:
            yield f"tags: EC2 takes {TAGS_LIMIT}, with the four that are set for each launch: {len(self.tags)}"
        if own := sorted({LAUNCH_TAG, MASTER_TAG, WORKER_TAG} & set(self.tags)):
            yield f"tags: {', '.join(own)} are set for each launch"
        for key, value in self.tags.items():
            if not isinstance(key, str) or not isinstance(value, str):
                yield f"tags: not a text: {key!r}: {value!r}"
            elif key.startswith("aws:"):
                yield f"tags: names that begin with aws: are AWS's own: {key!r}"
            elif not 0 < len(key) <= TAG_LIMITS[0] or len(value) > TAG_LIMITS[1]:
                yield (
                    f"tags: a name has up to {TAG_LIMITS[0]} characters and a value up to {TAG_LIMITS[1]}: "
                    f"{key[:20]!r}: {value[:20]!r}"
                )

    def _check_options(self, options: Mapping[str, Any]) -> Iterator[str]:
        for name in options:
            argument = ARGUMENT_OF.get(name)
            if name in OURS:
                yield f"launch_options: {name} cannot be set: {OURS[name]}"
            elif argument and getattr(self, argument):
                yield f"launch_options: {name} contradicts {argument}"
        metadata = options.get("MetadataOptions")
        if self.http_tokens is not None and isinstance(metadata, Mapping) and "HttpTokens" in metadata:
            yield "launch_options: MetadataOptions.HttpTokens contradicts http_tokens"
        for argument in _OF_INTERFACES:
            if options.get("NetworkInterfaces") and getattr(self, argument):
                yield f"launch_options: with NetworkInterfaces, {argument} is to stand in those"

    def _check_shapes(self) -> Iterator[str]:
        """Hold the parameters against EC2's own model, as far as they are known without a build."""
        options = self.launch_options if isinstance(self.launch_options, Mapping) else {}
        fixed = replace(
            self,
            ami=self.ami if isinstance(self.ami, (str, int, list, tuple)) else "ami-0",
            tags={},
            http_tokens=None,
            launch_options={name: value for name, value in options.items() if name not in OURS},
            encrypted_volumes=False,
        )
        names = Names("master", "worker", "launch")
        seen = set()
        for instance_type, subnet_id in itertools.product(
            as_list(fixed.instance_type) or ["t3.micro"], as_list(fixed.subnet_id) or [None]
        ):
            parameters = run_instances(fixed, names, b"", instance_type, subnet_id, "on-demand")
            for line in shapes.check("RunInstances", parameters):
                if line not in seen:
                    seen.add(line)
                    yield f"{fixed._argument(line)}: {line}"

    def _argument(self, line: str) -> str:
        """The argument that is to blame for what EC2's model says of a parameter."""
        named = re.search(r"parameter (?:in )?(\w+)", line)
        if named is None or named[1] in self.launch_options:
            return "launch_options"
        return ARGUMENT_OF.get(named[1], "launch_options")

    def offers(
        self,
        user_data: bytes,
        names: Names,
        max_prices: Mapping[str | None, float | None] | None = None,
        root_device: str | None = None,
    ) -> list[Offer]:
        """The ways to get the instance, in order of preference: markets, then types, then subnets.

        All renderables must have been rendered, and the image found.

        :param user_data: text of the user-data, at most 16,384 bytes.
        :param names: by what the instance is to be known.
        :param max_prices: by instance type, what an hour on the spot market may cost, in dollars.
        :param root_device: the image's name of its root device, where that is to be encrypted.
        """
        max_prices = max_prices or {}
        return [
            Offer(
                kind,
                subnet_id,
                market,
                run_instances(self, names, user_data, kind, subnet_id, market, max_prices.get(kind), root_device),
            )
            for market, kind, subnet_id in itertools.product(
                self.markets, as_list(self.instance_type) or [None], as_list(self.subnet_id) or [None]
            )
        ]


def is_dynamic(value: Any) -> bool:
    """Whether *value* is known only when a build starts."""
    return callable(value) or IRenderable.providedBy(value)


def has_dynamic(value: Any) -> bool:
    """Whether *value*, or anything in it, is known only when a build starts."""
    if isinstance(value, Mapping):
        return any(has_dynamic(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(has_dynamic(inner) for inner in value)
    return is_dynamic(value)


def _is_empty(value: Any) -> bool:
    # A renderable cannot be compared: the result would be another one.
    return isinstance(value, str) and not value
