"""What a switch changed, in short: kept beside its record, so that it can be told when the store has forgotten it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nixfleet_agent import durable
from nixfleet_agent.activation.closure_query import NotInStoreError, difference
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.packages import ClosureDiff, PackageChange, split_name
from nixfleet_agent.activation.records import BOOT, FORWARD, Record, Records
from nixfleet_agent.activation.unit_words import UnitChanges, unit_changes
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.text import byte_delta, clip

FILE = "changes.json"
#: Kept of each list; a system has some hundred packages that change at once.
_KEPT = 50
_WORD_BYTES = 300
#: Named in one line; the rest is counted.
_NAMED = 4
#: All of an output that is looked through for units, and of a file of ours.
_OUTPUT_BYTES = 3 * 1024 * 1024
_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Changes:
    """``packages`` are the first of ``packages_total`` that changed, came or went, as ``nginx 1.26 -> 1.27``.

    ``size_delta`` is bytes. Of units the first of each list are kept; those that were stopped and started again are
    ``restarted``.
    """

    packages: tuple[str, ...]
    packages_total: int
    size_delta: int
    restarted: tuple[str, ...]
    stopped: tuple[str, ...]
    started: tuple[str, ...]
    reloaded: tuple[str, ...]

    @property
    def words(self) -> str:
        """One line for people: ``nginx 1.26 -> 1.27, 2 more, +1.2 MiB; restarts nginx.service``."""
        packages = [*self.packages[:_NAMED]]
        if (more := self.packages_total - len(packages)) > 0:
            packages.append(f"{more} more")
        if size := byte_delta(self.size_delta):
            packages.append(size)
        parts = [", ".join(packages) or "no package"]
        units = (
            ("restarts", self.restarted),
            ("stops", self.stopped),
            ("starts", self.started),
            ("reloads", self.reloaded),
        )
        parts += [f"{verb} {_some(names)}" for verb, names in units if names]
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def changes_of(diff: ClosureDiff, units: UnitChanges) -> Changes:
    """The short form; pure. That the system itself is another one is no news."""
    systems = {split_name(diff.running)[0], split_name(diff.coming)[0]}
    others = [change for change in (*diff.added, *diff.removed) if change.name not in systems]
    packages = [_package(change) for change in (*diff.changed, *others)]
    both = [unit for unit in units.stop if unit in units.start]
    return Changes(
        packages=_first(packages),
        packages_total=len(packages),
        size_delta=diff.size_delta,
        restarted=_first([*both, *units.restart]),
        stopped=_first([unit for unit in units.stop if unit not in both]),
        started=_first([unit for unit in units.start if unit not in both]),
        reloaded=_first(units.reload),
    )


def read(record: Record) -> Changes | None:
    """What was kept of a switch; None where nothing was, or it can't be read."""
    try:
        with (record.path / FILE).open("rb") as stream:
            fields = loads_strict(stream.read(_FILE_BYTES), limit=_FILE_BYTES)
        lists = {name: tuple(map(str, fields[name])) for name in Changes.__slots__ if isinstance(fields[name], list)}
        return Changes(packages_total=int(fields["packages_total"]), size_delta=int(fields["size_delta"]), **lists)
    except (OSError, ProtoError, ValueError, KeyError, TypeError):
        return None


def of_rollout(records: Records, rollout_id: str) -> Changes | None:
    """What the last switch of a rollout, live or for the next boot, changed."""
    for record in reversed(records.all()):
        if record.intent.rollout_id == rollout_id and (found := read(record)) is not None:
            return found
    return None


def keep(context: Context, records: Records) -> None:
    """Write it for each switch that has ended and has none yet, while the store still has both closures.

    Raises:
        CommandError: Nix could not tell; another call tries again.
        PhaseInterrupted: there is something better to do; the same.
        StorageError: the disk refused; the same.
    """
    for record in _untold(records):
        running = record.intent.running
        assert running is not None
        try:
            diff = difference(context, running, record.intent.target)
            value = changes_of(diff, unit_changes(record.output(_OUTPUT_BYTES))).to_json()
        except NotInStoreError as error:
            context.log.debug("what a switch changed is not known: %s", error)
            value = {}  # and never will be
        durable.write(record.path / FILE, json.dumps(value).encode() + b"\n")


def _untold(records: Records) -> Iterator[Record]:
    for record in records.all():
        if record.intent.direction not in (FORWARD, BOOT) or record.intent.running is None:
            continue
        if record.exit_code is not None and not record.refused and not (record.path / FILE).exists():
            yield record


def _package(change: PackageChange) -> str:
    before, after = (", ".join(version or "ε" for version in side) for side in (change.before, change.after))
    if before and after:
        return f"{change.name} {before} -> {after}"
    return f"+{change.name} {after}" if after else f"-{change.name} {before}"


def _first(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(clip(word, _WORD_BYTES) for word in words[:_KEPT])


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
