"""Tells Buildbot of a worker's connection that ends while it logs in.

Twisted's PB tells the end of a connection only to those whose login had succeeded by then. Buildbot 4.3 has taken the
connection into use before that: an instance that ends at the wrong moment leaves a worker that counts as connected for
ever, or a master that waits for ever for a connection to close when it stops.
"""

from __future__ import annotations

from typing import Any

from buildbot.worker.protocols import pb


class ConnectionLostEarly(Exception):
    """The worker's connection has ended before it could be used."""


def tell_of_loss(conn: Any, reactor: Any) -> None:
    """See to it that *conn* tells of its end, whenever that comes; to be called when a worker attaches.

    :param conn: Buildbot's connection to a worker. Only those of PB need this.
    :param reactor: Twisted's.
    :raises ConnectionLostEarly: it has ended already.
    """
    if not isinstance(conn, pb.Connection):
        return

    def tell() -> None:
        if conn.mind is not None:  # else PB has told it: the login had succeeded
            conn.detached(conn.mind)

    if conn.mind.broker.disconnected:
        tell()
        raise ConnectionLostEarly(f"the connection of worker {conn.worker.workername} has ended")
    # Later, to let PB go first.
    conn.mind.broker.notifyOnDisconnect(lambda: reactor.callLater(0, tell))
