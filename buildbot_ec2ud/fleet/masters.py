"""The masters that share one database: by which identities EC2 knows them, and which of them are dead."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from buildbot.util.service import SharedService
from twisted.internet import defer
from twisted.python import log

#: As how many dead masters somebody may act in one call, the last ones to be active first: EC2 takes 200 values for a
#: filter (EC2 user guide, "Filtering"), and one of them is his own.
MOST = 199

_CLASS = "buildbot_ec2ud.fleet.masters"  # of the object of each master in Buildbot's database
_STATE = "identities"

# What a copy of a database does not share with it, be it restored from a dump to another server, or made by cp.
_SERVER_IDENTITY = {
    "postgresql": "SELECT CONCAT(system_identifier, '/', current_database()) FROM pg_control_system()",
    "mysql": "SELECT CONCAT(@@server_uuid, '/', DATABASE())",
}


class Others(NamedTuple):
    """What a master knows of the others.

    :ivar dead: identities whose masters are all inactive, and when the last of these was active, in seconds since 1970.
    :ivar rivals: names of active masters that use our own identity.
    """

    dead: Mapping[str, float]
    rivals: Sequence[str]


#: A master that is alone.
NOBODY = Others({}, ())


class Masters(SharedService):
    """Tells the masters of this database by which identity EC2 knows this one, and learns theirs.

    Which masters there are, and which of them are inactive, Buildbot tells: one that has not been heard of for
    ten minutes. Each master writes what it calls itself into the database, as the state of an object that has the master's
    name.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = defer.DeferredLock()
        self._noted: set[str] = set()
        self._database: str | None = None
        self._inactive: dict[str, tuple[Any, list[str], list[str]]] = {}

    @defer.inlineCallbacks
    def others(self, owner: str) -> Generator[Any, Any, Others]:
        """Make known that this master calls itself *owner* on EC2, and ask for the others.

        :return: fires with :class:`Others`.
        """
        yield self._lock.run(self._note, owner)
        found = yield self.master.data.get(("masters",))
        last_active: dict[str, float] = {}
        alive, rivals = set(self._noted), []
        for other in found:
            if other["masterid"] == self.master.masterid:
                continue
            here, anywhere = yield self._identities(other)
            if other["active"]:
                alive.update(anywhere)
                if owner in anywhere:
                    rivals.append(other["name"])
            elif other["last_active"] is not None:
                when = other["last_active"].timestamp()
                last_active.update({identity: max(when, last_active.get(identity, when)) for identity in here})
        dead = sorted(last_active.keys() - alive, key=lambda identity: -last_active[identity])
        return Others({identity: last_active[identity] for identity in dead[:MOST]}, tuple(rivals))

    @defer.inlineCallbacks
    def _note(self, owner: str) -> Generator[Any, Any, None]:
        if owner in self._noted:
            return
        self._database = yield self.master.db.pool.do(database_identity)
        if self._database is None:
            log.msg("this database cannot be told from a copy of it: leftovers of other masters are not ended")
        state = self.master.db.state
        mine = yield state.getObjectId(self.master.name, _CLASS)
        known = yield state.getState(mine, _STATE, {})
        if owner not in known or known[owner] != self._database:
            yield state.setState(mine, _STATE, {**known, owner: self._database})
        self._noted.add(owner)

    @defer.inlineCallbacks
    def _identities(self, other: Mapping[str, Any]) -> Generator[Any, Any, tuple[list[str], list[str]]]:
        """The identities that a master has, or had, with this very database; and with whichever."""
        name, as_of = other["name"], other["last_active"]
        # One that is not active writes nothing. There may be many: a container has another host name each time.
        if not other["active"] and name in self._inactive and self._inactive[name][0] == as_of:
            return self._inactive[name][1:]
        state = self.master.db.state
        known = yield state.getState((yield state.getObjectId(name, _CLASS)), _STATE, {})
        here = [identity for identity, database in known.items() if database and database == self._database]
        self._inactive[name] = as_of, here, list(known)
        return here, list(known)


def database_identity(connection: sa.engine.Connection) -> str | None:
    """What tells a database from all others, also from its copies; called in a thread of Buildbot's database pool.

    :return: None where that cannot be told.
    """
    dialect = connection.dialect.name
    if dialect == "sqlite":
        path = connection.execute(sa.text("PRAGMA database_list")).first()[2]
        if not path:
            return None  # in memory
        file = os.stat(path)
        return f"sqlite/{file.st_dev}/{file.st_ino}"  # they stay when the directory is renamed
    if dialect not in _SERVER_IDENTITY:
        return None
    try:
        return f"{dialect}/{connection.execute(sa.text(_SERVER_IDENTITY[dialect])).scalar()}"
    except sa.exc.DBAPIError:  # MariaDB has no such UUID; and a role may be without the right to ask
        connection.rollback()
        return None
