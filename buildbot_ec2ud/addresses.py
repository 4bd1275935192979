"""Addresses of masters, as people write them."""

from __future__ import annotations

from typing import Any


def has_port(address: str) -> bool:
    """Whether an address is ``host:port``, and not only a host."""
    host, colon, port = address.rpartition(":")
    return bool(colon and host and port.isascii() and port.isdigit() and not address.endswith("]"))


def is_address(text: Any) -> bool:
    """Whether *text* is a host, or ``host:port``."""
    if not isinstance(text, str) or not text or any(c.isspace() for c in text):
        return False
    return 0 < int(text.rpartition(":")[2]) < 65536 if has_port(text) else ":" not in text or text[0] + text[-1] == "[]"


def host_of(address: str) -> str:
    """The host of an address."""
    return address.rpartition(":")[0] if has_port(address) else address
