"""The volumes and the Elastic IP address of a worker, as a person writes them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.fleet.attachments import check_elastic_ip, check_volumes

VOLUME = "vol-0123456789abcdef0"
IP = "203.0.113.7"


class Arguments(SynchronousTestCase):
    """Each mistake is a line, and what EC2 could take is none."""

    def test_good_volumes(self) -> None:
        for volumes in (
            [],
            (),
            [(VOLUME, "/dev/sdf")],
            [[VOLUME, "xvdf"], ["vol-0a1b2c3d", "/dev/sda1"]],
            ((VOLUME, "/dev/xvdba"), ("vol-1", "/dev/sdz")),
        ):
            self.assertEqual(list(check_volumes(volumes)), [], volumes)

    def test_bad_volumes(self) -> None:
        """Each mistake is a line that shows what was written."""
        pair, volume_id = "not a pair of a volume's id and a device name", "not the id of a volume (vol-...)"
        pairs, device = (
            "not a list of pairs of a volume's id and a device name",
            "not a device name, such as '/dev/sdf'",
        )
        for volumes, lines in (
            (VOLUME, [f"{pairs}: {VOLUME!r}"]),
            ({VOLUME: "/dev/sdf"}, [f"{pairs}: {{{VOLUME!r}: '/dev/sdf'}}"]),
            (7, [f"{pairs}: 7"]),
            ((VOLUME, "/dev/sdf"), [f"{pair}: {VOLUME!r}", f"{pair}: '/dev/sdf'"]),
            (["ab"], [f"{pair}: 'ab'"]),
            ([(VOLUME,)], [f"{pair}: ({VOLUME!r},)"]),
            ([(VOLUME, "/dev/sdf", True)], [f"{pair}: ({VOLUME!r}, '/dev/sdf', True)"]),
            ([(VOLUME, None)], [f"{pair}: ({VOLUME!r}, None)"]),
            ([(7, "/dev/sdf")], [f"{pair}: (7, '/dev/sdf')"]),
            ([None], [f"{pair}: None"]),
            ([("/dev/sdf", VOLUME)], [f"{volume_id}: '/dev/sdf'", f"{device}: {VOLUME!r}"]),
            ([("vol-", "/dev/sdf")], [f"{volume_id}: 'vol-'"]),
            ([("snap-0123", "/dev/sdf")], [f"{volume_id}: 'snap-0123'"]),
            ([(f"{VOLUME}\n", "/dev/sdf")], [f"{volume_id}: '{VOLUME}\\n'"]),
            ([(VOLUME, "")], [f"{device}: ''"]),
            ([(VOLUME, "/dev/")], [f"{device}: '/dev/'"]),
            ([(VOLUME, "/mnt/data")], [f"{device}: '/mnt/data'"]),
            ([(VOLUME, "/dev/sdf ")], [f"{device}: '/dev/sdf '"]),
            ([(VOLUME, "/dev/sdf"), (VOLUME, "/dev/sdg")], [f"twice: {VOLUME!r}"]),
            ([("vol-1", "/dev/sdf"), ("vol-2", "/dev/sdf")], ["twice: 'sdf'"]),
            ([("vol-1", "/dev/sdf"), ("vol-2", "sdf")], ["twice: 'sdf'"]),
            ([("vol-1", "/dev/sdf"), 1, ("vol", "sdg")], [f"{pair}: 1", f"{volume_id}: 'vol'"]),
        ):
            self.assertEqual(list(check_volumes(volumes)), lines)

    def test_elastic_ip(self) -> None:
        for right in (IP, "8.8.8.8", "eipalloc-0123456789abcdef0", "eipalloc-1"):
            self.assertEqual(list(check_elastic_ip(right)), [])
        for wrong in (
            *("", "203.0.113", "203.0.113.256", "203.0.113.07", f" {IP}", f"{IP}\n", f"{IP}/32", "2001:db8::1"),
            *("eipalloc-", "eipalloc-xyz", "eipalloc-1\n", "eipassoc-1", "elastic.example.org"),
            *(7, b"203.0.113.7", None, [IP], True),
        ):
            self.assertEqual(
                list(check_elastic_ip(wrong)),
                [f"neither an IPv4 address nor the allocation id of one (eipalloc-...): {wrong!r}"],
            )
