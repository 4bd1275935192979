"""What image is wanted, as people write it, and what is wrong with that; EC2 is not asked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from buildbot_ec2ud.ec2.images import FILTERS, OWNER_ALIASES

#: Filters that keep strangers' images out: anybody can publish one under any name, and the newest would be taken. Tags are
#: seen only by the account that has set them (EC2 user guide, "Share an AMI").
_WHOSE = ("image-allowed", "image-id", "owner-alias", "owner-id", "public-ssm-parameter-name", "tag-key")
_TAG = "tag:"


@dataclass(frozen=True)
class ImageRule:
    """What image is wanted. Rules that ask for the same are equal.

    :ivar owners: ids of accounts, or :data:`~buildbot_ec2ud.ec2.images.OWNER_ALIASES`.
    :ivar location_regex: what the beginning of the location has to match (an empty one matches any); then the last
        location is wanted. Where it is None, the newest image is.
    :ivar filters: names and values, as DescribeImages takes them.
    """

    owners: tuple[str, ...] = ()
    location_regex: str | None = None
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of_locations(cls, valid_ami_owners: Any, valid_ami_location_regex: Any = None) -> ImageRule:
        """The rule of ``EC2LatentWorker``'s arguments: of some owners' images, the one with the last location.

        :param valid_ami_owners: an account's id (a number, or a text), an alias, or several of these.
        :param valid_ami_location_regex: a regular expression, or None.
        :raises ValueError: with all that :func:`check_locations` says.
        """
        _refuse(check_locations(valid_ami_owners, valid_ami_location_regex))
        return cls(_owners(valid_ami_owners), valid_ami_location_regex or "")

    @classmethod
    def of(cls, wanted: Any) -> ImageRule:
        """The rule that a person writes as a dict: the newest image that passes all filters.

        :param wanted: such as ``{"owners": ["136693071363"], "name": "debian-12-*", "architecture": "arm64"}``: owners, as
            in :meth:`of_locations`, and filters of DescribeImages with one value, or several of which one has to fit.
        :raises ValueError: with all that :func:`check` says.
        """
        _refuse(check(wanted))
        filters = {
            name: tuple(sorted({_text(one) for one in _several(value)}))
            for name, value in wanted.items()
            if name != "owners"
        }
        owners = _owners(wanted["owners"]) if "owners" in wanted else ()
        return cls(owners, None, tuple(sorted(filters.items())))

    def __str__(self) -> str:
        parts = [f"owners {', '.join(self.owners)}"] if self.owners else []
        if self.location_regex:
            parts.append(f"location {self.location_regex!r}")
        parts.extend(f"{name} {' or '.join(map(repr, values))}" for name, values in self.filters)
        return "; ".join(parts)


def check_locations(valid_ami_owners: Any, valid_ami_location_regex: Any) -> Iterator[str]:
    """Tell what is wrong with ``EC2LatentWorker``'s arguments for images, naming the argument.

    :param valid_ami_owners: None if not given.
    :param valid_ami_location_regex: None if not given.
    """
    if valid_ami_owners is not None:
        yield from (f"valid_ami_owners: {line}" for line in _check_owners(valid_ami_owners))
    elif valid_ami_location_regex is None:
        yield "valid_ami_owners: name at least one"
    else:
        yield "valid_ami_owners: goes with valid_ami_location_regex, or all public images of the region would be listed"
    if valid_ami_location_regex is None:
        return
    if not isinstance(valid_ami_location_regex, str):
        yield f"valid_ami_location_regex: not a text: {valid_ami_location_regex!r}"
        return
    try:
        re.compile(valid_ami_location_regex)
    except (re.error, OverflowError, RecursionError) as error:
        yield f"valid_ami_location_regex: not a regular expression: {valid_ami_location_regex!r}: {error}"


def check(wanted: Any) -> Iterator[str]:
    """Tell what is wrong with an image that a person describes; see :meth:`ImageRule.of`."""
    if not isinstance(wanted, Mapping):
        yield f"not a dict: {wanted!r}"
        return
    bounded = "owners" in wanted
    for name, value in wanted.items():
        if name == "owners":
            yield from (f"owners: {line}" for line in _check_owners(value))
        elif _is_filter(name):
            yield from (f"{name}: {line}" for line in _check_values(value, or_empty=name.startswith(_TAG)))
            bounded = bounded or name in _WHOSE or name.startswith(_TAG)
        else:
            bounded = True  # what it was meant to be is not known
            near = difflib.get_close_matches(str(name), ("owners", *FILTERS), n=1)
            yield f"unknown filter {name!r}" + (f"; did you mean {near[0]}?" if near else "")
    if not bounded:
        yield "owners: name at least one, or anybody's public image would do"


def _is_filter(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    return name in FILTERS or (name.startswith(_TAG) and name != _TAG and name.isprintable())


def _check_owners(owners: Any) -> Iterator[str]:
    several = _several(owners)
    if not several:
        yield "name at least one"
    for owner in several:
        if _owner(owner) is None:
            yield f"neither the id of an account, of 12 digits, nor one of {', '.join(OWNER_ALIASES)}: {owner!r}"


def _check_values(values: Any, or_empty: bool) -> Iterator[str]:
    several = _several(values)
    if not several:
        yield "has no value"
    for value in several:
        if not isinstance(value, (str, int)):
            yield f"neither a text nor a list of texts: {value!r}"
        elif value == "" and not or_empty:
            yield "is empty"
        elif not str(value).isprintable():
            yield f"has a character that cannot be printed: {value!r}"


def _refuse(lines: Iterable[str]) -> None:
    if wrong := list(lines):
        raise ValueError("; ".join(wrong))


def _several(value: Any) -> list[Any]:
    """One value, or several, as a list."""
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping)):
        return list(value)
    return [value]


def _owners(owners: Any) -> tuple[str, ...]:
    return tuple(sorted({str(_owner(owner)) for owner in _several(owners)}))


def _owner(owner: Any) -> str | None:
    """An owner as DescribeImages takes it; None if it is none."""
    if type(owner) is int and 0 < owner < 10**12:
        return f"{owner:012}"  # Python knows no number that begins with 0
    if not isinstance(owner, str):
        return None
    if owner in OWNER_ALIASES:
        return owner
    return owner.replace("-", "") if re.fullmatch("[0-9]{12}|[0-9]{4}-[0-9]{4}-[0-9]{4}", owner) else None


def _text(value: str | int | bool) -> str:
    """A filter's value as DescribeImages takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
