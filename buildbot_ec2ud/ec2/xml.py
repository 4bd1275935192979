"""XML from the outside -> elements."""

from __future__ import annotations

from typing import Any

from lxml import etree


def parse(xml_bytes: bytes) -> Any:
    """Parse a whole answer.

    :return: the root, an element of lxml's.
    :raises ValueError: it is no XML: a proxy's HTML page, cut off, empty.
    """
    # No entities and no network: an answer has no business to make this master read files or open connections.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        return etree.fromstring(xml_bytes, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(" ".join(str(error).split())) from error
