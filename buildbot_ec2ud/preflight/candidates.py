"""A worker's starts, as far as its configuration tells them: what a check asks EC2 about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from buildbot_ec2ud.ec2.images import Image
from buildbot_ec2ud.ec2.surroundings import TemplateVersion
from buildbot_ec2ud.fleet.image_rules import ImageRule
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, NAME_TAG, WORKER_TAG, Offer
from buildbot_ec2ud.launch import RESOLVED_BY_EC2, LaunchConfig, as_list, has_dynamic
from buildbot_ec2ud.parameters import Names
from buildbot_ec2ud.preview import Preview
from buildbot_ec2ud.worker import EC2UserDataLatentWorker

#: The launch tag of what is only asked about.
CHECK = "check"

#: Arguments without which nothing can be asked about a launch.
_NEEDED = ("instance_type", "subnet_id", "security_group_ids", "launch_template", "launch_options", "block_device_map")
#: Those that say which image.
_OF_IMAGE = ("ami", "valid_ami_owners", "valid_ami_location_regex")


@dataclass
class Candidate:
    """A worker whose starts are looked at.

    :ivar owner: the identity that the master has on its instances.
    :ivar preview: its user-data.
    :ivar launchable: whether there is an image to ask for a launch with.
    :ivar image: what EC2 knows of its image, once that has been found.
    :ivar offers: the ways to get its instance, once the image has been found.
    """

    worker: EC2UserDataLatentWorker
    region: str
    owner: str
    preview: Preview
    launchable: bool = True
    image: Image | None = None
    offers: list[Offer] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def launch(self) -> LaunchConfig:
        """What shapes the instance, as far as that is known without a build."""
        return replace(self.worker.settings.launch.known(), region=self.region)

    def unknown(self) -> list[str]:
        """The arguments that only a build has, of those without which nothing can be asked about a launch."""
        launch = self.worker.settings.launch
        found = [name for name in _NEEDED if has_dynamic(getattr(launch, name))]
        if any(has_dynamic(getattr(launch, name)) for name in _OF_IMAGE):
            found.insert(0, "ami")
        return found

    def left_out(self) -> list[str]:
        """Where there are none of these: the other arguments that only a build has, or parts of them. A launch is asked
        about without those.
        """
        launch = self.worker.settings.launch
        return [one.name for one in fields(launch) if has_dynamic(getattr(launch, one.name))]

    @property
    def wanted_image(self) -> ImageRule | str | None:
        """The rule by which its image is to be found, or its id; None where only EC2, or a build, knows it."""
        if "ami" in self.unknown():
            return None
        launch = self.launch
        if launch.image_rule is not None:
            return launch.image_rule
        ami = launch.ami or launch.launch_options.get("ImageId")
        return ami if isinstance(ami, str) and not ami.startswith(RESOLVED_BY_EC2) else None

    def make_offers(self, max_prices: Mapping[str | None, float | None]) -> None:
        """Find the ways to get its instance.

        :param max_prices: by instance type, what an hour on the spot market may cost, in dollars.
        """
        launch, root_device = self.launch, None
        if launch.image_rule is not None:
            ami = None if self.image is None else self.image.image_id
            launch = replace(launch, ami=ami, valid_ami_owners=None, valid_ami_location_regex=None)
        if self.image is not None and launch.encrypted_volumes:
            root_device = self.image.root_device_name
        names = Names(self.owner, self.name, CHECK)
        self.offers = launch.offers(self.preview.data, names, max_prices, root_device)

    @property
    def prices_of(self) -> tuple[str, ...]:
        """The instance types whose spot prices a start asks for."""
        launch = self.launch
        if launch.price_multiplier is None or "spot" not in launch.markets:
            return ()
        return tuple(filter(None, as_list(launch.instance_type)))


def question(offer: Offer) -> str:
    """What tells the launch of an offer from others, but for what only one worker has: its name and its user-data."""
    parameters = {name: value for name, value in offer.parameters.items() if name != "UserData"}
    parameters["TagSpecifications"] = [
        {**one, "Tags": [tag for tag in one["Tags"] if tag["Key"] not in (NAME_TAG, WORKER_TAG, LAUNCH_TAG)]}
        for one in parameters["TagSpecifications"]
    ]
    return json.dumps(parameters, sort_keys=True, default=str)


@dataclass(frozen=True)
class Needs:
    """What a launch needs to be there.

    :ivar instance_type: empty where only the launch template knows.
    :ivar image: the id; empty where EC2 resolves it, or the launch template knows.
    :ivar zone: the availability zone that is named, empty if none.
    """

    instance_type: str = ""
    image: str = ""
    zone: str = ""
    key_name: str = ""
    subnets: tuple[str, ...] = ()
    group_ids: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    template: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, offer: Offer) -> Needs:
        """Read them from the parameters of a launch, whichever argument has set them."""
        given = offer.parameters
        interfaces = [one for one in given.get("NetworkInterfaces") or () if isinstance(one, Mapping)]
        return cls(
            given.get("InstanceType") or "",
            given.get("ImageId") or "",
            (given.get("Placement") or {}).get("AvailabilityZone") or "",
            given.get("KeyName") or "",
            tuple(_present(given.get("SubnetId"), *(one.get("SubnetId") for one in interfaces))),
            tuple(
                _present(
                    *given.get("SecurityGroupIds") or (), *(g for one in interfaces for g in one.get("Groups", ()))
                )
            ),
            tuple(_present(*given.get("SecurityGroups") or ())),
            given.get("LaunchTemplate"),
        )

    def with_template(self, version: TemplateVersion) -> Needs:
        """The same, with what the launch template adds."""
        return replace(
            self, instance_type=self.instance_type or version.instance_type, image=self.image or version.image_id
        )


def _present(*values: str | None) -> Iterator[str]:
    return (value for value in values if value)
