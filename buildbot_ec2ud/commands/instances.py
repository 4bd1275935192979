"""``buildbot-ec2ud instances`` and ``reap``: what a master has on EC2, shown and ended by hand."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from twisted.internet import defer, task

from buildbot_ec2ud import commands
from buildbot_ec2ud.account import Account
from buildbot_ec2ud.configured import Configured, Unusable, running_pid
from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.fleet.background import pauses
from buildbot_ec2ud.fleet.leftovers import LEFT, tagged
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG, WORKER_TAG
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.terminations import Terminator
from buildbot_ec2ud.fleet.watcher import Watcher

#: Exit statuses: nothing is left, or all is as it was wished; something went wrong; there is something to reap.
DONE, TROUBLE, TO_REAP = 0, 1, 3

_ALIVE = (*LEFT, "shutting-down")
#: What EC2 will refuse another time, too.
_REFUSED = (ErrorClass.CONFIGURATION, ErrorClass.CREDENTIALS, ErrorClass.CLOCK, ErrorClass.UNKNOWN)

_Farm = list[tuple["_Place", list[Instance]]]


class _Place:
    """One region of one account.

    :param account: region and account.
    :param owners: the identities that the master has there.
    """

    def __init__(self, account: Account, owners: Collection[str], transport: Transport, reactor: Any) -> None:
        self.account = account
        self.owners = owners
        self._reactor = reactor
        self.client = commands.client_of(EC2Client, account, transport, reactor)
        self._terminator = Terminator(self.client, reactor)
        self._watcher = Watcher(self.client, reactor)

    @defer.inlineCallbacks
    def end(self, instance: Instance) -> Generator[Any, Any, None]:
        """End an instance.

        :return: fires when EC2 has confirmed its end. There is no time limit, but it can be cancelled.
        :raises EC2CallError: EC2 refuses it.
        """
        confirmed: defer.Deferred[None] = defer.Deferred()

        def changed(rental: Rental) -> None:
            if rental.ended and not confirmed.called:
                confirmed.callback(None)

        rental = Rental(self, instance.tags.get(WORKER_TAG, ""), instance)
        rental.returned = confirmed
        # From now on: it may end by itself.
        self._watcher.watch(rental, changed, lambda _: None)
        try:
            for pause in pauses():
                try:
                    yield self._terminator.terminate(rental.instance_id)
                    break
                except EC2CallError as error:
                    if rental.ended:
                        break
                    if error.error_class in _REFUSED:
                        raise
                yield task.deferLater(self._reactor, pause)
            yield confirmed
        finally:
            self._watcher.forget(rental)

    def stop(self) -> None:
        self._watcher.stop()
        self._terminator.stop()


class Instances:
    """The instances of the master in a directory, wherever its workers have them.

    :param reactor: Twisted's.
    :param directory: path of the directory.
    """

    def __init__(self, reactor: Any, directory: str) -> None:
        self._reactor = reactor
        self._directory = directory
        self._places: list[_Place] = []
        self._owners: list[str] = []
        self._troubled = False

    @defer.inlineCallbacks
    def show(self, as_json: bool = False, all_masters: bool = False) -> Generator[Any, Any, int]:
        """Print the instances that EC2 has not ended yet.

        :param as_json: print a JSON list of objects, instead of a table.
        :param all_masters: those of other masters, too.
        :return: fires with the exit status.
        """
        return (yield self._with_farm(lambda: self._show(as_json, all_masters)))

    @defer.inlineCallbacks
    def reap(self, timeout: float, really: bool = False, force: bool = False) -> Generator[Any, Any, int]:
        """End all instances of this master, and wait until EC2 has confirmed that.

        :param timeout: seconds that EC2 may take.
        :param really: end them; else they are only printed.
        :param force: do it although the master runs.
        :return: fires with the exit status.
        """
        return (yield self._with_farm(lambda: self._reap(really, timeout), force))

    @defer.inlineCallbacks
    def _with_farm(
        self, command: Callable[[], defer.Deferred[int]], running_too: bool = True
    ) -> Generator[Any, Any, int]:
        try:
            configured = Configured(self._directory)
            pid = None if running_too else running_pid(self._directory)
            if pid is not None:
                raise Unusable(
                    f"the master in {self._directory} runs (process {pid}), and ends by itself what it does not need; "
                    "see 'buildbot-ec2ud instances', or stop it"
                )
        except Unusable as error:
            self._complain(str(error))
            return TROUBLE
        self._owners = configured.owners
        accounts, troubles = yield configured.accounts(self._reactor)
        for trouble in troubles:
            self._complain(trouble)
        transport = Transport(self._reactor, endpoints.aws_settings().ca_bundle)
        self._places = [_Place(account, owners, transport, self._reactor) for account, owners in accounts]
        try:
            status = yield command()
        finally:
            for place in self._places:
                place.stop()
            yield transport.close()
        return TROUBLE if self._troubled else status

    def _complain(self, text: str) -> None:
        self._troubled = True
        print(text, file=sys.stderr)

    @defer.inlineCallbacks
    def _find(self, all_masters: bool = False, states: Collection[str] = _ALIVE) -> Generator[Any, Any, _Farm]:
        """Find the instances of each place. One that two accounts see is that of the first."""
        asked = [tagged(place.client, None if all_masters else place.owners, states) for place in self._places]
        answers = yield defer.DeferredList(asked, consumeErrors=True)
        seen: set[str] = set()
        farm = []
        for place, (succeeded, result) in zip(self._places, answers, strict=True):
            if not succeeded:
                result.trap(EC2CallError)
                self._complain(f"{place.account}: {result.value}")
                continue
            farm.append((place, [instance for instance in result if instance.instance_id not in seen]))
            seen.update(instance.instance_id for instance in result)
        return farm

    @defer.inlineCallbacks
    def _show(self, as_json: bool, all_masters: bool) -> Generator[Any, Any, int]:
        found = yield self._find(all_masters)
        now = datetime.datetime.now(datetime.UTC)
        rows = [_row(place, instance, now) for place, instances in found for instance in instances]
        rows.sort(key=lambda row: (row["master"], row["worker"], row["launched"]))
        if as_json:
            print(json.dumps(rows, indent=2))
        elif rows:
            _print_table(rows, all_masters)
        elif not self._troubled:
            print("no instances of any master" if all_masters else f"no instances of {self._names()}")
        return DONE

    def _names(self) -> str:
        return "master " + ", ".join(self._owners)

    @defer.inlineCallbacks
    def _reap(self, really: bool, timeout: float) -> Generator[Any, Any, int]:
        farm = yield self._find(states=LEFT)
        found = [(place, instance) for place, instances in farm for instance in instances]
        if not found:
            if not self._troubled:
                print(f"no instances of {self._names()} to end")
            return DONE
        now = datetime.datetime.now(datetime.UTC)
        _print_table([_row(place, instance, now) for place, instance in found])
        if not really:
            print(f"{len(found)} to end, of {self._names()}: nothing is ended without --yes")
            return TO_REAP
        ending = [self._end(place, instance, timeout) for place, instance in found]
        ended = yield defer.gatherResults(ending)
        print(f"{sum(ended)} of {len(found)} ended")
        return DONE

    @defer.inlineCallbacks
    def _end(self, place: _Place, instance: Instance, timeout: float) -> Generator[Any, Any, bool]:
        try:
            yield place.end(instance).addTimeout(timeout, self._reactor)
        except EC2CallError as error:
            self._complain(f"{instance.instance_id}: EC2 does not end it: {error}")
            return False
        except defer.TimeoutError:
            self._complain(f"{instance.instance_id}: EC2 has not confirmed its end within {timeout:g} s")
            return False
        print(f"{instance.instance_id}: terminated", flush=True)
        return True


def _row(place: _Place, instance: Instance, now: datetime.datetime) -> dict[str, Any]:
    """What is told of an instance, by the names of the columns and of the JSON."""
    try:
        age = int((now - datetime.datetime.fromisoformat(instance.launch_time)).total_seconds())
    except (ValueError, TypeError):  # no time; one without a time zone
        age = None
    return {
        "worker": instance.tags.get(WORKER_TAG, ""),
        "id": instance.instance_id,
        "state": instance.instance_state,
        "type": instance.instance_type,
        "market": instance.lifecycle,
        "zone": instance.placement,
        "region": place.account.region,
        "launched": instance.launch_time,
        "age": age,
        "launch": instance.tags.get(LAUNCH_TAG, ""),
        "master": instance.tags[MASTER_TAG],
    }


def _print_table(rows: Sequence[dict[str, Any]], masters: bool = False) -> None:
    columns = ["worker", "id", "state", "type", "market", "zone", "launched", "age", "launch"]
    if masters:
        columns.append("master")
    cells = [[name.upper() for name in columns]]
    cells += [[_age(row[name]) if name == "age" else row[name] for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _age(seconds: int | None) -> str:
    """Seconds as a person reads them: ``2d3h``, ``3h12m``, ``12m5s``."""
    if seconds is None:
        return ""
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d{hours}h"
    return f"{hours}h{minutes}m" if hours else f"{minutes}m{seconds % 60}s"


def run(directory: str, command: Callable[[Instances], defer.Deferred[int]]) -> int:
    """Do one command under Twisted's reactor, which cannot run again after that.

    :param directory: the master's; relative paths in its configuration begin there, as when the master runs.
    :param command: what to do.
    :return: the exit status.
    """
    return commands.run(directory, lambda reactor, path: command(Instances(reactor, path)))
