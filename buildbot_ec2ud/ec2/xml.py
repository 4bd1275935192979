"""XML from the outside -> elements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lxml import etree

# No entities and no network: an answer has no business to make this master read files or open connections.
_SAFELY: dict[str, Any] = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}


def parse(xml_bytes: bytes) -> Any:
    """Parse a whole answer.

    :return: the root, an element of lxml's.
    :raises ValueError: it is no XML: a proxy's HTML page, cut off, empty.
    """
    try:
        return etree.fromstring(xml_bytes, etree.XMLParser(**_SAFELY))
    except etree.XMLSyntaxError as error:
        raise _wrong(error) from error


def parse_in_slices(xml_bytes: bytes, size: int, parent: str) -> Iterator[tuple[list[Any], Any]]:
    """Parse a long answer bit by bit, so that something else can be done in between.

    :param size: bytes of a slice.
    :param parent: the name of a list, without a namespace.
    :return: for each slice, the elements of that list that ended in it, which are gone when the next one is asked for, and
        None; at last, no elements, and the root.
    :raises ValueError: it is no XML.
    """
    parser = etree.XMLPullParser(events=("end",), tag="{*}item", **_SAFELY)
    try:
        for start in range(0, len(xml_bytes), size):
            parser.feed(xml_bytes[start : start + size])
            found = [item for _, item in parser.read_events() if _parent(item) == parent]
            yield found, None
            for item in found:
                item.getparent().remove(item)
        root = parser.close()
    except etree.XMLSyntaxError as error:
        raise _wrong(error) from error
    yield [], root


def _parent(item: Any) -> str:
    above = item.getparent()
    return "" if above is None else etree.QName(above).localname


def _wrong(error: etree.XMLSyntaxError) -> ValueError:
    return ValueError(" ".join(str(error).split()))
