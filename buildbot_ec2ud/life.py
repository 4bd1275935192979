"""The life of one instance, from the wish for it to the confirmation that it is gone, as an explicit state machine.

Drawn in ``docs/life.md``. The worker tells it what Buildbot wants; the fleet, what EC2 says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from automat import TypeMachineBuilder


class Life(Protocol):
    """What can happen in the life of an instance.

    Each event is told with a line of text: what has happened, in words.
    """

    def ask(self, text: str) -> None:
        """EC2 is being asked for an offer."""

    def refuse(self, text: str) -> None:
        """EC2 has refused an offer, or it was not asked for it."""

    def accept(self, text: str) -> None:
        """EC2 has accepted, and there is an instance."""

    def run(self, text: str) -> None:
        """EC2 says that the instance runs."""

    def report(self, text: str) -> None:
        """Something is worth telling that changes no state."""

    def attach(self, text: str) -> None:
        """The worker on the instance has connected."""

    def stop(self, text: str) -> None:
        """This master wants the end of the instance, or of the attempt to get one."""

    def fade(self, text: str) -> None:
        """EC2 says that the instance is on its way out."""

    def vanish(self, text: str) -> None:
        """EC2 has confirmed that the instance is gone, or there never was one."""


class Record:
    """What is known of a life besides what can happen next.

    :param tell: takes each line.
    :ivar state: one of :data:`STATES`.
    :ivar died: whether the instance has come to its end before this master wanted that.
    """

    def __init__(self, tell: Callable[[str], Any]) -> None:
        self.tell = tell
        self.state = STATES[0]
        self.died = False


#: The states, in the order of a life without trouble.
STATES = ("requested", "launching", "pending", "running", "attached", "stopping", "gone")

_builder = TypeMachineBuilder(Life, Record)
_requested, _launching, _pending, _running, _attached, _stopping, _gone = map(_builder.state, STATES)

#: From which state, by which event, to which; and whether the instance dies by it.
TRANSITIONS = (
    (_requested, Life.ask, _launching, False),
    (_requested, Life.refuse, _launching, False),
    (_launching, Life.ask, _launching, False),
    (_launching, Life.refuse, _launching, False),
    (_launching, Life.accept, _pending, False),
    # EC2's first answer was lost: the worker has come before the call was repeated.
    (_launching, Life.attach, _attached, False),
    (_attached, Life.ask, _attached, False),
    (_attached, Life.refuse, _attached, False),
    (_attached, Life.accept, _attached, False),
    (_pending, Life.run, _running, False),
    (_pending, Life.attach, _attached, False),
    (_running, Life.attach, _attached, False),
    (_running, Life.run, _running, False),
    # A look may be behind: the worker has connected before EC2 was asked whether its instance runs.
    (_attached, Life.run, _attached, False),
    (_pending, Life.fade, _stopping, True),
    (_running, Life.fade, _stopping, True),
    (_attached, Life.fade, _stopping, True),
    (_pending, Life.vanish, _gone, True),
    (_running, Life.vanish, _gone, True),
    (_attached, Life.vanish, _gone, True),
    (_requested, Life.stop, _gone, False),
    (_requested, Life.vanish, _gone, False),
    # Whether there will be an instance is not known: EC2 may accept all the same.
    (_launching, Life.stop, _stopping, False),
    (_launching, Life.vanish, _gone, False),
    (_pending, Life.stop, _stopping, False),
    (_running, Life.stop, _stopping, False),
    (_attached, Life.stop, _stopping, False),
    (_stopping, Life.ask, _stopping, False),
    (_stopping, Life.refuse, _stopping, False),
    (_stopping, Life.accept, _stopping, False),
    (_stopping, Life.run, _stopping, False),
    (_stopping, Life.attach, _stopping, False),
    (_stopping, Life.stop, _stopping, False),
    (_stopping, Life.fade, _stopping, False),
    (_stopping, Life.vanish, _gone, False),
    (_gone, Life.stop, _gone, False),
    (_gone, Life.vanish, _gone, False),
    (_gone, Life.fade, _gone, False),
)


def _output(state: str, dies: bool) -> Callable[[Life, Record, str], None]:
    def output(life: Life, record: Record, text: str) -> None:
        record.state = state
        record.died = record.died or dies
        record.tell(text)

    return output


for _from, _event, _to, _dies in TRANSITIONS:
    _from.upon(_event).to(_to)(_output(_to.name, _dies))
for _state in (_requested, _launching, _pending, _running, _attached, _stopping, _gone):
    _state.upon(Life.report).to(_state)(_output(_state.name, False))

_machine = _builder.build()


def new_life(record: Record) -> Life:
    """A life at its beginning.

    What cannot happen in a state raises ``automat.NoTransition``: it would be a mistake of this package's.

    :param record: keeps what is known of it.
    """
    return _machine(record)
