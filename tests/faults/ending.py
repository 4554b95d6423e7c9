"""How a run ended, read from the host's disk and the control plane's log; and what two endings must have in common.

Compared exactly: what runs, what the profile and the boot entry name, each rollout's state (folded from the host's
journal, and the control plane's own), the order of its milestones, the calls of switch scripts. Not compared: how
often probes ran, and with them the seqs, for both depend on how long a run took; what they must satisfy is checked of
each run by itself in ``flaws``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from nixfleet_agent.durable import TEMPORARY_SUFFIX
from nixfleet_agent.journal.entries import parse_name
from nixfleet_agent.journal.folders import DROPPED, REJECTED, SENT
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.ids import file_part
from nixfleet_agent.runtime.rollout.recovery import recover
from tests.faults.invariants import Seen, broken
from tests.faults.processes import processes_of
from tests.faults.rig import HOSTNAME, Rig, rollout_id

STILL_PENDING = "a decided Dispatch is still on disk"
#: Events that are said exactly once, whatever happens; all others belong to probes.
MILESTONES = frozenset(
    {
        "DispatchAck",
        "ActivationStarted",
        "ActivationCompleted",
        "ActivationFailed",
        "ActivationDeferred",
        "Failed",
        "RollbackComplete",
        "Converged",
    }
)


@dataclass(frozen=True, slots=True)
class Ending:
    """What is compared between runs."""

    runs: str
    profile: str
    boots: str
    states: dict[str, str]
    mirrored: dict[str, str]
    active: str | None
    milestones: dict[str, tuple[str, ...]]
    switches: tuple[str, ...]
    roots: tuple[str, ...]

    def without(self, name: str | None) -> Ending:
        """Less one release, whose own end is not the point."""
        if name is None:
            return self
        key = rollout_id(name)
        return replace(
            self,
            states={k: v for k, v in self.states.items() if k != key},
            mirrored={k: v for k, v in self.mirrored.items() if k != key},
            milestones={k: v for k, v in self.milestones.items() if k != key},
            switches=tuple(line for line in self.switches if line != f"switch {name}"),
            roots=tuple(root for root in self.roots if not root.startswith(key)),
        )

    def differences(self, other: Ending, *, but: frozenset[str] = frozenset()) -> list[str]:
        """One line for each field, not named in ``but``, that differs."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name not in but]
        return [f"{name}: {there!r} instead of {here!r}" for name, here, there in pairs if here != there]


def ending(rig: Rig) -> Ending:
    """Of a run whose agent has stopped."""
    journal = Journal(rig.host.state_dir, HOSTNAME)
    journal.learn()
    host = recover(journal, rig.host.running(), 0.0)
    store, name = rig.control_plane.control.store, rig.world.name_of
    said = [line.split(" ", 1) for line in rig.host.switches()]
    roots = rig.host.state_dir / "gcroots"
    return Ending(
        runs=name(rig.host.running()),
        profile=name(rig.host.profile_closure()),
        boots=name(rig.host.bootloader.read_text().strip()),
        states={key: str(rollout.record.state) for key, rollout in sorted(host.rollouts.items())},
        mirrored={r.rollout_id: str(r.state) for r in store.records_of(HOSTNAME)},
        active=host.active_id,
        milestones={
            key: tuple(e["kind"] for e in store.events(HOSTNAME, key) if e["kind"] in MILESTONES)
            for key in sorted(host.rollouts)
        },
        switches=tuple(f"{action} {name(closure)}" for action, closure in said),
        roots=tuple(sorted(os.listdir(roots))) if roots.is_dir() else (),
    )


def flaws(rig: Rig) -> list[str]:
    """What is wrong with a finished run, whatever it is compared with."""
    return [
        *_of_the_log(rig),
        *rig.wire.changed(),
        *rig.control_plane.api.breaches,
        *_of_the_disk(rig),
        *_of_the_machine(rig),
        *_of_the_promises(rig),
    ]


def _of_the_log(rig: Rig) -> Iterator[str]:
    """The control plane has each event of the host's journal, the same, once, and took them in order."""
    store = rig.control_plane.control.store
    for record in store.records_of(HOSTNAME):
        key = record.rollout_id
        there = {event["seq"]: event for event in store.events(HOSTNAME, key)}
        here = journal_events(rig, key)
        if sorted(there) != list(range(1, len(there) + 1)):
            yield f"{key}: the control plane has seqs {sorted(there)}"
        for seq in sorted(there.keys() | here.keys()):
            if there.get(seq) != here.get(seq):
                yield f"{key} seq {seq}: control plane {there.get(seq)}, host {here.get(seq)}"
        arrived = list(dict.fromkeys(post.seq for post in rig.wire.posts if post.rollout_id == key))
        if arrived != sorted(arrived):
            yield f"{key}: first sent in the order {arrived}"
        yield from _of_probes([there[seq] for seq in sorted(there)], key)


def _of_probes(events: list[dict[str, Any]], key: str) -> Iterator[str]:
    """A topology comes before any result, results only of what it names, a first failure before its result."""
    declared: set[str] = set()
    for event in events:
        kind = event["kind"]
        if kind == "ActivationCompleted":
            declared = set()
        elif kind == "ProbeTopologyDeclared":
            declared = {probe["probeName"] for probe in event["probes"]}
        elif kind.startswith("Probe") and event["probeName"] not in declared:
            yield f"{key} seq {event['seq']}: {kind} of {event['probeName']}, which was not declared"


def _of_the_promises(rig: Rig) -> Iterator[str]:
    journal = Journal(rig.host.state_dir, HOSTNAME)
    journal.learn()
    host = recover(journal, rig.host.running(), 0.0)
    events = {key: [event for _, event in sorted(journal_events(rig, key).items())] for key in host.rollouts}
    identity = (rig.folder / "agent-cert.pem",)
    return broken(Seen(host, rig.host.running(), events, rig.boot > 1, identity))


def journal_events(rig: Rig, key: str) -> dict[int, dict[str, Any]]:
    """The events of one rollout on the host's disk, wherever they lie, by seq (without seq 0)."""
    state = rig.host.state_dir
    folders = [state / SENT / key, state / "outbound-queue", state / REJECTED, state / DROPPED]
    wanted = f"-{file_part(key)}-"
    paths = [path for folder in folders if folder.is_dir() for path in folder.glob("*.json") if wanted in path.name]
    entries = [json.loads(path.read_bytes()) for path in paths]
    return {entry["seq"]: entry["event"] for entry in entries if entry["seq"]}


def _is_sent_again(rig: Rig, file: str) -> bool:
    """Asked for once more just before the end: in the queue, and at the control plane already."""
    name = parse_name(file, HOSTNAME)
    if name is None or not (rig.host.state_dir / "outbound-queue" / file).exists():
        return False
    there = rig.control_plane.control.store.events(HOSTNAME, name.rollout_id)
    return name.seq in {event["seq"] for event in there}


def _of_the_disk(rig: Rig) -> Iterator[str]:
    if waiting := [name for name in rig.queued() if not _is_sent_again(rig, name)]:
        yield f"not delivered: {waiting}"
    for folder, _, names in os.walk(rig.host.state_dir):
        yield from (f"stray file {folder}/{name}" for name in names if name.endswith(TEMPORARY_SUFFIX))
    if (rig.host.state_dir / "pending-dispatch.json").exists():
        yield STILL_PENDING
    yield from (line for line in rig.host.switches() if line.startswith("undurable"))


def _of_the_machine(rig: Rig) -> Iterator[str]:
    left = processes_of(rig.folder)
    if left:
        yield f"left running: {left}"
    for line in rig.log_lines():
        message = str(line.get("message"))
        if "died:" in message or "Traceback" in message or "without being told" in message:
            yield f"in the log: {message} {str(line.get('exc_info', ''))[-600:]}"
