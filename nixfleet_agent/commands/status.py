"""``status``: what the running agent knows, or what its files say while it does not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from nixfleet_agent.commands.coming_release import in_short
from nixfleet_agent.commands.explain import active_record, needs_reboot
from nixfleet_agent.commands.invocation import BOLD, GREEN, RED, YELLOW, Invocation, Parser
from nixfleet_agent.commands.snapshot import NEWEST, snapshot_of
from nixfleet_agent.commands.times import ago, local_time
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.threads.clock import SystemClock

Snapshot = Mapping[str, Any]

_COLOURS = {"Converged": GREEN, "Failed": RED, "Reverted": RED, "Deferred": YELLOW}
#: Rollouts in the table; `history --list` has all of them. Refusals; `status --json` has more.
_SHOWN, _REFUSALS = 5, 3
#: The order in which a rollout's stamps come about, with their names for people.
_STAMPS = {
    "dispatched_at": "accepted",
    "activation_started_at": "begun",
    "activation_completed_at": "active",
    "activation_failed_at": "activation failed",
    "converged_at": "converged",
    "failed_at": "failed",
    "reverted_at": "reverted",
}


def configure(parser: Parser) -> None:
    parser.details("While it does not run, what its files say.")
    parser.example("nixfleet-agent status", "nixfleet-agent status --json")
    parser.add_argument(
        "--check", action="store_true", help="one line for monitoring; exit 0 good, 1 warning, 2 critical"
    )


def run(call: Invocation) -> int:
    whole = call.json and not call.options.check
    snapshot = snapshot_of(call.config, None if whole else NEWEST)
    if call.options.check:
        return _check(call, snapshot)
    if call.json:
        call.print_json(snapshot)
        return EXIT_OK
    show(call, snapshot, SystemClock().now())
    return EXIT_OK


def show(call: Invocation, snapshot: Snapshot, now: datetime) -> None:
    """Print a snapshot for people: what is worth knowing, the newest rollouts, the probes."""
    for label, text, colour in _lines(snapshot, now):
        call.print(f"{label + ':':<14} {text}", colour)
    rollouts = sorted(snapshot.get("rollouts") or (), key=lambda r: r["dispatched_at"], reverse=True)[:_SHOWN]
    if rollouts:
        call.print()
        head = ("ROLLOUT", "STATE", "SEQ", "LAST CHANGE", "CLOSURE")
        call.table(head, [_row(record, now) for record in rollouts])
    record = active_record(snapshot)
    if record is not None and record["probes"]:
        call.print()
        if record["state"] != "Soaking":
            call.print(f"The last results while {record['rollout_id']} soaked:")
        probes = [_probe_row(name, probe, now) for name, probe in sorted(record["probes"].items())]
        call.table(("PROBE", "MODE", "RESULT", "LAST RUN", "REASON"), probes)


def _check(call: Invocation, snapshot: Snapshot) -> int:
    from nixfleet_agent.commands.health import judge

    verdict = judge(snapshot, SystemClock().now())
    if call.json:
        findings = [{"level": finding.level.name, "text": finding.text} for finding in verdict.findings]
        call.print_json({"level": verdict.level.name, "summary": verdict.summary, "findings": findings})
    else:
        call.print(verdict.line)
    return int(verdict.level)


def _lines(snapshot: Snapshot, now: datetime) -> Iterator[tuple[str, str, str]]:
    if snapshot["running"]:
        agent = snapshot.get("agent") or {}
        started = _ago(snapshot.get("started_at"), now)
        said = f"running, version {agent.get('version')}, pid {agent.get('pid')}, started {started}"
        yield "agent", said, GREEN
    elif pid := snapshot.get("holder_pid"):
        yield "agent", f"pid {pid} starts, or hangs ({snapshot['not_running']}); from its files:", RED
    else:
        yield "agent", f"not running ({snapshot['not_running']}); from its files:", RED
    yield "host", str(snapshot.get("machine_id")), ""
    yield "runs", str(snapshot.get("current_closure") or "unknown"), ""
    record = active_record(snapshot)
    if record is None:
        yield "rollout", "none accepted yet", ""
    else:
        due = f", soak due {local_time(parse_time(record['soak_due_at']))}" if record["state"] == "Soaking" else ""
        yield "rollout", f"{record['rollout_id']}: {record['state']}{due}", _COLOURS.get(record["state"], BOLD)
    yield from _warnings(snapshot, now)
    yield from _facts(snapshot, now)


def _warnings(snapshot: Snapshot, now: datetime) -> Iterator[tuple[str, str, str]]:
    """What somebody should look at."""
    if drift := snapshot.get("drift"):
        yield "drift", f"{drift} runs, which is not what the rollout left", YELLOW
    if hold := snapshot.get("hold"):
        until = local_time(parse_time(hold["until"])) if hold["until"] else "released"
        yield "hold", f"until {until}: {hold['reason']}", YELLOW
    if maintenance := snapshot.get("maintenance"):
        yield "window", *_window(maintenance, now)
    if error := snapshot.get("journal_error"):
        yield "journal", f"events are not durable: {error}", RED
    if error := snapshot.get("trust_error"):
        yield "trust", f"nothing can be verified: {error}", RED
    for endpoint, told in sorted((snapshot.get("foreign") or {}).items()):
        yield "foreign", f"something answers {endpoint} in place of the control plane: {told}", RED
    if silent := snapshot.get("silent_workers"):
        yield "workers", f"worker unresponsive: {', '.join(silent)}", RED
    if rollback := snapshot.get("rollback"):
        yield "rollback", _rollback(rollback, now), RED
    if reboot := snapshot.get("reboot"):
        yield "reboot", _reboot(reboot), YELLOW
    if waiting := snapshot.get("waiting"):
        next_try = f"next try {_ago(waiting['next_try_at'], now)}"
        yield "waiting", f"tries so far: {waiting['tries']}, {next_try}: {waiting['reason']}", YELLOW
    if (release := snapshot.get("release")) and release["behind_since"]:
        signed = _ago(release["behind_since"], now)
        yield "behind", f"CI signed {release['rollout_id']} for this host {signed}; no turn has come", YELLOW
    if coming := snapshot.get("next"):
        text, look = in_short(coming, now)
        yield "next", text, YELLOW if look else ""
    if dispatch := snapshot.get("dispatch"):
        reason = dispatch.get("reason") or "being verified"
        yield "kept", f"{dispatch['rollout_id']}, {_ago(dispatch['received_at'], now)}: {reason}", YELLOW
    for entry in snapshot.get("quarantine") or ():
        yield "quarantine", f"{entry['closure']} on {entry['channel']}, {_ago(entry['since'], now)}", YELLOW
    refusals = [refusal for refusal in snapshot.get("refusals") or () if refusal["outcome"] != "kept"]
    for refusal in refusals[-_REFUSALS:]:
        what = refusal["rollout_id"] or "no Dispatch"
        yield "refusal", f"{_ago(refusal['at'], now)}, {what} {refusal['outcome']}: {refusal['reason']}", YELLOW


def _window(maintenance: Mapping[str, Any], now: datetime) -> tuple[str, str]:
    changes = parse_time(maintenance["changes_at"]) if maintenance["changes_at"] else None
    if maintenance["open"]:
        return (f"open until {local_time(changes)}" if changes else "always open"), ""
    opens = f"closed, opens {local_time(changes)}" if changes else "closed"
    if maintenance["run_now"]:
        opens += f"; the next rollout need not wait: {maintenance['run_now']}"
    return opens, YELLOW


def _reboot(reboot: Mapping[str, Any]) -> str:
    """What the reboot is for, and what it waits for."""
    until = f" ({local_time(parse_time(reboot['until']))})" if reboot["until"] else ""
    return f"needed for {reboot['component']} ({reboot['rollout_id']}); {reboot['reason']}{until}"


def _rollback(rollback: Mapping[str, Any], now: datetime) -> str:
    if rollback.get("given_up"):
        return "given up by an operator"
    if rollback.get("drift"):
        return f"stands by: an operator has switched this host to {rollback['drift']}"
    if rollback.get("deferred"):
        return needs_reboot(rollback["closure"], rollback["deferred"])
    next_try = f", next try {_ago(rollback['next_try_at'], now)}" if rollback.get("next_try_at") else ""
    return f"failures in a row: {rollback.get('failures')}{next_try}: {rollback.get('reason')}"


def _facts(snapshot: Snapshot, now: datetime) -> Iterator[tuple[str, str, str]]:
    queue = snapshot.get("queue") or {}
    oldest = f", the oldest from {_ago(queue['oldest'], now)}" if queue.get("oldest") else ""
    rejected = f", {queue['rejected']} rejected" if queue.get("rejected") else ""
    queued = queue.get("queued", 0)
    yield "queue", f"{queued} event{'' if queued == 1 else 's'}{oldest}{rejected}", ""
    certificate = snapshot.get("certificate") or {}
    word = "since" if certificate.get("state") == "expired" else "until"
    until = f" {word} {local_time(parse_time(certificate['not_after']))}" if certificate.get("not_after") else ""
    failure = f" ({certificate['failure']})" if certificate.get("failure") else ""
    good = certificate.get("state") in ("valid", "due")
    state = certificate.get("state", "unknown")
    word = "the client key can't be used" if state == "no_key" else state
    yield "certificate", f"{word}{until}{failure}", "" if good else RED
    for endpoint, contact in sorted((snapshot.get("contacts") or {}).items()):
        answered = f"answered {_ago(contact['answered_at'], now)}" if contact.get("answered_at") else "never answered"
        yield "contact", f"{endpoint}: {answered}, last outcome {contact['last_outcome']}", ""


def _row(record: Mapping[str, Any], now: datetime) -> tuple[object, ...]:
    stamps = [(record[stamp], name) for stamp, name in _STAMPS.items() if record.get(stamp)]
    at, name = max(stamps)
    return (
        record["rollout_id"],
        record["state"],
        record["last_event_seq"],
        f"{name} {_ago(at, now)}",
        record["target_closure"],
    )


def _probe_row(name: str, probe: Mapping[str, Any], now: datetime) -> tuple[object, ...]:
    observed = _ago(probe["last_observed_at"], now)
    return name, probe["mode"], probe["status"], observed, probe["failure_reason"] or ""


def _ago(text: object, now: datetime) -> str:
    return ago(parse_time(text), now) if isinstance(text, str) else "at an unknown time"
