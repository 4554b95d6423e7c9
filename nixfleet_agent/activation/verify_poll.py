"""Watches a fired switch until the target runs and its script has ended, or it is plain that this won't be."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.activation import host, script_words
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import PhaseFailed
from nixfleet_agent.activation.model import EXIT_THIRD_CLOSURE, EXIT_UNKNOWN
from nixfleet_agent.activation.records import Record
from nixfleet_agent.activation.switches import Status, Switches

#: How much of the script's last words is reported.
TAIL_BYTES = 4096
#: All that is kept of a script's words: the status of each failed unit comes after their names, in any length.
_ALL_BYTES = 8 * 1024 * 1024


#: What a script ends with when its work is done; after 4 some units did not start. Anything else after the flip means a
#: host that is half switched: units are stopped before it and started after it.
DONE = frozenset({0, 4})


@dataclass(frozen=True, slots=True)
class Ended:
    """The target is current and its switch has ended with ``exit_code``; ``killed``: before it could say how."""

    observed: str
    exit_code: int
    failed_units: tuple[str, ...]
    killed: bool = False

    @property
    def complete(self) -> bool:
        """Whether the script came to its end, so that every unit has been seen to."""
        return self.exit_code in DONE


@dataclass(frozen=True, slots=True)
class Watched:
    """A fired switch to follow. ``expected`` are closures that may run meanwhile; any other one is a third.

    ``fired_at`` is the monotonic time from which the budget counts; ``watch`` is called each turn and may raise.
    """

    record: Record
    target: str
    expected: Collection[str | None]
    fired_at: float
    watch: Callable[[], None]


def follow(context: Context, switches: Switches, watched: Watched) -> Ended:
    """Poll ``current_system`` and the record until both agree.

    Raises:
        PhaseFailed: ``switch`` with the script's exit code and last words, ``third-closure`` (-3),
            ``switch-no-flip``, ``no-current-system``, ``switch-lost``, ``switch-poll-timeout`` or
            ``switch-settle-timeout``.
        PhaseInterrupted: shutdown; the switch goes on.
    """
    config = context.config
    flipped_at: float | None = None
    while True:
        watched.watch()
        # The record first: once it has ended, the link is what the switch has left.
        status = switches.status(watched.record)
        current = host.read_current(config)
        now = context.clock.monotonic()
        if current == watched.target:
            if status is not Status.RUNNING:
                return _ended(watched.record, current, status)
            flipped_at = now if flipped_at is None else flipped_at
            if now - flipped_at >= config.settle_budget_secs:
                raise _over(watched, "switch-settle-timeout", config.settle_budget_secs, "its switch still runs")
        else:
            same_boot = _same_boot(watched.record, switches)
            if current is not None:
                _judge(watched, status, current, same_boot=same_boot)
            elif status is not Status.RUNNING and same_boot:
                raise _nothing_current(watched.record, config.current_system)
            if now - watched.fired_at >= config.poll_budget_secs:
                raise _over(
                    watched, "switch-poll-timeout", config.poll_budget_secs, f"{current or 'no link'} is current"
                )
        context.pause(config.poll_interval_secs, fired=True)


def follow_script(context: Context, switches: Switches, record: Record, phase: str) -> None:
    """Wait for the end of a script that does not flip anything (``boot``).

    Raises:
        PhaseFailed: it failed, or did not end within the settle budget; ``phase`` names it.
        PhaseInterrupted: shutdown; the script goes on.
    """
    budget = context.config.settle_budget_secs
    deadline = context.clock.monotonic() + budget
    while (status := switches.status(record)) is Status.RUNNING:
        if context.clock.monotonic() >= deadline:
            raise PhaseFailed(phase, f"still running after {budget:g} s\n{record.output(TAIL_BYTES)}")
        context.pause(min(context.config.poll_interval_secs, 0.25), fired=True)
    if status is not Status.ENDED or record.exit_code != 0:
        raise PhaseFailed(phase, last_words(record), _code(record))


def last_words(record: Record) -> str:
    """What a script that has ended said last, and how it ended where its words don't tell."""
    said, code = record.output(TAIL_BYTES), record.exit_code
    if code is None:
        return f"{said.rstrip()}\nit was killed, or lost with the machine, before it could record its end".lstrip()
    return said if said.strip() else f"the script ended with {code} and said nothing"


def _judge(watched: Watched, status: Status, current: str, *, same_boot: bool) -> None:
    """Raise when waiting longer can't make the target current."""
    if current not in watched.expected:
        raise PhaseFailed(
            "third-closure",
            f"{current} is current, neither {watched.target} nor what ran before",
            EXIT_THIRD_CLOSURE,
            current,
        )
    if status is Status.LOST or (status is Status.ENDED and watched.record.exit_code != 0):
        raise PhaseFailed("switch", last_words(watched.record), _code(watched.record), current)
    if status is Status.ENDED and same_boot:
        said = f"the script has succeeded, and {current} is still current\n{watched.record.output(TAIL_BYTES)}"
        raise PhaseFailed("switch-no-flip", said.strip(), observed=current)
    if status is Status.ENDED:
        raise PhaseFailed(
            "switch-lost", f"the switch had succeeded, but the host came up with {current}", observed=current
        )


def _ended(record: Record, current: str, status: Status) -> Ended:
    if status is Status.ENDED:
        code = _code(record)
        return Ended(current, code, script_words.failed_units(record.output(_ALL_BYTES)) if code else ())
    return Ended(current, EXIT_UNKNOWN, (), killed=True)


def _nothing_current(record: Record, link: Path) -> PhaseFailed:
    """The switch is over and nothing will bring the link any more."""
    said = f"the switch has ended, and {link} names no system\n{record.output(TAIL_BYTES)}"
    return PhaseFailed("no-current-system", said.strip(), _code(record))


def _over(watched: Watched, phase: str, budget: float, what: str) -> PhaseFailed:
    said = watched.record.output(TAIL_BYTES)
    return PhaseFailed(phase, f"{watched.target} after {budget:g} s: {what}\n{said}".strip())


def _same_boot(record: Record, switches: Switches) -> bool:
    return host.same_boot(record.intent.boot, switches.boot)


def _code(record: Record) -> int:
    code = record.exit_code
    return EXIT_UNKNOWN if code is None else code
