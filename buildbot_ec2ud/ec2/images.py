"""What EC2 tells of an image, and by what it can be asked for one."""

from __future__ import annotations

from dataclasses import dataclass

#: What DescribeImages takes for an owner, besides the id of an account. Source: botocore's model of EC2, ``DescribeImages``.
OWNER_ALIASES = ("self", "amazon", "aws-backup-vault", "aws-marketplace")

#: The filters of DescribeImages, but for ``tag:KEY``. Source: botocore's model of EC2, where they are text for people.
FILTERS = (
    *("architecture", "block-device-mapping.delete-on-termination", "block-device-mapping.device-name"),
    *("block-device-mapping.encrypted", "block-device-mapping.snapshot-id", "block-device-mapping.volume-size"),
    *("block-device-mapping.volume-type", "boot-mode", "creation-date", "description", "ena-support"),
    *("free-tier-eligible", "hypervisor", "image-allowed", "image-id", "image-type"),
    *("image-watermark.source-image-creation-time", "image-watermark.source-image-id"),
    *("image-watermark.source-image-region", "image-watermark.watermark-creation-time"),
    "image-watermark.watermark-key",
    *("instance-type-specification.supported-instance-type", "instance-type-specification.unsupported-instance-type"),
    *("is-public", "kernel-id", "manifest-location", "name", "owner-alias", "owner-id", "platform", "product-code"),
    *("product-code.type", "public-ssm-parameter-name", "ramdisk-id", "root-device-name", "root-device-type"),
    *("scan-result.critical-fix-available-since", "scan-result.finding-scan-date"),
    *("scan-result.high-fix-available-since", "scan-result.highest-finding-severity-label"),
    *("scan-result.informational-fix-available-since", "scan-result.low-fix-available-since"),
    "scan-result.medium-fix-available-since",
    *("source-image-id", "source-image-region", "source-instance-id", "sriov-net-support", "state"),
    *("state-reason-code", "state-reason-message", "tag-key", "virtualization-type"),
)


@dataclass(frozen=True)
class Image:
    """An image (AMI).

    :ivar state: ``"available"`` when instances can be started from it.
    :ivar location: the S3 bucket and manifest, or ``owner/name``; None where EC2 tells none.
    :ivar name: its name, unique among those of its owner.
    :ivar creation_date: in the form of ISO 8601, UTC, to the millisecond: it sorts as text. Empty if it is not known.
    :ivar root_device_name: such as ``/dev/xvda``; empty where EC2 tells none.
    :ivar architecture: ``"x86_64"``, ``"arm64"`` ...
    """

    image_id: str
    state: str
    location: str | None = None
    name: str = ""
    creation_date: str = ""
    root_device_name: str = ""
    architecture: str = ""

    @property
    def available(self) -> bool:
        """Whether instances can be started from it."""
        return self.state == "available"

    def __str__(self) -> str:
        return f"{self.image_id} ({self.location or self.name})"
