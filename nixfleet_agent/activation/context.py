"""What every step of the pipeline needs: configuration, time, how to wait, how to run a program, where to report."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.machine import SYSTEM_MACHINE, Machine
from nixfleet_agent.activation.model import Forward
from nixfleet_agent.activation.realise_progress import Progress
from nixfleet_agent.config.model import ActivationConfig
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.clock import Clock

SHUTDOWN = "shutdown"
SUPERSEDED = "superseded"

#: Given to the agent alone by its service manager: a child that used them would speak in the agent's name.
_OF_THE_UNIT = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
#: What a switch script takes for an operator's word, and no operator gave to this switch.
_OF_AN_OPERATOR = ("NIXOS_NO_CHECK", "NIXOS_ACTION", "NIXOS_LUSTRATE", "STC_DEBUG", "STC_DISPLAY_ALL_UNITS")
#: The agent's settings and its Python: a unit that a switch starts from its own environment must not inherit them.
_OF_THE_AGENT = re.compile("NIXFLEET_AGENT_.*|PYTHON.*|VIRTUAL_ENV.*|__PYVENV_LAUNCHER__")


def child_environment(environment: Mapping[str, str], store_root: str) -> dict[str, str]:
    """What Nix and switch scripts get: the agent's environment without what is meant for the agent alone.

    ``NIX_REMOTE`` names a store at ``store_root``.
    """
    left_out = {*_OF_THE_UNIT, *_OF_AN_OPERATOR}
    given = environment.items()
    child = {name: value for name, value in given if name not in left_out and not _OF_THE_AGENT.fullmatch(name)}
    if store_root:
        escaped = store_root.replace("%", "%25").replace("&", "%26").replace("#", "%23").replace(" ", "%20")
        child["NIX_REMOTE"] = f"local?root={escaped}"
    return child


def _no_report(name: str, seconds: float) -> None:
    """Nobody asked for the durations."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A step before the point of no return waits for what can pass; the next of its ``tries`` is ``seconds`` away."""

    closure: str
    kind: str
    reason: str
    tries: int
    seconds: float


def _no_wait(waiting: Waiting | None) -> None:
    """Nobody asked why it waits."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """How tries are spread, and who is told what is waited for (None: it is over).

    ``recheck_secs`` lie between two times that a refusal of this host's own programs is asked about.
    """

    backoff: Callable[[], Backoff] = lambda: Backoff(1.0, 60.0)
    on_wait: Callable[[Waiting | None], None] = _no_wait
    recheck_secs: float = 60.0


def _no_veto(intent: Forward, check: Callable[[], None]) -> str | None:
    """Nobody has to be asked before a switch."""
    return None


class RunningDownload(Protocol):
    """A download that another thread has begun: ``ended`` is set once its process is gone."""

    closure: str
    progress: Progress
    ended: threading.Event

    def abandon(self) -> None:
        """Nobody waits for it any longer; where it still runs, it ends."""


def _none_runs(closure: str) -> RunningDownload | None:
    """Nobody else downloads."""
    return None


@dataclass(frozen=True, slots=True)
class Context:
    """One pipeline's surroundings.

    ``interrupted`` says why the work in hand should be left (``shutdown``, ``superseded``) or None; ``wait``
    blocks for that many seconds, or until such a reason comes up. ``on_phase`` is told each step's name and the
    seconds that it took; ``base_environment`` is what children get, by default the agent's own. ``consent`` is asked
    before a live switch for the reason to wait, if there is one; its second argument may raise to end the asking.
    ``running_download`` is asked before a closure is fetched, and hands the download over that is under way already.
    """

    config: ActivationConfig
    state_dir: Path
    clock: Clock
    interrupted: Callable[[], str | None]
    wait: Callable[[float], None]
    log: logging.Logger
    on_phase: Callable[[str, float], None] = _no_report
    retrying: Retrying = Retrying()
    consent: Callable[[Forward, Callable[[], None]], str | None] = _no_veto
    running_download: Callable[[str], RunningDownload | None] = _none_runs
    base_environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    machine: Machine = SYSTEM_MACHINE

    @property
    def environment(self) -> dict[str, str]:
        """What children get."""
        return child_environment(self.base_environment, self.config.store_root)

    def check(self, *, fired: bool = False) -> None:
        """Raises PhaseInterrupted when it is time to leave; once a switch is ``fired`` only a shutdown is."""
        reason = self.interrupted()
        if reason == SHUTDOWN or (reason is not None and not fired):
            raise PhaseInterrupted(reason)

    def pause(self, seconds: float, *, fired: bool = False) -> None:
        """Let ``seconds`` pass. Raises PhaseInterrupted as ``check``, without waiting for their end."""
        self.check(fired=fired)
        if self.interrupted() is None:
            self.wait(seconds)
        else:
            self._wait_superseded(seconds)
        self.check(fired=fired)

    def _wait_superseded(self, seconds: float) -> None:
        """Sleep although a newer intent is waiting, which would cut every ``wait`` short and make the poll spin."""
        end = self.clock.monotonic() + seconds
        nothing = threading.Event()
        while (left := end - self.clock.monotonic()) > 0 and self.interrupted() != SHUTDOWN:
            self.clock.wait(nothing, min(left, processes.SLICE_SECS))

    def run(
        self,
        arguments: Sequence[str],
        *,
        timeout: float,
        check: Callable[[], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
        on_start: Callable[[int], None] | None = None,
    ) -> processes.Finished:
        """``Machine.run`` in the children's environment, interruptible unless another ``check`` is given."""
        return self.machine.run(
            arguments,
            self.environment,
            clock=self.clock,
            timeout=timeout,
            check=self.check if check is None else check,
            on_stderr=on_stderr,
            on_start=on_start,
        )

    def read(self, arguments: Sequence[str], *, timeout: float, limit: int) -> processes.Finished:
        """``processes.read`` in the children's environment, interruptible."""
        return processes.read(
            arguments, self.environment, clock=self.clock, timeout=timeout, check=self.check, limit=limit
        )

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report how long the block took, however it ends."""
        begin = self.clock.monotonic()
        try:
            yield
        finally:
            self.on_phase(name, self.clock.monotonic() - begin)
