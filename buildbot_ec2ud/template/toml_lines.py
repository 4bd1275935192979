"""TOML files whose values know their line: errors in hundreds of lines have to say where they are."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from buildbot import config


class TomlFile:
    """A TOML file that has been read.

    :param path: where it is; errors begin with it.
    :ivar content: what is in it.
    :raises buildbot.config.ConfigErrors: it is not there, or not TOML.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, encoding="utf-8", newline="") as file:
                text = file.read()
            self.content: dict[str, Any] = tomllib.loads(text)
        except (OSError, ValueError) as error:  # not there, not UTF-8, or not TOML
            raise config.ConfigErrors([f"{path}: {error}"]) from None
        self._text: str = text
        self._lines: dict[tuple[str, ...], int] | None = None

    def line(self, *keys: str) -> int | None:
        """The line where a value begins, or a table; None if it is not there.

        :param keys: its key, after those of the tables that it is in.
        """
        if self._lines is None:
            self._lines = _lines(self._text)  # needed only when something is wrong
        return self._lines.get(keys)

    def where(self, *keys: str) -> str:
        """The beginning of an error: the path, and the line of what *keys* lead to, as far as they lead."""
        for length in range(len(keys), 0, -1):
            line = self.line(*keys[:length])
            if line is not None:
                return f"{self.path}:{line}"
        return self.path


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each value and table of a text that is TOML.

    :mod:`tomllib` does not tell them. But a statement is whole when it is TOML by itself: what ends within an array or a
    text of several lines is not.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    pending, begin = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        if not pending:
            begin = number
        pending += line + "\n"
        try:
            statement = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        keys = list(_keys(statement))
        if pending.lstrip().startswith("["):
            table = keys[-1]
            keys = [table[:length] for length in range(1, len(table) + 1)]
            for each in keys:
                found.setdefault(each, begin)
        else:
            for each in keys:
                found.setdefault((*table, *each), begin)
        pending = ""
    return found


def _keys(table: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The keys of all that is in a table, those of what is in its tables after them."""
    for key, value in table.items():
        yield (key,)
        if isinstance(value, Mapping):
            yield from ((key, *inner) for inner in _keys(value))
