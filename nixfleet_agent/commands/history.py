"""``history [ROLLOUT]``: the log of a rollout as a timeline, its states replayed; and whether copies are genuine."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent import durable
from nixfleet_agent.activation.changes import Changes, of_rollout
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.records import Records
from nixfleet_agent.commands import journal_view
from nixfleet_agent.commands.audit import Verdict, audit, public_key
from nixfleet_agent.commands.files import InputFileError, read_input
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.journal_view import Replay, Step
from nixfleet_agent.commands.timeline_svg import draw
from nixfleet_agent.commands.times import length, local_time, utc_time
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_USAGE, AgentError, StorageError
from nixfleet_agent.hooks.ledger import HookOutput, outputs
from nixfleet_agent.identity.event_signer import EventSigner
from nixfleet_agent.identity.host_key import load_host_key
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.reboots.ledger import Asked, RebootLedger
from nixfleet_agent.threads.clock import SystemClock

#: Of a timeline: its time, how long after the acceptance, seq, event, state, where, details.
Row = tuple[object, ...]
_AUDIT_LIMIT = 64 * 1024 * 1024
#: Fields of events that a timeline has in columns of its own, or that say nothing to a person.
_COLUMNS = {"kind", "seq", "marks", "acceptance", "manifest", "fleet"}


class UnknownRolloutError(AgentError):
    """This host has no log of that rollout."""

    exit_code = EXIT_USAGE


def configure(parser: Parser) -> None:
    parser.details("A timeline, with the states of the rollout replayed.")
    parser.example(
        "nixfleet-agent history",
        "nixfleet-agent history --list",
        "nixfleet-agent history stable@def4567abc",
        "nixfleet-agent history --svg rollout.svg",
        "nixfleet-agent history --verify events.json",
        "nixfleet-agent history --verify events.json --public-key web-01.pub",
    )
    parser.add_argument("rollout", metavar="ROLLOUT", nargs="?", help="a rollout id, or how it begins; default: newest")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the rollout: states, probes, failure, way back")
    parser.add_argument("--list", action="store_true", help="one line for each rollout")
    parser.add_argument(
        "--verify",
        metavar="FILE",
        type=Path,
        help="events as the control plane has them (a JSON list of envelopes): were they signed by this host's key, "
        "does each follow the one before it, and are they what this host's log says?",
    )
    parser.add_argument(
        "--public-key",
        metavar="FILE",
        type=Path,
        help="with --verify, anywhere: the host's ssh_host_ed25519_key.pub instead of its key and its log",
    )
    parser.add_argument(
        "--envelopes", action="store_true", help="the rollout's events as they are sent, for --verify elsewhere"
    )


def run(call: Invocation) -> int:
    if call.options.public_key is not None:
        if call.options.verify is None:
            raise InputFileError("--public-key goes with --verify EVENTS")
        return _verify(call, public_key(call.options.public_key), [])
    replays = journal_view.rollouts(call.config.state_dir, call.config.machine_id)
    if call.options.verify is not None:
        raw = load_host_key(call.config.ssh_host_key_file).public_raw
        return _verify(call, Ed25519PublicKey.from_public_bytes(raw), replays)
    if call.options.envelopes:
        _envelopes(call, _chosen(replays, call.options.rollout))
        return EXIT_OK
    if call.options.list:
        _list(call, replays)
    elif call.options.svg is not None:
        _draw(call, _chosen(replays, call.options.rollout))
    else:
        show = _print_json if call.json else _timeline
        show(call, _chosen(replays, call.options.rollout))
    return EXIT_OK


def _draw(call: Invocation, replay: Replay) -> None:
    path = call.options.svg.absolute()
    durable.write(path, draw(replay, SystemClock().now()).encode(), mode=0o644)
    call.print(f"{replay.record.rollout_id} is drawn in {path}")


def _chosen(replays: list[Replay], wanted: str | None) -> Replay:
    if not replays:
        raise UnknownRolloutError("this host has accepted no rollout yet")
    if wanted is None:
        return replays[0]
    matching = [replay for replay in replays if replay.record.rollout_id.startswith(wanted)]
    exact = [replay for replay in matching if replay.record.rollout_id == wanted]
    if len(exact or matching) != 1:
        many = "several rollouts begin" if matching else "no rollout begins"
        raise UnknownRolloutError(f"{many} with {wanted!r}: see `nixfleet-agent history --list`")
    return (exact or matching)[0]


def _list(call: Invocation, replays: list[Replay]) -> None:
    rows = [
        {
            "rollout_id": replay.record.rollout_id,
            "state": str(replay.record.state),
            "accepted_at": format_time(replay.accepted.accepted_at),
            "target_closure": replay.record.target_closure,
            "events": len(replay.steps) - 1,
        }
        for replay in replays
    ]
    if call.json:
        call.print_json(rows)
    elif rows:
        call.table([name.upper() for name in rows[0]], [list(row.values()) for row in rows])
    else:
        call.print("this host has accepted no rollout yet.")


def _print_json(call: Invocation, replay: Replay) -> None:
    changed = _changes(call, replay.record.rollout_id)
    call.print_json(
        {
            "rollout_id": replay.record.rollout_id,
            "state": str(replay.record.state),
            "changes": None if changed is None else changed.to_json(),
            "steps": [_as_json(step) for step in replay.steps],
            "bad": replay.unreadable,
        }
    )


def _timeline(call: Invocation, replay: Replay) -> None:
    record, begin = replay.record, replay.accepted.accepted_at
    call.print(f"{record.rollout_id}: {record.state}; {record.target_closure}")
    call.print(f"accepted {local_time(begin)}, policy {replay.accepted.policy}; times below in UTC")
    if (changed := _changes(call, record.rollout_id)) is not None:
        call.print(f"changes {changed.words}")
    rows: list[Row] = []
    reboots = _reboots(call, record.rollout_id)
    hooks: dict[int, list[HookOutput]] = {}
    for said in outputs(call.config.state_dir, record.rollout_id):
        hooks.setdefault(said.seq, []).append(said)
    for step in replay.steps:
        state = str(step.after) if step.after is step.before else f"{step.before} -> {step.after}"
        shown = step.refused or _details(step.entry)
        while reboots and reboots[0].at < step.at:
            rows.append(_asked(reboots.pop(0), begin))
        rows.append(
            (
                utc_time(step.at),
                f"+{length(step.at - begin)}",
                step.entry.seq,
                step.entry.kind,
                state,
                "refused" if step.refused else step.place,
                shown,
            )
        )
        for said in hooks.get(step.entry.seq, ()):
            rows.append(("", "", step.entry.seq, f"hook {said.hook}", "", said.moment, _words(said)))
    rows.extend(_asked(each, begin) for each in reboots)
    call.table(("TIME", "AFTER", "SEQ", "EVENT", "STATE", "WHERE", "DETAILS"), rows)
    for problem in replay.unreadable:
        call.print(f"unreadable: {problem}")


def _changes(call: Invocation, rollout_id: str) -> Changes | None:
    return of_rollout(Records(call.config.state_dir, read_boot_id()), rollout_id)


def _reboots(call: Invocation, rollout_id: str) -> list[Asked]:
    """The reboots that the agent has asked for, oldest first."""
    try:
        return [each for each in RebootLedger(call.config.state_dir).all() if each.rollout_id == rollout_id]
    except StorageError as error:
        call.print(f"unreadable: {error}")
        return []


def _asked(asked: Asked, begin: datetime) -> Row:
    times = "" if asked.tries == 1 else f" {asked.tries} times"
    after = f"+{length(asked.at - begin)}"
    return utc_time(asked.at), after, "", "reboot", "", asked.direction, f"asked for by the agent{times}"


def _words(said: HookOutput) -> str:
    ended = "" if said.exit_code == 0 else f"exit code {said.exit_code}: "
    return ended + " / ".join(line for line in said.output.splitlines() if line.strip())


def _details(entry: Entry) -> str:
    parts = []
    for key, value in entry.event.items():
        if key in _COLUMNS or key.endswith("At") or value is None:
            continue
        parts.append(f"{key}={len(value)}" if isinstance(value, list) else f"{key}={value}")
    parts.extend(f"{phase.get('name')}:{phase.get('seconds')}s" for phase in _phases(entry))
    return " ".join(parts)


def _phases(entry: Entry) -> list[dict[str, object]]:
    """What the steps of an activation or a rollback took."""
    phases = entry.local.get("phases")
    return [phase for phase in phases if isinstance(phase, dict)] if isinstance(phases, list) else []


def _as_json(step: Step) -> dict[str, object]:
    return {
        "at": format_time(step.at),
        "seq": step.entry.seq,
        "kind": step.entry.kind,
        "before": str(step.before),
        "after": str(step.after),
        "where": step.place,
        "refused": step.refused,
        "event": dict(step.entry.event),
        "phases": _phases(step.entry),
    }


def _envelopes(call: Invocation, replay: Replay) -> None:
    """As they were sent, for the same file gives the same bytes."""
    from nixfleet_agent.runtime.workers.outbound import envelope

    signer = EventSigner(call.config.ssh_host_key_file)
    sent = [step.entry for step in replay.steps if step.entry.seq > 0]
    call.print_json([json.loads(envelope(entry, signer.sign)) for entry in sent])


def _verify(call: Invocation, key: Ed25519PublicKey, replays: list[Replay]) -> int:
    raw = read_input(call.options.verify, _AUDIT_LIMIT)
    verdicts = audit(raw, key, replays)
    good = all(verdict.genuine for verdict in verdicts)
    if call.json:
        call.print_json([asdict(verdict) for verdict in verdicts])
    else:
        rows = [(v.event, v.signature, v.chain, v.log) for v in verdicts]
        call.table(("EVENT", "SIGNATURE", "CHAIN", "LOG"), rows)
        call.print(_summary(verdicts))
    return EXIT_OK if good and verdicts else EXIT_CHECK_FAILED


def _summary(verdicts: list[Verdict]) -> str:
    bad = sum(not verdict.genuine for verdict in verdicts)
    unlinked = sum(verdict.chain == "missing" for verdict in verdicts)
    more = f" {unlinked} of an older agent are not linked: none may be of another rollout." if unlinked else ""
    return f"{len(verdicts)} events, {len(verdicts) - bad} genuine, {bad} not.{more}"
