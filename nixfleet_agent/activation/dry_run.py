"""Asks a closure's own switch script what a switch to it would do, with ``dry-activate``, which changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.activation import host, script_words
from nixfleet_agent.activation.backends.base import Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.records import EXIT_NEXT_BOOT
from nixfleet_agent.activation.unit_words import UnitChanges, unit_changes

#: A dry run starts nothing; one that takes longer than this hangs.
DRY_RUN_SECS = 120.0
_FSTAB = "etc/fstab"
_FSTAB_BYTES = 1024 * 1024


class NotAskedError(CommandError):
    """To ask this script would change something: nothing is known of what it would do."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """How ``switch-to-configuration dry-activate`` ended, and the end of what it said (64 KiB of each output)."""

    exit_code: int
    output: str

    @property
    def units(self) -> UnitChanges:
        """What it would do to units."""
        return unit_changes(self.output)

    @property
    def refused(self) -> str | None:
        """The pre-switch check that would turn a switch away now."""
        return None if self.exit_code in {0, EXIT_NEXT_BOOT} else script_words.refused_by(self.output)

    @property
    def next_boot(self) -> bool:
        """The script finds that its system takes effect at the next boot alone."""
        return self.exit_code == EXIT_NEXT_BOOT or self.refused == script_words.INHIBITORS_CHECK

    @property
    def failure(self) -> str | None:
        """Why its words are no plan, for people; None where they are one."""
        if self.exit_code in {0, EXIT_NEXT_BOOT} or self.refused is not None:
            return None
        last = self.output.strip().rpartition("\n")[2]
        return f"dry-activate ended with {self.exit_code}: {last or 'it said nothing'}"


def dry_activate(context: Context, backend: Backend, closure: str) -> DryRun | None:
    """What the script of ``closure``, which is in the store, would do here; None where the platform has no dry run.

    Raises:
        NotAskedError: its script changes something even then.
        CommandError: it can't be run, or hangs.
        PhaseInterrupted: there is something better to do; the script has been ended.
    """
    command = backend.dry_run(host.on_disk(context.config.store_root, closure))
    if command is None:
        return None
    _refuse_swapoff(context, Path(command[0]), closure)
    done = context.run(command, timeout=DRY_RUN_SECS)
    return DryRun(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))


def _refuse_swapoff(context: Context, script: Path, coming: str) -> None:
    """The Perl script turns off swap devices that the coming system lacks even when it is only asked what it would do.

    Its test of the action is the wrong way round (``switch-to-configuration.pl``, up to the last one that NixOS had).
    """
    try:
        with script.open("rb") as stream:
            first = stream.readline(4096)
    except OSError as error:
        raise CommandError(f"can't read {script}: {error.strerror}") from error
    running = host.read_current(context.config)
    if running is None or not first.startswith(b"#!") or b"perl" not in first:
        return
    gone = sorted(_swaps(context, running) - _swaps(context, coming))
    if gone:
        what = f"the script of {coming} is one that turns swap off even in dry-activate"
        raise NotAskedError(f"{what}, and {', '.join(gone)} is not in its fstab: not run")


def _swaps(context: Context, closure: str) -> set[str]:
    """The swap devices in a closure's fstab; none where it has no such file."""
    root = context.config.store_root
    place = host.resolve(root, f"{host.store_path(closure)}/{_FSTAB}")
    if place is None:
        return set()
    try:
        with Path(root + place).open("rb") as stream:
            text = stream.read(_FSTAB_BYTES).decode("utf-8", "replace")
    except OSError:
        return set()
    fields = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return {field[0] for field in fields if len(field) > 2 and field[2] == "swap"}
