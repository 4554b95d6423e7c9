"""Whether a switch could begin: all that can be known of it before its turn, in one place. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nixfleet_agent.activation import boot_space, host, inhibitors, nix, script_words, way_back
from nixfleet_agent.activation.backends.base import Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.dry_run import DryRun, NotAskedError, dry_activate
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.model import Forward
from nixfleet_agent.activation.records import EXIT_NEXT_BOOT
from nixfleet_agent.text import clip_tail

#: What an obstacle was found by.
SCRIPT, WAY_BACK, INHIBITORS, BOOT_SPACE, DRY_RUN = "script", "way-back", "inhibitors", "boot-space", "dry-run"

_WORDS_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing in the way of a switch: the check that found it (``what``), and the finding for people.

    ``blocks``: the rollout would fail. Else it begins, and takes a reboot, waits, or goes without a way back.
    """

    what: str
    text: str
    blocks: bool


@dataclass(frozen=True, slots=True)
class Readiness:
    """What was found for one closure; ``dry_run`` is None where it was not reached or the platform has none."""

    closure: str
    obstacles: tuple[Obstacle, ...]
    dry_run: DryRun | None

    @property
    def ready(self) -> bool:
        """Whether a switch would begin; it may still take a reboot."""
        return not any(obstacle.blocks for obstacle in self.obstacles)


def inspect(context: Context, backend: Backend, intent: Forward) -> Readiness:
    """Every check of a switch to ``intent.target``, which must be in the store.

    Raises:
        PhaseInterrupted: the context says that it is time to leave.
    """
    found = [*_script(context, backend, intent), *_way_back(context, backend, intent)]
    if any(obstacle.what == SCRIPT for obstacle in found):
        return Readiness(intent.target, tuple(found), None)
    found += [*_inhibitors(context, intent), *_boot_space(context, intent)]
    dry_run: DryRun | None = None
    try:
        dry_run = dry_activate(context, backend, intent.target)
    except CommandError as error:
        found.append(Obstacle(DRY_RUN, str(error), not isinstance(error, NotAskedError)))
    inhibited = any(obstacle.what == INHIBITORS for obstacle in found)
    if dry_run is not None and (obstacle := judge(dry_run)) and not (inhibited and obstacle.what == INHIBITORS):
        found.append(obstacle)
    return Readiness(intent.target, tuple(found), dry_run)


def judge(dry_run: DryRun) -> Obstacle | None:
    """What a dry run's end means for the switch; None where nothing stands in its way."""
    if dry_run.exit_code == 0:
        return None
    if script_words.lock_refused(dry_run.output):
        return Obstacle(DRY_RUN, "another switch holds the lock", False)
    if components := script_words.inhibited_by(dry_run.output):
        return Obstacle(INHIBITORS, _reboot(inhibitors.Inhibition(components).component), False)
    if dry_run.exit_code == EXIT_NEXT_BOOT:
        return Obstacle(INHIBITORS, _reboot(inhibitors.INIT_INTERFACE), False)
    if (check := script_words.refused_by(dry_run.output)) is not None:
        return Obstacle(DRY_RUN, f"pre-switch check {check} refuses it: {_words(dry_run)}", True)
    return Obstacle(DRY_RUN, f"dry-activate ended with {dry_run.exit_code}: {_words(dry_run)}", True)


def _words(dry_run: DryRun) -> str:
    """The end of what it said, in one line: `why` and the log have no other."""
    last = clip_tail(dry_run.output.encode(), _WORDS_BYTES)
    return " / ".join(line.strip() for line in last.splitlines() if line.strip()) or "it said nothing"


def _script(context: Context, backend: Backend, intent: Forward) -> Iterator[Obstacle]:
    if (reason := way_back.script_missing(context, backend, intent.target)) is not None:
        yield Obstacle(SCRIPT, reason, True)


def _way_back(context: Context, backend: Backend, intent: Forward) -> Iterator[Obstacle]:
    if intent.prior is None:
        yield Obstacle(WAY_BACK, "nothing is known that ran here before", False)
    prior = intent.way_back
    if prior is None:
        return
    try:
        reason = None if nix.is_valid(context, prior) else "it is not in the store"
    except CommandError as error:
        reason = str(error)
    if reason := reason or way_back.script_missing(context, backend, prior):
        yield Obstacle(WAY_BACK, f"no way back to {prior}: {reason}", intent.takes_back)


def _inhibitors(context: Context, intent: Forward) -> Iterator[Obstacle]:
    try:
        found = inhibitors.between(context, host.read_current(context.config), intent.target)
    except PhaseFailed as failure:
        yield Obstacle(INHIBITORS, failure.tail, True)
        return
    if found is not None:
        yield Obstacle(INHIBITORS, _reboot(found.component), False)


def _boot_space(context: Context, intent: Forward) -> Iterator[Obstacle]:
    if (reason := boot_space.shortage(context.config.store_root, intent.target)) is not None:
        yield Obstacle(BOOT_SPACE, reason, True)


def _reboot(component: str) -> str:
    return f"it takes a reboot: {component} can't be replaced while the host runs"
