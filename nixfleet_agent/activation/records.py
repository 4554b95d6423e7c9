"""The switch records: one folder per switch under ``{state_dir}/switch``, shared with a script that outlives us.

The agent prepares a record and fires; ``scripts/wrapper.sh`` fills it in. ``started`` is made by link(2), from
the wrapper when it begins or from the agent when it takes the record back: whoever comes first decides, so a
switch either has started or never will, even when the agent was killed in the middle of firing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.activation import host, script_words
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.text import clip_tail

FORWARD, BOOT, ROLLBACK, GUARD = "forward", "boot", "rollback", "guard"
#: The systemd units of switches, and of each direction; forward and boot share one, for they never run together.
SWITCH_UNITS = ("nixfleet-switch", "nixfleet-rollback")
UNITS = {FORWARD: "nixfleet-switch", BOOT: "nixfleet-switch", ROLLBACK: "nixfleet-rollback", GUARD: "nixfleet-guard"}

#: The action of a guard that waits for the release's own agent to be ready, instead of for the end of a switch; and the
#: file of its record that says how it is armed.
HAND_OVER = "hand-over"

_INTENT = "intent.json"
_WITHDRAWN = "withdrawn"
_ADOPTED = "adopted"
_PIPE = "pipe"
#: Files that the wrapper writes into in place and then renames, so that a full disk can't lose them.
_RESERVED = ("waiting", "started", "exit", "drained")
_RESERVE_BYTES = 256
_NAME = re.compile(r"(\d{6,})-(forward|boot|rollback|guard)-(.+)")
#: What a script says, oldest first.
OUTPUTS = ("output.2", "output.1", "output")
#: Records kept for an operator to read; those of switches that still run are always kept.
_KEPT = 20
_WORDS_BYTES = 4096
#: Of a script whose system takes effect at the next boot alone; it has written the boot entry.
EXIT_NEXT_BOOT = 100
#: What it ends with only after the bootloader step: all is well, the activation, systemd's reload or a unit failed.
_AFTER_THE_ENTRY = frozenset({0, 2, 3, 4, EXIT_NEXT_BOOT})


@dataclass(frozen=True, slots=True)
class Intent:
    """What a record was prepared for. ``running`` is what ran then; ``fired_at`` is monotonic time of boot ``boot``."""

    rollout_id: str
    direction: str
    target: str
    action: str
    method: str
    unit: str
    running: str | None
    boot: str
    fired_at: float
    created_at: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who runs (or waits to run) a record: a process, by its start time no other one of the boot in the intent."""

    pid: int
    group: int
    start: str


@dataclass(frozen=True, slots=True)
class Record:
    """One folder; everything is read from disk at the moment it is asked for."""

    number: int
    path: Path
    intent: Intent

    @property
    def started(self) -> Identity | None:
        """Who runs or ran it; None when it has not started, or never will."""
        return _identity(self.path / "started")

    @property
    def waiting(self) -> Identity | None:
        """Who waits to run it."""
        return _identity(self.path / "waiting")

    @property
    def exit_code(self) -> int | None:
        """The exit code, when it has ended and could tell."""
        line = _first_line(self.path / "exit")
        return int(line) if line is not None and line.isdigit() else None

    @property
    def lock_refused(self) -> bool:
        """It ended because another switch held the lock: nothing was changed."""
        return self.exit_code not in {None, 0} and script_words.lock_refused(self.output(_WORDS_BYTES))

    @property
    def check_refused(self) -> bool:
        """A pre-switch check has turned it away: nothing was changed."""
        return self.exit_code not in {None, 0} and script_words.refused_by(self.output(_WORDS_BYTES)) is not None

    @property
    def refused(self) -> bool:
        """It ended before anything was changed: the lock or a check turned it away."""
        return self.lock_refused or self.check_refused

    @property
    def live_changed(self) -> bool:
        """It has started, and may have touched a unit."""
        if self.started is None or self.exit_code == EXIT_NEXT_BOOT:
            return False
        return not self.refused

    @property
    def wrote_entry(self) -> bool:
        """What boots next is its target: the entry comes before everything that may fail later."""
        return self.intent.action != "test" and self.exit_code in _AFTER_THE_ENTRY

    @property
    def rollouts(self) -> tuple[str, ...]:
        """Those whose forward switch it is."""
        own = (self.intent.rollout_id,) if self.intent.direction == FORWARD else ()
        direction, _, heir = (_first_line(self.path / _ADOPTED) or "").partition(" ")
        return (*own, heir) if direction == FORWARD and heir else own

    def serves(self, rollout_id: str, direction: str) -> bool:
        """Whether it is that rollout's switch in that direction: fired for it, or adopted by it while it ran."""
        if (self.intent.rollout_id, self.intent.direction) == (rollout_id, direction):
            return True
        return _first_line(self.path / _ADOPTED) == f"{direction} {rollout_id}"

    def adopt(self, rollout_id: str, direction: str) -> None:
        """Make it that rollout's too, so that its failure leaves units to put back (raises StorageError)."""
        if not self.serves(rollout_id, direction):
            durable.write(self.path / _ADOPTED, f"{direction} {rollout_id}\n".encode())

    def output(self, limit: int) -> str:
        """The last ``limit`` bytes of what the script said, as text."""
        raw = b"".join(_tail(self.path / name, limit) for name in OUTPUTS)
        return clip_tail(raw, limit)

    def withdraw(self) -> bool:
        """Make sure that it never starts; False when it has started.

        Raises:
            StorageError: the file system refused to say.
        """
        try:
            os.link(self.path / f"{_WITHDRAWN}.next", self.path / "started")
        except FileExistsError:
            return self.started is None
        except OSError as error:
            raise StorageError(f"can't withdraw {self.path}: {error.strerror}", error.errno) from error
        return True


class Records:
    """The folder of all records, and the scripts that it needs when agent and Python are gone."""

    def __init__(self, state_dir: Path, boot: str) -> None:
        self.folder = state_dir.absolute() / "switch"
        self.boot = boot

    def same_boot(self, record: Record) -> bool:
        """Whether the record was prepared since the machine came up."""
        return host.same_boot(record.intent.boot, self.boot)

    def all(self) -> list[Record]:
        """Every readable record, oldest first; a folder that was being prepared when we died is none."""
        found = []
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        for name in names:
            if (match := _NAME.fullmatch(name)) and (intent := _read_intent(self.folder / name)):
                found.append(Record(int(match[1]), self.folder / name, intent))
        return sorted(found, key=lambda record: record.number)

    def of(self, rollout_id: str, direction: str) -> list[Record]:
        """The records that serve one rollout in one direction, oldest first."""
        return [record for record in self.all() if record.serves(rollout_id, direction)]

    def armed_guards(self) -> list[Record]:
        """The guards that wait to act, oldest first."""
        return [r for r in self.all() if r.intent.direction == GUARD and r.started is None and self.same_boot(r)]

    def prepare(self, intent: Intent) -> Record:
        """A new record, durable, ready for the wrapper.

        Raises:
            StorageError: the disk refused; nothing must be fired.
        """
        number = 1 + max((int(m[1]) for m in map(_NAME.fullmatch, self._names()) if m), default=0)
        path = self.folder / f"{number:06}-{intent.direction}-{file_part(intent.rollout_id)}"
        durable.make_directory(path)
        try:
            for name in _RESERVED:
                durable.fill(path / f"{name}.next", b" " * (_RESERVE_BYTES - 1) + b"\n")
            durable.fill(path / f"{_WITHDRAWN}.next", _WITHDRAWN.encode() + b"\n")
            os.mkfifo(path / _PIPE, 0o600)
            durable.write(path / _INTENT, json.dumps(asdict(intent), indent=1).encode() + b"\n")
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise StorageError(f"can't prepare {path}: {error.strerror}", error.errno) from error
        return Record(number, path, intent)

    def remove(self, record: Record) -> None:
        """Forget a record; one that can't be removed is no harm, for it is withdrawn or has ended."""
        shutil.rmtree(record.path, ignore_errors=True)

    def prune(self, running: Record | None) -> None:
        """Keep the newest records, and the one that runs."""
        for record in self.all()[:-_KEPT]:
            if running is None or record.number != running.number:
                self.remove(record)

    def note_failure(self, rollout_id: str, observed: str | None) -> None:
        """Remember what ran when the rollout failed, so that a rollback after a restart can tell an operator's switch.

        Raises:
            StorageError: the disk refused.
        """
        durable.make_directory(self.folder)
        durable.write(self._failure(rollout_id), json.dumps({"observed": observed}).encode() + b"\n")

    def observed_at_failure(self, rollout_id: str) -> str | None:
        """What ``note_failure`` was told, or None."""
        try:
            noted = loads_strict(self._failure(rollout_id).read_bytes())
        except (OSError, ProtoError):
            return None
        observed = noted.get("observed") if isinstance(noted, dict) else None
        return observed if isinstance(observed, str) else None

    def forget_failure(self, rollout_id: str) -> None:
        """Drop the note (raises StorageError)."""
        durable.remove(self._failure(rollout_id))

    def _failure(self, rollout_id: str) -> Path:
        return self.folder / f"failed-{file_part(rollout_id)}.json"

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []


def left_by(records: list[Record]) -> tuple[str | None, ...]:
    """Each closure that may run after these, oldest first, with nobody else's doing.

    One that only wrote the boot entry leaves its target with the next boot; what was refused since has changed nothing
    of that.
    """
    left: list[str | None] = []
    for record in reversed(records):
        if record.intent.direction == GUARD or not record.started:
            continue
        left += (record.intent.target, record.intent.running)
        if record.live_changed or record.wrote_entry:
            break
    return tuple(left)


def fired_rollouts(state_dir: Path, boot: str) -> frozenset[str]:
    """The rollouts of which a forward switch has started, but for those that another's lock turned away."""
    started = [r for r in Records(state_dir, boot).all() if r.started is not None and not r.lock_refused]
    return frozenset(rollout_id for record in started for rollout_id in record.rollouts)


def awaits_successor(records: Records) -> str | None:
    """The rollout whose guard waits, in this boot, for the release's own agent to be ready."""
    waiting = [record for record in records.armed_guards() if record.intent.action == HAND_OVER]
    return waiting[-1].intent.rollout_id if waiting else None


def taken_back(state_dir: Path, boot: str) -> dict[str, str]:
    """The rollouts whose guard has acted, with what it said first (one line)."""
    acted = [r for r in Records(state_dir, boot).all() if r.intent.direction == GUARD and r.started is not None]
    return {record.intent.rollout_id: _guard_words(record) for record in acted}


def _guard_words(record: Record) -> str:
    said = record.output(_WORDS_BYTES).strip().partition("\n")[0]
    return f"the guard has taken the host back to {record.intent.target}{f': {said}' if said else ''}"


def _read_intent(path: Path) -> Intent | None:
    try:
        fields = loads_strict((path / _INTENT).read_bytes())
        # A newer version may have added fields: ours are all that we need.
        return Intent(**{name: fields[name] for name in Intent.__slots__})
    except (OSError, ProtoError, KeyError, TypeError):
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_bytes()[:_RESERVE_BYTES].decode("utf-8", "replace").partition("\n")[0].strip()
    except OSError:
        return None


def _identity(path: Path) -> Identity | None:
    line = _first_line(path)
    if line is None or not line.startswith("pid="):
        return None
    fields = dict(part.partition("=")[::2] for part in line.split())
    try:
        return Identity(int(fields["pid"]), int(fields["group"]), fields["start"])
    except (KeyError, ValueError):
        return None


def _tail(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
            return stream.read(limit)
    except OSError:
        return b""
