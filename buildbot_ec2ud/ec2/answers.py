"""Answers of EC2: the root that has to be there, and the children of an element by name.

What is no answer of EC2's is an error, never an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lxml import etree

from buildbot_ec2ud.ec2 import xml
from buildbot_ec2ud.ec2.errors import NoAnswer


class Node:
    """An element and its children by name, without the namespace, which changes with the version of the API.

    An instance has dozens of children; to look for each by a path of its own takes lxml three times as long.

    :param element: lxml's.
    :param names: the children that matter; all of them unless given.
    """

    __slots__ = ("_children",)

    def __init__(self, element: Any, names: Sequence[str] = ("{*}*",)) -> None:
        self._children = {child.tag.rpartition("}")[2]: child for child in element.iterchildren(*names)}

    def text(self, name: str) -> str:
        """The text of a child; empty where there is none."""
        child = self._children.get(name)
        return "" if child is None else child.text or ""

    def child(self, name: str) -> Node:
        """A child; one without children where there is none."""
        child = self._children.get(name)
        return _NOTHING if child is None else Node(child)

    def items(self, name: str) -> Iterator[Any]:
        """The elements of a list."""
        child = self._children.get(name)
        return iter(()) if child is None else child.iterchildren("{*}item")


_NOTHING = Node(etree.Element("nothing"))


def listing(xml_bytes: bytes, action: str, name: str) -> Node:
    """Parse the answer to *action*, which is a list.

    :param name: of the element that the list is in, which is there when the list is empty, too.
    :raises NoAnswer: it is something else.
    """
    root = answer(xml_bytes, action)
    if root.find(f"{{*}}{name}") is None:
        raise NoAnswer(f"{action}: the answer has no {name}")
    return Node(root)


def answer(xml_bytes: bytes, action: str) -> Any:
    """Parse the answer to *action*.

    :raises NoAnswer: it is something else: a proxy's HTML page, cut off, empty.
    """
    try:
        root = xml.parse(xml_bytes)
    except ValueError as error:
        raise NoAnswer(f"{action}: the answer is not XML: {error}") from error
    expect(root, action)
    return root


def expect(root: Any, action: str) -> None:
    """See whether *root* is that of an answer to *action*.

    :raises NoAnswer: it is not.
    """
    name = etree.QName(root).localname
    if name != f"{action}Response":
        raise NoAnswer(f"{action}: the answer is a {name!r}, not EC2's")
