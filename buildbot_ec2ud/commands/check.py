"""``buildbot-ec2ud check``: asks AWS whether workers can be started as they are configured. Nothing is launched."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud import commands
from buildbot_ec2ud.account import Account
from buildbot_ec2ud.configured import Configured, Unusable
from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.ec2.surroundings import SurroundingsClient
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.fleet.pacing import Pacer
from buildbot_ec2ud.preflight import Preflight
from buildbot_ec2ud.preflight.candidates import Candidate
from buildbot_ec2ud.preflight.findings import Finding, State, exit_status, merge
from buildbot_ec2ud.preview import Previews

#: Seconds for one attempt at a call, and in which it is attempted again: a person waits.
CALL_TIMEOUT, PATIENCE = 15.0, 20.0


class Check:
    """A check of the workers of the master in a directory.

    :param reactor: Twisted's.
    :param directory: path of the directory.
    :param names: the workers to look at; all of them if there are none.
    """

    def __init__(self, reactor: Any, directory: str, names: Sequence[str] = ()) -> None:
        self._reactor = reactor
        self._directory = directory
        self._names = names
        self.findings: list[Finding] = []

    @defer.inlineCallbacks
    def run(self, as_json: bool = False) -> Generator[Any, Any, int]:
        """Ask, and print a line for each thing that was looked at.

        :param as_json: print a JSON list of objects instead.
        :return: fires with the exit status: 0 if all is fine, 1 if there are problems, else 3 if something could not be
            asked.
        """
        try:
            configured = Configured(self._directory)
            workers = configured.select(self._names)
        except Unusable as error:
            print(error, file=sys.stderr)
            return 1
        previews = yield Previews.of(configured, workers, self._reactor)
        found, troubles = yield configured.account_of_each(workers, self._reactor)
        for worker, text in troubles:
            fix = "see to identifier and secret_identifier, and to c['secretsProviders']"
            self.findings.append(Finding(State.PROBLEM, "", "credentials", text, fix, (worker.name,)))
        places: dict[Any, tuple[Account, list[Candidate]]] = {}
        for worker, account in found:
            candidate = Candidate(worker, account.region, configured.owner(worker), previews.of_worker(worker))
            places.setdefault(account.key, (account, []))[1].append(candidate)
        transport = Transport(self._reactor, endpoints.aws_settings().ca_bundle)
        try:
            yield defer.gatherResults(
                [self._look(account, candidates, transport) for account, candidates in places.values()],
                consumeErrors=True,
            )
        finally:
            yield transport.close()
        self.findings = merge(self.findings)
        self._print(as_json)
        return exit_status(self.findings)

    @defer.inlineCallbacks
    def _look(
        self, account: Account, candidates: Sequence[Candidate], transport: Transport
    ) -> Generator[Any, Any, None]:
        """Look at one region of one account."""
        limits = {action: limit for one in candidates for action, limit in one.worker.settings.limits.items()}
        pacer = Pacer(self._reactor, limits)
        client = commands.client_of(
            SurroundingsClient,
            account,
            transport,
            self._reactor,
            timeout=CALL_TIMEOUT,
            patience=PATIENCE,
            admit=pacer.admit,
            answered=pacer.answered,
        )
        preflight = Preflight(client, str(account), candidates, self._reactor)
        try:
            yield preflight.run()
        finally:
            self.findings += preflight.findings

    def _print(self, as_json: bool) -> None:
        if as_json:
            print(json.dumps([finding.as_dict() for finding in self.findings], indent=2))
            return
        place = ""
        for finding in sorted(self.findings, key=lambda one: one.place):
            if finding.place != place:
                place = finding.place
                print(place)
            print(f"  {finding}")
        counts = {state: sum(finding.state is state for finding in self.findings) for state in State}
        print(", ".join(f"{count} {state.value}" for state, count in counts.items() if count))
