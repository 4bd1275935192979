"""What EC2 tells of EBS volumes, of Elastic IP addresses, and of the instances that have them."""

from __future__ import annotations

from typing import NamedTuple

#: What the allocation id of an Elastic IP address begins with.
ALLOCATION_PREFIX = "eipalloc-"


class BlockDevice(NamedTuple):
    """An EBS volume as its instance has it.

    :ivar device: its name, such as ``/dev/sda1``.
    :ivar delete_on_termination: whether it is deleted with the instance.
    """

    device: str
    volume_id: str
    delete_on_termination: bool


class VolumeAttachment(NamedTuple):
    """An instance that has a volume.

    :ivar device: the name of the volume there.
    :ivar state: ``attaching``, ``attached``, ``detaching``, ``detached`` or ``busy``.
    """

    instance_id: str
    device: str
    state: str


class Volume(NamedTuple):
    """An EBS volume.

    :ivar state: ``creating``, ``available``, ``in-use``, ``deleting``, ``deleted`` or ``error``.
    :ivar multi_attach_enabled: whether several instances can have it at a time.
    """

    volume_id: str
    state: str
    availability_zone: str
    multi_attach_enabled: bool
    attachments: tuple[VolumeAttachment, ...]


class Address(NamedTuple):
    """An Elastic IP address.

    :ivar association_id: empty while it is associated with nothing.
    :ivar instance_id: the instance that it is associated with; empty where it is none.
    """

    public_ip: str
    allocation_id: str
    association_id: str
    instance_id: str
