"""How the difference of two closures is shown: for people, and as JSON."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.activation.dry_run import DryRun
from nixfleet_agent.activation.packages import ClosureDiff, PackageChange
from nixfleet_agent.commands.invocation import BOLD, GREEN, RED, YELLOW, Invocation
from nixfleet_agent.text import byte_delta, byte_size


def show(call: Invocation, rollout_id: str | None, diff: ClosureDiff, dry: DryRun | None, unknown: str | None) -> None:
    """Print it; ``unknown`` is why nothing is known of the units, where that is so."""
    call.print(f"{'running':<10} {diff.running}", BOLD)
    call.print(f"{'coming':<10} {diff.coming}" + (f" ({rollout_id})" if rollout_id else ""), BOLD)
    if diff.running == diff.coming:
        call.print("it runs already: nothing would change.")
        return
    size = f"{byte_size(diff.size_before)} -> {byte_size(diff.size_after)} ({byte_delta(diff.size_delta)})"
    call.print(f"{'size':<10} {size}; {diff.paths_after} paths, {diff.paths_new} of them new")
    rows = [
        *(("changed", *_row(change)) for change in diff.changed),
        *(("added", *_row(change)) for change in diff.added),
        *(("removed", *_row(change)) for change in diff.removed),
        *(("resized", *_row(change)) for change in diff.resized),
    ]
    call.print()
    if rows:
        call.table(("PACKAGE", "NAME", "BEFORE", "AFTER", "SIZE"), rows)
    else:
        call.print("no package comes, goes, or has another version or size.")
    call.print()
    _show_units(call, dry, unknown)


def as_json(rollout_id: str | None, diff: ClosureDiff, dry: DryRun | None, unknown: str | None) -> dict[str, Any]:
    """The same for scripts. ``units`` is null where nothing is known of them; ``units_unknown`` says why."""
    return {
        "rollout_id": rollout_id,
        **diff.to_json(),
        "size_delta": diff.size_delta,
        "units": None if dry is None else dry.units.to_json(),
        "units_unknown": unknown,
        "refused_by": None if dry is None else dry.refused,
        "takes_reboot": None if dry is None else dry.next_boot,
    }


def _show_units(call: Invocation, dry: DryRun | None, unknown: str | None) -> None:
    if dry is None:
        call.print(f"units: not known: {unknown}", YELLOW)
        return
    if dry.refused is not None:
        call.print(f"its pre-switch check {dry.refused!r} would turn a live switch away", RED)
    elif dry.next_boot:
        call.print("it takes effect at the next boot alone: no unit would be touched", YELLOW)
    elif dry.units.nothing:
        call.print("no unit would be stopped, started, restarted or reloaded.", GREEN)
    for what, names in dry.units.rows:
        call.print(f"{what:<14} {', '.join(names)}")


def _row(change: PackageChange) -> tuple[str, str, str, str]:
    return change.name, _versions(change.before), _versions(change.after), byte_delta(change.size_delta)


def _versions(versions: tuple[str, ...]) -> str:
    """A path without a version is shown as Nix shows it; a column with nothing in it stays empty."""
    return ", ".join(version or "ε" for version in versions)
