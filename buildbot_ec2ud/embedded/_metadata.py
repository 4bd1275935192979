"""What moto knows of an instance, as the instance's own metadata says it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from buildbot_ec2ud.embedded._moto import Instance


@dataclass(frozen=True)
class MetadataOptions:
    """How an instance's metadata may be read.

    :ivar enabled: whether at all.
    :ivar tokens: whether only with a token, as version 2 of the service has it.
    :ivar tags: whether the tags are among them.
    """

    enabled: bool
    tokens: bool
    tags: bool


def metadata_options(instance: Instance) -> MetadataOptions:
    options = instance.metadata_options
    return MetadataOptions(
        options.http_endpoint != "disabled",
        options.http_tokens == "required",
        options.instance_metadata_tags == "enabled",
    )


def metadata(instance: Instance) -> dict[str, str]:
    """What an instance's metadata says of it, by its path below ``latest``. Source: EC2 user guide, "Instance metadata
    categories", and "Instance identity documents".
    """
    zone, region, address = (
        instance.availability_zone or "",
        instance.ec2_backend.region_name,
        instance.private_ip or "",
    )
    identity = {
        "accountId": instance.owner_id,
        "architecture": instance.architecture,
        "availabilityZone": zone,
        "imageId": instance.image_id,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "pendingTime": instance.launch_time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": address,
        "region": region,
        "version": "2017-09-30",
    }
    values = {
        "ami-id": instance.image_id,
        "ami-launch-index": str(instance.ami_launch_index),
        "hostname": instance.private_dns_name,
        "instance-id": instance.id,
        "instance-life-cycle": instance.lifecycle or "on-demand",
        "instance-type": instance.instance_type,
        "local-hostname": instance.private_dns_name,
        "local-ipv4": address,
        "mac": instance.nics[0].mac_address,
        "placement/availability-zone": zone,
        "placement/region": region,
        "security-groups": "\n".join(group.name for group in instance.security_groups),
    }
    if metadata_options(instance).tags:
        values.update({f"tags/instance/{tag['key']}": tag["value"] for tag in instance.get_tags()})
    return {
        **{f"meta-data/{path}": value for path, value in values.items()},
        "dynamic/instance-identity/document": json.dumps(identity, indent=2),
    }
