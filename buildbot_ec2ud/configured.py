"""What a master's directory says of its instances: the master's identity, and the accounts that its workers use."""

from __future__ import annotations

import difflib
import os
from collections.abc import Generator, Sequence
from typing import Any

from buildbot.config.errors import ConfigErrors
from buildbot.config.master import MasterConfig
from buildbot.master import BuildMaster
from buildbot.process.properties import Properties
from buildbot.scripts.base import getConfigFromTac
from buildbot.secrets.manager import SecretManager
from buildbot.util.httpclientservice import HTTPClientService
from buildbot.util.service import MasterService
from twisted.internet import defer

from buildbot_ec2ud.account import Account
from buildbot_ec2ud.fleet.background import observe
from buildbot_ec2ud.launch import is_dynamic
from buildbot_ec2ud.worker import EC2UserDataLatentWorker

#: Seconds that the master's secrets providers have to start, and then to give the credentials of a worker.
SECRETS_TIMEOUT = 30.0

_PID_FILE = "twistd.pid"


class Unusable(Exception):
    """Nothing can be made of the directory. The text says why, a line for each reason."""


class Configured:
    """The configuration in a master's directory, loaded as ``buildbot checkconfig`` does; the master is not started.

    :param directory: path of the directory.
    :raises Unusable: it cannot be loaded, or has no workers of ours.
    :ivar workers: the ``EC2UserDataLatentWorker`` in it.
    :ivar master: Buildbot's master, which is not started, with its configuration.
    """

    def __init__(self, directory: str) -> None:
        if not os.path.isdir(directory):
            raise Unusable(f"{directory}: no such directory")
        # A relocatable master has the path that the operating system gives, without symbolic links, in its name.
        self.master = master = _master(os.path.realpath(directory))
        try:
            self._config: MasterConfig = master.config_loader.loadConfig()
        except ConfigErrors as error:
            raise Unusable("\n".join(["Configuration Errors:", *(f"  {line}" for line in error.errors)])) from None
        master.config = self._config
        self._name = master.name
        self.workers = [worker for worker in self._config.workers if isinstance(worker, EC2UserDataLatentWorker)]
        if not self.workers:
            raise Unusable(
                f"{directory}: there is no EC2UserDataLatentWorker in its configuration, which would tell where to look"
            )

    def select(self, names: Sequence[str]) -> list[EC2UserDataLatentWorker]:
        """The workers with these names; all of them where no name is given.

        :raises Unusable: there is none of some name.
        """
        known = {worker.name: worker for worker in self.workers}
        if wrong := [name for name in names if name not in known]:
            raise Unusable("\n".join(_unknown(name, list(known)) for name in wrong))
        return [known[name] for name in dict.fromkeys(names or known)]

    def owner(self, worker: EC2UserDataLatentWorker) -> str:
        """The identity that the master has on the instances of *worker*."""
        return worker.settings.owner or self._name

    @property
    def owners(self) -> list[str]:
        """The identities that the master has."""
        return sorted({self.owner(worker) for worker in self.workers})

    @defer.inlineCallbacks
    def accounts(self, reactor: Any) -> Generator[Any, Any, tuple[list[tuple[Account, set[str]]], list[str]]]:
        """Find the accounts of all workers, each once.

        :param reactor: the clock.
        :return: fires with the accounts, each with the identities that the master has on its instances; and with a line for
            each worker whose account cannot be found.
        """
        found, troubles = yield self.account_of_each(self.workers, reactor)
        accounts: dict[Any, tuple[Account, set[str]]] = {}
        for worker, account in found:
            accounts.setdefault(account.key, (account, set()))[1].add(self.owner(worker))
        return list(accounts.values()), [f"worker {worker.name}: {text}" for worker, text in troubles]

    @defer.inlineCallbacks
    def account_of_each(
        self, workers: Sequence[EC2UserDataLatentWorker], reactor: Any
    ) -> Generator[Any, Any, tuple[list[_Found], list[_Trouble]]]:
        """Find the account of each of *workers*.

        :param reactor: the clock.
        :return: fires with the workers and their accounts; and with those whose account cannot be found, and why.
        """
        secrets = _Secrets(self._config, reactor)
        finding = [
            Account.of(worker.settings, secrets.render, reactor).addTimeout(SECRETS_TIMEOUT, reactor)
            for worker in workers
        ]
        answers = yield defer.DeferredList(finding, consumeErrors=True)
        yield secrets.stop()
        found, troubles = [], []
        for worker, (succeeded, result) in zip(workers, answers, strict=True):
            if succeeded:
                found.append((worker, result))
            else:  # whatever a provider, or a renderable of the configuration, raises
                troubles.append((worker, f"cannot get its AWS credentials: {_describe(result.value)}"))
        return found, troubles


_Found = tuple[EC2UserDataLatentWorker, Account]
_Trouble = tuple[EC2UserDataLatentWorker, str]


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"there is no EC2UserDataLatentWorker {name!r}" + (f"; did you mean {near[0]}?" if near else "")


def _describe(error: BaseException) -> str:
    while isinstance(error, defer.FirstError):  # Buildbot renders what is inside of something all at once
        error = error.subFailure.value
    if isinstance(error, (defer.TimeoutError, defer.CancelledError)):  # the latter where it was inside of something
        return f"no answer within {SECRETS_TIMEOUT:g} s"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _master(basedir: str) -> BuildMaster:
    """The master that ``buildbot.tac`` makes; without such a file, one with a ``master.cfg``. It is not started."""
    try:
        tac = getConfigFromTac(basedir, quiet=True) or {}
    except Exception as error:  # it is a program
        raise Unusable(f"{os.path.join(basedir, 'buildbot.tac')}: {_describe(error)}") from None
    for value in tac.values():
        if isinstance(value, BuildMaster):
            return value
    return BuildMaster(basedir)


class _Secrets(MasterService):
    """As much of a master as its secrets providers need; they are started only when there is a secret to be got."""

    def __init__(self, config: MasterConfig, reactor: Any) -> None:
        super().__init__()
        self.config = config
        self.reactor = reactor
        self._started: defer.Deferred[None] | None = None

    @defer.inlineCallbacks
    def render(self, values: Sequence[Any]) -> Generator[Any, Any, Sequence[Any]]:
        """Render *values*, as a worker's ``renderSecrets`` does."""
        if not any(map(is_dynamic, values)):
            return values
        if self._started is None:
            self._started = self._start().addTimeout(SECRETS_TIMEOUT, self.reactor)
        yield observe(self._started)
        properties = Properties()
        properties.master = self
        return (yield properties.render(values))

    @defer.inlineCallbacks
    def _start(self) -> Generator[Any, Any, None]:
        # In the order of Buildbot's own master.
        self.httpservice = yield HTTPClientService.getService(self, "")
        manager = SecretManager()
        yield manager.setServiceParent(self)
        yield manager.setup()
        yield self.startService()

    def stop(self) -> defer.Deferred[Any]:
        """Stop the providers that were started."""
        if self._started is not None:
            self._started.addErrback(lambda _: None)  # it has been told
        return self.stopService() if self.running else defer.succeed(None)


def running_pid(directory: str) -> int | None:
    """The id of the process of the master in *directory*; None when there is none, or its file is stale.

    A master that was started with ``--nodaemon`` has no such file.

    :raises Unusable: there is no telling.
    """
    path = os.path.join(directory, _PID_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            pid = int(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not the id of a process"
        raise Unusable(f"{path}: {reason}") from None
    if pid <= 0:
        raise Unusable(f"{path}: not the id of a process")
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # it runs, as somebody else
    return pid
