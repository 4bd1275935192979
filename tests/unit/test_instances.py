"""What a master's directory tells of its instances, without starting the master; and how instances are shown."""

from __future__ import annotations

import datetime
import io
import os
import subprocess
import sys
from typing import Any

from buildbot.master import BuildMaster
from twisted.internet import defer, reactor, task
from twisted.trial.unittest import SynchronousTestCase, TestCase

from buildbot_ec2ud import configured
from buildbot_ec2ud.account import Account
from buildbot_ec2ud.commands import instances
from buildbot_ec2ud.configured import Configured, Unusable, running_pid
from tests.unit.files import directory, write
from tests.unit.fleets import instance
from tests.unit.master_directory import make_master
from tests.unit.secure import environment

SECRET = "s3cret-of-the-account"
KEYS = {"identifier": "AKID", "secret_identifier": SECRET}
HOST = os.uname().nodename


class DirectoryTestCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        environment(self, HOME=directory(self))
        self.directory = directory(self)

    def unusable(self, path: str | None = None) -> str:
        return str(self.assertRaises(Unusable, Configured, path or self.directory))


class Loading(DirectoryTestCase):
    """``Configured``."""

    def test_owner(self) -> None:
        """The identity is the name that Buildbot gives the master."""
        make_master(self.directory, {"w": {}, "x": {}})
        found = Configured(self.directory)
        self.assertEqual(found.owners, [f"{HOST}:{self.directory}"])
        self.assertEqual(found.owners, [BuildMaster(self.directory).name])
        self.assertEqual([worker.name for worker in found.workers], ["w", "x"])

    def test_owner_as_started(self) -> None:
        """It is the same name when the master is started the way ``buildbot start`` does, also by way of a link."""
        make_master(os.path.join(self.directory, "real"), {"w": {}})
        link = os.path.join(self.directory, "link")
        os.symlink("real", link)
        program = "exec(open('buildbot.tac').read(), names := {'__file__': 'buildbot.tac'}); print(names['m'].name)"
        done = subprocess.run([sys.executable, "-c", program], cwd=link, capture_output=True, text=True, check=True)
        self.assertEqual(Configured(link).owners, [done.stdout.strip()])
        self.assertEqual(Configured(os.path.join(self.directory, "real")).owners, [done.stdout.strip()])

    def test_owner_not_relocatable(self) -> None:
        """A directory that is written in ``buildbot.tac`` is the master's, by whatever path it is asked for."""
        link = os.path.join(self.directory, "link")
        os.symlink("real", link)
        os.mkdir(os.path.join(self.directory, "real"))
        make_master(link, {"w": {}}, relocatable=False)
        self.assertEqual(Configured(os.path.join(self.directory, "real")).owners, [f"{HOST}:{link}"])

    def test_configured_owner(self) -> None:
        """The argument *owner* wins; workers may differ."""
        found = Configured(make_master(self.directory, {"w": {}, "x": {"owner": "farm-7"}, "y": {"owner": "farm-7"}}))
        name = f"{HOST}:{self.directory}"
        self.assertEqual([found.owner(worker) for worker in found.workers], [name, "farm-7", "farm-7"])
        self.assertEqual(found.owners, sorted([name, "farm-7"]))

    def test_without_tac(self) -> None:
        """A directory with nothing but a ``master.cfg`` will do."""
        make_master(self.directory, {"w": {}})
        os.remove(os.path.join(self.directory, "buildbot.tac"))
        self.assertEqual(Configured(self.directory).owners, [f"{HOST}:{self.directory}"])

    def test_another_file(self) -> None:
        """The configuration is the file that ``buildbot.tac`` names."""
        make_master(self.directory, {"w": {}})
        os.rename(os.path.join(self.directory, "master.cfg"), os.path.join(self.directory, "farm.cfg"))
        self.assertIn("master.cfg' does not exist", self.unusable())
        tac = os.path.join(self.directory, "buildbot.tac")
        with open(tac, encoding="utf-8") as file:
            text = file.read()
        write(self.directory, "buildbot.tac", text.replace("master.cfg", "farm.cfg"))
        self.assertEqual(len(Configured(self.directory).workers), 1)

    def test_no_such_directory(self) -> None:
        for path in (os.path.join(self.directory, "nothing"), write(self.directory, "file", "")):
            self.assertEqual(self.unusable(path), f"{path}: no such directory")

    def test_empty_directory(self) -> None:
        self.assertEqual(
            self.unusable(),
            f"Configuration Errors:\n  configuration file '{self.directory}/master.cfg' does not exist",
        )

    def test_wrong_configuration(self) -> None:
        """All that is wrong, as ``buildbot checkconfig`` tells it."""
        make_master(self.directory, {"w": {"ami": None, "market": "x"}}, "c['zzz'] = 1")
        first, *lines = self.unusable().splitlines()
        self.assertEqual((first, len(lines)), ("Configuration Errors:", 3))
        for words in ("  worker w: ami: ", "  worker w: market: ", "zzz"):
            self.assertTrue(any(words in line for line in lines), lines)

    def test_broken_configuration(self) -> None:
        make_master(self.directory, {}, "1 / 0")
        self.assertIn("error while parsing config file: division by zero", self.unusable())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_broken_tac(self) -> None:
        make_master(self.directory, {"w": {}})
        write(self.directory, "buildbot.tac", "raise OSError('no\\nway')\n")
        self.assertEqual(self.unusable(), f"{self.directory}/buildbot.tac: OSError: no way")

    def test_no_workers_of_ours(self) -> None:
        """Without a worker of this class there is no telling which regions to ask; that is trouble, not "nothing there"."""
        make_master(self.directory, {}, "c['workers'] = [worker.Worker('w', 'p')]")
        self.assertIn("there is no EC2UserDataLatentWorker in its configuration", self.unusable())


class Accounts(DirectoryTestCase):
    """``Configured.accounts``."""

    def accounts(self, workers: dict[str, Any], *lines: str) -> defer.Deferred[Any]:
        return Configured(make_master(self.directory, workers, *lines)).accounts(reactor)

    @defer.inlineCallbacks
    def test_grouped(self) -> Any:
        """Workers with the same region, endpoint and credentials share an account."""
        url = "http://127.0.0.1:1"
        found, troubles = yield self.accounts(
            {
                "a": {**KEYS, "region": "eu-west-1"},
                "b": {**KEYS, "region": "eu-west-1", "api_limits": {"RunInstances": (20, 5)}},
                "c": {**KEYS, "region": "eu-central-1"},
                "d": {**KEYS, "region": "eu-west-1", "endpoint_url": url},
                "e": {**KEYS, "identifier": "AKID2", "region": "eu-west-1"},
                "f": {"region": "eu-west-1"},
                "g": {"region": "eu-west-1"},
                "h": {},
            }
        )
        owners = {f"{HOST}:{self.directory}"}
        west = "https://ec2.eu-west-1.amazonaws.com"
        self.assertEqual(troubles, [])
        self.assertEqual(
            found,
            [
                (Account("eu-west-1", west, "AKID", SECRET), owners),
                (Account("eu-central-1", "https://ec2.eu-central-1.amazonaws.com", "AKID", SECRET), owners),
                (Account("eu-west-1", url, "AKID", SECRET), owners),
                (Account("eu-west-1", west, "AKID2", SECRET), owners),
                (Account("eu-west-1", west), owners),
                (Account("us-east-1", "https://ec2.us-east-1.amazonaws.com"), owners),
            ],
        )
        self.assertNotIn(SECRET, repr(found) + str(found[0][0]))

    @defer.inlineCallbacks
    def test_owners(self) -> Any:
        """An account is asked for all the identities that the master has there, and for no other."""
        here, there = {**KEYS, "region": "eu-west-1"}, {**KEYS, "region": "eu-central-1"}
        found, _ = yield self.accounts({"a": here, "b": {**here, "owner": "x"}, "c": {**there, "owner": "y"}})
        self.assertEqual([owners for _, owners in found], [{f"{HOST}:{self.directory}", "x"}, {"y"}])

    @defer.inlineCallbacks
    def test_files_and_sessions(self) -> Any:
        """The file with an access key, and a boto3 session, whose region counts too; two alike are one."""
        write(self.directory, "aws_id", f"AKID\n{SECRET}\n")
        session = f"=__import__('boto3').Session('AKID3', {SECRET!r}, region_name='eu-north-1')"
        found, troubles = yield self.accounts(
            {
                "a": {"aws_id_file_path": f"{self.directory}/aws_id"},
                "b": {"session": session},
                "c": {"session": session},
            }
        )
        self.assertEqual(troubles, [])
        (of_file, _), (of_session, _) = found
        self.assertEqual((of_file.access_key, of_file.secret_key, of_file.region), ("AKID", SECRET, "us-east-1"))
        self.assertEqual((of_session.access_key, of_session.region), (None, "eu-north-1"))
        self.assertEqual(of_session.source().access_key, "AKID3")
        self.assertNotIn(SECRET, repr(found))

    @defer.inlineCallbacks
    def test_secrets(self) -> Any:
        """Secrets are rendered by the configuration's own providers; only they are started, and they are stopped."""
        secrets = directory(self)
        for name, text in (("id", "AKID\n"), ("key", SECRET)):
            write(secrets, name, text, 0o600)
        provider = f"c['secretsProviders'] = [secrets.SecretInAFile(dirname={secrets!r})]"
        worker = {
            "identifier": "=util.Secret('id')",
            "secret_identifier": "=util.Interpolate('%(secret:key)s')",
            "region": "eu-west-1",
        }
        loaded = Configured(make_master(self.directory, {"a": worker, "b": worker}, provider))
        found, troubles = yield loaded.accounts(reactor)
        self.assertEqual(troubles, [])
        ((account, _),) = found
        self.assertEqual((account.access_key, account.secret_key), ("AKID", SECRET))
        (files,) = loaded._config.secretsProviders
        self.assertFalse(files.running)

    @defer.inlineCallbacks
    def test_no_such_secret(self) -> Any:
        """It is told of each worker that has it; the others' accounts are there."""
        secrets = directory(self)
        worker = {"identifier": "=util.Secret('nope')", "secret_identifier": SECRET}
        provider = f"c['secretsProviders'] = [secrets.SecretInAFile(dirname={secrets!r})]"
        found, troubles = yield self.accounts({"a": worker, "b": KEYS, "c": worker}, provider)
        self.assertEqual([account.access_key for account, _ in found], ["AKID"])
        self.assertEqual(len(troubles), 2)
        self.assertTrue(troubles[0].startswith("worker a: cannot get its AWS credentials: KeyError: "), troubles)
        self.assertIn("nope", troubles[0])
        self.assertNotIn(SECRET, "".join(troubles))

    @defer.inlineCallbacks
    def test_without_providers(self) -> Any:
        worker = {"identifier": "=util.Secret('id')", "secret_identifier": SECRET}
        found, troubles = yield self.accounts({"a": worker})
        self.assertEqual((found, len(troubles)), ([], 1))
        self.assertIn("id is not found in any provider", troubles[0])

    @defer.inlineCallbacks
    def test_broken_provider(self) -> Any:
        """A provider that cannot start is told of each worker that needs it, and of no other."""
        worker = {"identifier": "=util.Secret('id')", "secret_identifier": SECRET}
        found, troubles = yield self.accounts(
            {"a": worker, "b": worker, "c": KEYS},
            "from buildbot.secrets.providers.base import SecretProviderBase",
            "class Broken(SecretProviderBase):",
            "    name = 'broken'",
            "    def reconfigService(self):",
            "        raise OSError('sealed')",
            "c['secretsProviders'] = [Broken()]",
        )
        self.assertEqual(len(found), 1)
        self.assertEqual(
            troubles, [f"worker {name}: cannot get its AWS credentials: OSError: sealed" for name in ("a", "b")]
        )


class Hanging(DirectoryTestCase):
    def test_provider_that_hangs(self) -> None:
        """A provider has a time limit, one for all workers together."""
        worker = {"identifier": "=util.Secret('id')", "secret_identifier": SECRET}
        clock = task.Clock()
        loaded = Configured(
            make_master(
                self.directory,
                {"a": worker, "b": worker},
                "from twisted.internet import defer",
                "from buildbot.secrets.providers.base import SecretProviderBase",
                "class Hangs(SecretProviderBase):",
                "    name = 'hangs'",
                "    def get(self, entry):",
                "        return defer.Deferred()",
                "c['secretsProviders'] = [Hangs()]",
            )
        )
        finding = loaded.accounts(clock)
        clock.advance(configured.SECRETS_TIMEOUT - 1)
        self.assertNoResult(finding)
        clock.advance(1)
        found, troubles = self.successResultOf(finding)
        self.assertEqual(found, [])
        self.assertEqual(
            troubles, [f"worker {name}: cannot get its AWS credentials: no answer within 30 s" for name in ("a", "b")]
        )
        self.assertEqual(clock.getDelayedCalls(), [])


class PidFiles(SynchronousTestCase):
    """Whether a master runs in a directory."""

    def setUp(self) -> None:
        self.directory = directory(self)

    def pid(self, text: str) -> int | None:
        write(self.directory, "twistd.pid", text)
        return running_pid(self.directory)

    def test_none(self) -> None:
        self.assertIsNone(running_pid(self.directory))

    def test_runs(self) -> None:
        self.assertEqual(self.pid(f"{os.getpid()}\n"), os.getpid())

    def test_of_another_user(self) -> None:
        """Where this process may not send it a signal, it runs nevertheless."""

        def kill(pid: int, signal: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "kill", kill)
        self.assertEqual(self.pid("1"), 1)

    def test_stale(self) -> None:
        """The process is gone; the file is left alone."""
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        for pid in (gone.pid, 10**30):
            self.assertIsNone(self.pid(str(pid)))
            self.assertTrue(os.path.exists(os.path.join(self.directory, "twistd.pid")))

    def test_nonsense(self) -> None:
        """There is no telling: a master may run."""
        for text in ("", "many", "0", "-1", "12 13"):
            error = self.assertRaises(Unusable, self.pid, text)
            self.assertEqual(str(error), f"{self.directory}/twistd.pid: not the id of a process")

    def test_unreadable(self) -> None:
        os.mkdir(os.path.join(self.directory, "twistd.pid"))
        error = self.assertRaises(Unusable, running_pid, self.directory)
        self.assertEqual(str(error), f"{self.directory}/twistd.pid: Is a directory")


class Showing(SynchronousTestCase):
    """How an instance is told."""

    now = datetime.datetime(2026, 5, 3, 12, 0, 0, tzinfo=datetime.UTC)

    class place:
        account = Account("us-east-1", "http://127.0.0.1:1")

    def row(self, launched: str = "2026-05-03T10:00:00.000Z", **tags: str) -> dict[str, Any]:
        found = instance("i-1", "running")
        found.launch_time = launched
        found.tags = {"buildbot:master": "m", **{f"buildbot:{name}": value for name, value in tags.items()}}
        return instances._row(self.place, found, self.now)

    def test_row(self) -> None:
        self.assertEqual(
            self.row(worker="w", launch="l"),
            {
                "worker": "w",
                "id": "i-1",
                "state": "running",
                "type": "t3.micro",
                "market": "on-demand",
                "zone": "us-east-1a",
                "region": "us-east-1",
                "launched": "2026-05-03T10:00:00.000Z",
                "age": 7200,
                "launch": "l",
                "master": "m",
            },
        )

    def test_what_is_missing(self) -> None:
        """An instance without the other tags, or with a time that is none, is shown too."""
        for launched in ("", "yesterday", "2026-05-03T10:00:00"):
            row = self.row(launched)
            self.assertEqual((row["worker"], row["launch"], row["age"]), ("", "", None))

    def test_ages(self) -> None:
        for seconds, text in (
            (None, ""),
            (0, "0m0s"),
            (59, "0m59s"),
            (3599, "59m59s"),
            (3600, "1h0m"),
            (86399, "23h59m"),
            (86400, "1d0h"),
            (200000, "2d7h"),
        ):
            self.assertEqual(instances._age(seconds), text)

    def table(self, rows: list[dict[str, Any]], masters: bool) -> list[str]:
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        instances._print_table(rows, masters)
        return out.getvalue().splitlines()

    def test_table(self) -> None:
        """Columns are as wide as what is in them; other masters have one of their own."""
        rows = [self.row(worker="w", launch="l"), self.row("", worker="a-long-name")]
        head, first, second = self.table(rows, masters=False)
        names = ["WORKER", "ID", "STATE", "TYPE", "MARKET", "ZONE", "LAUNCHED", "AGE", "LAUNCH"]
        self.assertEqual(head.split(), names)
        self.assertEqual(
            first.split(),
            ["w", "i-1", "running", "t3.micro", "on-demand", "us-east-1a", rows[0]["launched"], "2h0m", "l"],
        )
        self.assertEqual(second.split(), ["a-long-name", "i-1", "running", "t3.micro", "on-demand", "us-east-1a"])
        self.assertEqual([line.index("i-1") for line in (first, second)], [head.index("ID")] * 2)
        head, first, _ = self.table(rows, masters=True)
        self.assertEqual((head.split(), first.split()[-1]), ([*names, "MASTER"], "m"))
