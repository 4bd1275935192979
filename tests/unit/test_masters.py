"""What masters of one database know of each other; the database is Buildbot's own, on SQLite."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace
from typing import Any, ClassVar

import sqlalchemy as sa
from buildbot.db.connector import DBConnector
from buildbot.master import BuildMaster
from twisted.internet import defer, reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from buildbot_ec2ud.fleet import masters
from buildbot_ec2ud.fleet.masters import NOBODY, Masters, Others, database_identity
from tests.unit.files import directory
from tests.unit.fleets import logged

#: What the clock of all masters says, in seconds since 1970.
NOW = 1_800_000_000.0


class StoppedClock:
    """Twisted's reactor, which the threads of the database need; its time is that of the test."""

    def __init__(self, case: Any) -> None:
        self._case = case

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def seconds(self) -> float:
        return self._case.now


class MastersTestCase(TestCase):
    timeout = 60
    _empty: ClassVar[bytes] = b""

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        self.now = NOW
        self.texts = logged(self)
        self.home = directory(self)
        self.path = os.path.join(self.home, "state.sqlite")
        if MastersTestCase._empty:
            with open(self.path, "wb") as file:
                file.write(MastersTestCase._empty)
            return
        # Buildbot takes long to make the tables.
        maker = yield self.connect()
        yield maker.db.model.upgrade()
        yield maker.db.pool.stop()
        with open(self.path, "rb") as file:
            MastersTestCase._empty = file.read()

    @defer.inlineCallbacks
    def connect(self, path: str | None = None, name: str = "maker") -> Any:
        master = BuildMaster(self.home)
        yield master._services_d
        master.reactor = StoppedClock(self)
        master.name = name
        master.config.db.db_url = f"sqlite:///{path or self.path}"
        db: DBConnector = master.db
        yield db.setup(check_version=False)
        yield master.mq.setup()
        self.addCleanup(lambda: db.pool.running and db.pool.stop())
        return master

    @defer.inlineCallbacks
    def master(self, name: str, *owners: str, path: str | None = None) -> Any:
        """A master that is active, and known by *owners*."""
        master = yield self.connect(path, name)
        master.masterid = yield master.db.masters.findMasterId(name)
        yield self.beat(master)
        master.known = yield Masters.getService(master)
        for owner in owners:
            yield master.known.others(owner)
        return master

    def beat(self, master: Any) -> defer.Deferred[Any]:
        """It says that it is active."""
        return master.db.masters.setMasterState(masterid=master.masterid, active=True)

    @defer.inlineCallbacks
    def die(self, *dying: Any) -> Any:
        """Buildbot calls these inactive, as of now."""
        for master in dying:
            yield master.db.masters.setMasterState(masterid=master.masterid, active=False)


class Knowing(MastersTestCase):
    @defer.inlineCallbacks
    def test_alone(self) -> Any:
        a = yield self.master("host:/a")
        self.assertEqual((yield a.known.others("host:/a")), NOBODY)

    @defer.inlineCallbacks
    def test_dead(self) -> Any:
        """One that is active is left out; one that is not is known by what it called itself, and by nothing else."""
        a = yield self.master("host:/a", "host:/a")
        b = yield self.master("host:/b", "b-on-EC2")
        self.assertEqual((yield a.known.others("host:/a")), NOBODY)
        self.now += 700
        yield self.die(b)
        self.assertEqual((yield a.known.others("host:/a")), Others({"b-on-EC2": NOW}, ()))

    @defer.inlineCallbacks
    def test_as_buildbot_has_it(self) -> Any:
        """Buildbot's own housekeeping makes it inactive, after its ten minutes."""
        a = yield self.master("host:/a", "a")
        yield self.master("host:/b", "b")
        for seconds, dead in ((599, {}), (2, {"b": NOW})):
            self.now += seconds
            yield self.beat(a)
            yield a.data.updates.expireMasters()
            self.assertEqual((yield a.known.others("a")).dead, dead)

    @defer.inlineCallbacks
    def test_comes_back(self) -> Any:
        """It is not dead any more; when it dies again, it is by all that it called itself."""
        a = yield self.master("host:/a", "a")
        b = yield self.master("host:/b", "b")
        yield self.die(b)
        self.assertEqual((yield a.known.others("a")).dead, {"b": NOW})
        self.now += 1000
        yield self.beat(b)
        yield b.known.others("b-2")
        self.assertEqual((yield a.known.others("a")).dead, {})
        yield self.die(b)
        self.assertEqual((yield a.known.others("a")).dead, {"b": NOW + 1000, "b-2": NOW + 1000})

    @defer.inlineCallbacks
    def test_nothing_known(self) -> Any:
        """A dead master that has told nothing, which a Buildbot without EC2 is, has no identity."""
        a = yield self.master("host:/a", "a")
        b = yield self.master("host:/b")
        yield self.die(b)
        self.assertEqual((yield a.known.others("a")), NOBODY)

    @defer.inlineCallbacks
    def test_shared_identities(self) -> Any:
        """Who has an identity that an active master has too is not dead; of several dead ones, the last one counts."""
        a = yield self.master("host:/a", "a")
        b = yield self.master("host:/b", "x", "y", "a")
        self.now += 100
        c = yield self.master("host:/c", "x", "y")
        d = yield self.master("host:/d", "x")
        yield self.die(b, c)
        self.assertEqual((yield a.known.others("a")).dead, {"y": NOW + 100})
        yield self.die(d)
        self.assertEqual((yield a.known.others("a")).dead, {"x": NOW + 100, "y": NOW + 100})
        self.now += 100
        yield self.beat(b)
        yield self.die(b)
        self.assertEqual((yield a.known.others("a")).dead, {"x": NOW + 200, "y": NOW + 200})

    @defer.inlineCallbacks
    def test_rivals(self) -> Any:
        """Active masters with our own identity."""
        a = yield self.master("host:/a", "same")
        b = yield self.master("host:/b", "other", "same")
        c = yield self.master("host:/c", "same")
        self.assertEqual((yield a.known.others("same")), Others({}, ("host:/b", "host:/c")))
        yield self.die(b, c)
        self.assertEqual((yield a.known.others("same")), Others({"other": NOW}, ()))

    @defer.inlineCallbacks
    def test_own_former_identities(self) -> Any:
        """What we called ourselves is not somebody else's, whether in this process or in one before."""
        yield self.master("host:/a", "former")
        again = yield self.master("host:/a", "now")
        self.assertEqual((yield again.known.others("now")), NOBODY)

    @defer.inlineCallbacks
    def test_at_the_same_time(self) -> Any:
        """Fleets with different owners do not overwrite each other's."""
        a = yield self.master("host:/a")
        owners = [f"owner-{number}" for number in range(5)]
        yield defer.gatherResults([a.known.others(owner) for owner in owners])
        b = yield self.master("host:/b", "b")
        yield self.die(a)
        self.assertEqual(sorted((yield b.known.others("b")).dead), owners)

    @defer.inlineCallbacks
    def test_many(self) -> Any:
        """Not more than EC2 takes; those that were active last."""
        self.patch(masters, "MOST", 2)
        for number in range(4):
            self.now = NOW + 10 * number
            yield self.die((yield self.master(f"host:/{number}", f"owner-{number}")))
        a = yield self.master("host:/a", "a")
        self.assertEqual((yield a.known.others("a")).dead, {"owner-3": NOW + 30, "owner-2": NOW + 20})

    @defer.inlineCallbacks
    def test_long_names(self) -> Any:
        """Longer than what Buildbot's table takes, and different only at the end."""
        long = "host:/" + "x" * 200
        a = yield self.master("host:/a", "a")
        b, c = (yield self.master(f"{long}b", "b")), (yield self.master(f"{long}c", "c"))
        yield self.die(b)
        self.assertEqual((yield a.known.others("a")).dead, {"b": NOW})
        yield self.die(c)
        self.assertEqual((yield a.known.others("a")).dead, {"b": NOW, "c": NOW})


class Databases(MastersTestCase):
    """Only a master with this very database can be known to be dead."""

    @defer.inlineCallbacks
    def test_copy(self) -> Any:
        """In a copy all look dead, and none is; who has used the copy since is known in it."""
        b = yield self.master("host:/b", "b")
        yield b.db.pool.stop()
        copy = os.path.join(self.home, "copy.sqlite")
        shutil.copy(self.path, copy)
        a = yield self.master("host:/a", "a", path=copy)
        yield self.die(SimpleNamespace(db=a.db, masterid=b.masterid))
        self.assertEqual((yield a.known.others("a")), NOBODY)
        in_copy = yield self.master("host:/b", "b", path=copy)
        self.now += 1
        yield self.beat(in_copy)
        yield self.die(in_copy)
        self.assertEqual((yield a.known.others("a")).dead, {"b": NOW + 1})

    @defer.inlineCallbacks
    def test_copy_of_active(self) -> Any:
        """An identity that an active master had with the original is not dead, although another one with it is."""
        b = yield self.master("host:/b", "shared")
        yield b.db.pool.stop()
        copy = os.path.join(self.home, "copy.sqlite")
        shutil.copy(self.path, copy)
        a = yield self.master("host:/a", "a", path=copy)
        c = yield self.master("host:/c", "shared", path=copy)
        yield self.die(c)
        self.assertEqual((yield a.known.others("a")), NOBODY)

    @defer.inlineCallbacks
    def test_moved(self) -> Any:
        """A database that is moved stays what it is: the master has another name, and the former one is dead."""
        b = yield self.master("host:/former", "host:/former")
        yield self.die(b)
        yield b.db.pool.stop()
        os.mkdir(os.path.join(self.home, "new"))
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.rename(self.path + suffix, os.path.join(self.home, "new", "state.sqlite" + suffix))
        a = yield self.master("host:/new", path=os.path.join(self.home, "new", "state.sqlite"))
        self.assertEqual((yield a.known.others("host:/new")).dead, {"host:/former": NOW})

    @defer.inlineCallbacks
    def test_cannot_be_told(self) -> Any:
        """Where copies cannot be told apart, nobody is dead, and that is said once."""
        self.patch(masters, "database_identity", lambda _: None)
        a = yield self.master("host:/a", "a")
        b = yield self.master("host:/b", "b")
        yield self.die(b)
        before = len(self.texts)
        self.assertEqual((yield a.known.others("a")), NOBODY)
        self.assertEqual(self.texts[before:], [])
        self.assertEqual(len([text for text in self.texts if "leftovers of other masters are not ended" in text]), 2)


class Identity(SynchronousTestCase):
    def test_in_memory(self) -> None:
        with sa.create_engine("sqlite://").connect() as connection:
            self.assertIs(database_identity(connection), None)

    def test_file(self) -> None:
        """The same for each connection; another one for a copy."""
        home = directory(self)
        identities = []
        for name in ("one", "two"):
            for _ in range(2):
                with sa.create_engine(f"sqlite:///{home}/{name}").connect() as connection:
                    connection.execute(sa.text("CREATE TABLE IF NOT EXISTS t (x INTEGER)"))
                    identities.append(database_identity(connection))
        self.assertEqual(identities[0], identities[1])
        self.assertEqual(identities[2], identities[3])
        self.assertNotEqual(identities[0], identities[2])

    def test_servers(self) -> None:
        """What a server says of itself; of one that is not known, nothing is asked."""

        def connection(dialect: str) -> Any:
            return SimpleNamespace(
                dialect=SimpleNamespace(name=dialect),
                execute=lambda query: SimpleNamespace(scalar=lambda: f"<{str(query).split()[1]}>"),
            )

        self.assertEqual(database_identity(connection("postgresql")), "postgresql/<CONCAT(system_identifier,>")
        self.assertEqual(database_identity(connection("mysql")), "mysql/<CONCAT(@@server_uuid,>")
        self.assertIs(database_identity(connection("oracle")), None)

    def test_refused(self) -> None:
        """A server that does not tell, as MariaDB; the connection can be used on."""
        with sa.create_engine("sqlite://").connect() as connection:
            self.patch(connection.dialect, "name", "mysql")
            self.assertIs(database_identity(connection), None)
            self.assertFalse(connection.in_transaction())
            self.assertEqual(connection.execute(sa.text("SELECT 1")).scalar(), 1)
