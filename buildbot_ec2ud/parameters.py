"""A launch configuration, all of it known, -> the parameters of RunInstances."""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, NAME_TAG, WORKER_TAG

#: What is tagged when it is created, so that nothing of an instance is ever without an owner's name.
_TAGGED = ("instance", "volume", "network-interface")

#: Parameters of RunInstances that are this package's own to set.
OURS = {
    "ClientToken": "it is made for each launch",
    "DisableApiTermination": "nothing could end the instance",
    "DryRun": "nothing would ever start",
    "InstanceMarketOptions": "use market and max_spot_price",
    "MaxCount": "a worker is one instance",
    "MinCount": "a worker is one instance",
    "TagSpecifications": "use tags",
    "UserData": "use bootstrap_script or user_data",
}

#: Parameters of RunInstances, and the argument that sets each.
ARGUMENT_OF = {
    "BlockDeviceMappings": "block_device_map",
    "IamInstanceProfile": "instance_profile_name",
    "ImageId": "ami",
    "InstanceType": "instance_type",
    "KeyName": "keypair_name",
    "LaunchTemplate": "launch_template",
    "Placement": "placement",
    "SecurityGroupIds": "security_group_ids",
    "SecurityGroups": "security_name",
    "SubnetId": "subnet_id",
}


@dataclass(frozen=True)
class Names:
    """By what an instance is known.

    :ivar master: identity of the master.
    :ivar worker: name of the worker.
    :ivar launch: what only this launch has.
    """

    master: str
    worker: str
    launch: str

    def tags(self) -> dict[str, str]:
        return {MASTER_TAG: self.master, WORKER_TAG: self.worker, LAUNCH_TAG: self.launch}


def run_instances(
    launch: Any,
    names: Names,
    user_data: bytes,
    instance_type: str | None,
    subnet_id: str | None,
    market: str,
    max_price: float | None = None,
    root_device: str | None = None,
) -> dict[str, Any]:
    """The parameters of RunInstances, nested as in the EC2 API.

    :param launch: a :class:`~buildbot_ec2ud.launch.LaunchConfig`; its ``ami`` is an id or ``resolve:ssm:...``.
    :param names: for the tags.
    :param user_data: text of the user-data; none when it is empty.
    :param instance_type: one of the configured ones, or None for that of a launch template.
    :param subnet_id: one of the configured ones, or None.
    :param market: ``on-demand`` or ``spot``.
    :param max_price: what an hour of a spot instance may cost, in dollars; None for the price on demand.
    :param root_device: the image's name of its root device, where that is to be encrypted.
    """
    tags = [
        {"Key": key, "Value": value} for key, value in {NAME_TAG: names.worker, **launch.tags, **names.tags()}.items()
    ]
    options = copy.deepcopy(dict(launch.launch_options))
    metadata = options.get("MetadataOptions", {})
    if isinstance(metadata, Mapping):  # whoever changes one of them keeps the others
        options["MetadataOptions"] = {
            "HttpTokens": launch.http_tokens or "required",
            "HttpPutResponseHopLimit": 1,
            **metadata,
        }
    parameters: dict[str, Any] = {
        # What the person wrote in launch_options wins over this; everything below over that.
        "InstanceInitiatedShutdownBehavior": "terminate",
        **options,
        "MinCount": 1,
        "MaxCount": 1,
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in _TAGGED],
    }
    optional = {
        "ImageId": launch.ami,
        "InstanceType": instance_type,
        "UserData": base64.b64encode(user_data).decode("ascii"),
        "SubnetId": subnet_id,
        "KeyName": launch.keypair_name,
        "LaunchTemplate": _template(launch.launch_template),
        "SecurityGroups": [launch.security_name] if launch.security_name else None,
        "SecurityGroupIds": launch.security_group_ids,
        "IamInstanceProfile": _profile(launch.instance_profile_name),
        "BlockDeviceMappings": _mappings(launch.block_device_map, launch.encrypted_volumes, root_device),
        "Placement": {"AvailabilityZone": f"{launch.region}{launch.placement}"} if launch.placement else None,
    }
    parameters.update({name: value for name, value in optional.items() if value})
    if market == "spot":
        spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        if max_price is not None:
            spot["MaxPrice"] = f"{max_price:.4f}"
        parameters["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": spot}
    return parameters


def _profile(name: str | None) -> dict[str, str] | None:
    if not name:
        return None
    return {"Arn" if str(name).startswith("arn:") else "Name": name}


def _template(template: Any) -> Any:
    """A launch template by its id, its name, or in the form of EC2's API, which stays as it is."""
    if not isinstance(template, str):
        return template
    return {"LaunchTemplateId" if template.startswith("lt-") else "LaunchTemplateName": template}


def _mappings(items: Any, encrypted: bool, root_device: str | None) -> Any:
    """Block device mappings whose volumes go with the instance, unless they say otherwise, and are encrypted if wished.

    What has another form stays as it is, for EC2's model to tell.
    """
    if items is not None and not isinstance(items, (list, tuple)):
        return items
    found = [_mapping(item, encrypted) for item in items or ()]
    if encrypted and root_device is not None:
        named = [mapping.get("DeviceName") for mapping in found if isinstance(mapping, Mapping)]
        if root_device not in named:
            found.append(_mapping({"DeviceName": root_device, "Ebs": {}}, encrypted))
    return found


def _mapping(item: Any, encrypted: bool) -> Any:
    mapping = copy.deepcopy(item)
    if isinstance(mapping, Mapping) and isinstance(mapping.get("Ebs"), Mapping):
        wishes = {"DeleteOnTermination": True, **({"Encrypted": True} if encrypted else {})}
        mapping = {**mapping, "Ebs": {**wishes, **mapping["Ebs"]}}
    return mapping
