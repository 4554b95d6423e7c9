"""Old bugs put back one by one: what a session of seeds has to find, and how soon it does.

``python -m tests.simulation --mutants`` prints the table. A bug stands for a rule that was once missing: the patch
takes the rule away, as the code was before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.activation import forward
from nixfleet_agent.activation.records import Record
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.delivery import Disposition
from nixfleet_agent.net import client
from nixfleet_agent.net.verdict import Verdict
from nixfleet_agent.runtime.rollout import decisions
from nixfleet_agent.runtime.rollout.event_writer import RetryingEventWriter
from nixfleet_agent.runtime.rollout.replays import Replays
from nixfleet_agent.runtime.workers import outbound
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.trust import verify
from tests.adversary.holes import HOLES
from tests.simulation.plan import draw
from tests.simulation.run import run

Patch = Callable[[], AbstractContextManager[Any]]
#: How long one may stay hidden, in seconds.
LIMIT_SECS = 300.0


def _patch(where: object, name: str, new: object) -> Patch:
    return lambda: mock.patch.object(where, name, new)


def _acts_before_it_is_durable() -> AbstractContextManager[Any]:
    """An event that the disk refuses is dropped, and acted on all the same."""

    def write(self: RetryingEventWriter, entry: Any, event: Any) -> bool:
        try:
            self._journal.append(entry)
        except StorageError:
            return True
        return True

    return mock.patch.object(RetryingEventWriter, "write", write)


@contextmanager
def _no_sync() -> Iterator[None]:
    """What is written is whole, and may be gone after a power cut."""
    real = durable.write

    def write(path: Any, data: bytes, mode: int = 0o600, *, sync: bool = True, replace: bool = True) -> None:
        real(path, data, mode, sync=False, replace=replace)

    with mock.patch.object(durable, "write", write):
        yield


@contextmanager
def _whoever_answers_is_the_control_plane() -> Iterator[None]:
    def classify(status: int, headers: Any, body: bytes, *, signed: bool = False) -> Verdict:
        return Verdict.ANSWER if status < 400 else Verdict.ERROR

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(client, "classify", classify))
        yield


def _any_refusal_is_a_verdict() -> AbstractContextManager[Any]:
    def disposition(status: int, **known: Any) -> Disposition:
        if 200 <= status < 300:
            return Disposition.DELIVERED
        return Disposition.RETRY if status >= 500 or status in (408, 409, 425, 429) else Disposition.REFUSED

    return mock.patch.object(outbound, "disposition", disposition)


def _a_release_replaces_a_rollback() -> AbstractContextManager[Any]:
    real = Mailbox.put
    return mock.patch.object(Mailbox, "put", lambda self, order, *, replace=False: real(self, order, replace=True))


def _forgets_what_it_owed() -> AbstractContextManager[Any]:
    """After a restart only a rollout that still activates goes on."""
    resume = decisions.Turn.resume

    def of_old(turn: Any) -> Any:
        active = turn.host.active
        if active is None or active.record.state is State.FAILED:
            return None
        return resume(turn)

    return mock.patch.object(decisions.Turn, "resume", of_old)


def _started_is_what_ended() -> AbstractContextManager[Any]:
    """A switch whose record has no end has ended well."""
    real = Record.exit_code.fget  # type: ignore[attr-defined]
    return mock.patch.object(
        Record, "exit_code", property(lambda self: (real(self) or 0) if self.started is not None else None)
    )


@dataclass(frozen=True, slots=True)
class Mutant:
    """``what`` went wrong, in a few words; ``patch`` puts it back."""

    what: str
    patch: Patch


MUTANTS = (
    Mutant(
        "a deferred release that boots first is a third closure to its successor",
        _patch(forward.ForwardRun, "_left_by_ours", lambda self: ()),
    ),
    Mutant("an event that the disk refuses is acted on", _acts_before_it_is_durable),
    Mutant("what is written is not synced", _no_sync),
    Mutant("whoever answers 2xx is the control plane", _whoever_answers_is_the_control_plane),
    Mutant("any 4xx is the control plane's verdict on an event", _any_refusal_is_a_verdict),
    Mutant("what the control plane forgot is not sent again", _patch(Replays, "run", lambda self, item: None)),
    Mutant("a failed release is forgotten at a restart", _forgets_what_it_owed),
    Mutant("a switch that was killed has ended well", _started_is_what_ended),
    Mutant("an older release is accepted again", _patch(verify, "check_fresh_fleet", lambda *a, **k: None)),
    Mutant("a forward order replaces a rollback that waits", _a_release_replaces_a_rollback),
    *(Mutant(name, hole.rule_of_old) for name, hole in HOLES.items()),
)


@dataclass(frozen=True, slots=True)
class Found:
    """How a mutant was found: at which seed, after how many seconds of one core, and by which broken promise."""

    what: str
    seed: int | None
    seconds: float
    violation: str


def hunt(number: int, first: int = 0) -> Found:
    """Run seeds from ``first`` on against one mutant until a promise breaks or the time is over."""
    mutant = MUTANTS[number]
    began, seed = time.process_time(), first
    with mutant.patch():
        while time.process_time() - began < LIMIT_SECS:
            violation = run(draw(seed)).violation
            if violation:
                return Found(mutant.what, seed, time.process_time() - began, violation)
            seed += 1
    return Found(mutant.what, None, time.process_time() - began, "")
