"""Whether an operator should look at this host: one verdict for monitoring, from a snapshot of the agent. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from nixfleet_agent.commands.explain import active_record, needs_reboot
from nixfleet_agent.commands.times import length
from nixfleet_agent.proto.times import parse_time

Snapshot = Mapping[str, Any]

#: An event that is this old without being delivered is worth a look: a drain interval is 15 s, its backoff 60 s.
LATE_EVENT = timedelta(minutes=15)
#: Without any answer for this long the control plane is out of reach; a long poll may take a minute.
SILENCE = timedelta(minutes=5)
#: A certificate with less left than this was due for renewal for most of its life.
CERTIFICATE_LEFT = timedelta(days=3)


class Level(IntEnum):
    """The exit codes of monitoring plugins (Nagios's convention)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst level, and one line that says why; ``findings`` has the worst first."""

    level: Level
    findings: tuple[Finding, ...]
    summary: str

    @property
    def line(self) -> str:
        """``WARNING - why; why else``, or ``OK - what runs``."""
        said = "; ".join(finding.text for finding in self.findings) or self.summary
        return f"{self.level.name} - {said}"


def judge(snapshot: Snapshot, now: datetime) -> Verdict:
    """The verdict on a snapshot of ``status --json``."""
    found = (*_agent(snapshot), *_rollout(snapshot), *_identity(snapshot, now), *_delivery(snapshot, now))
    findings = tuple(sorted(found, key=lambda finding: -finding.level))
    record = active_record(snapshot)
    what = f"{record['rollout_id']} is {record['state']}" if record else "no rollout accepted yet"
    return Verdict(findings[0].level if findings else Level.OK, findings, what)


def _agent(snapshot: Snapshot) -> Iterator[Finding]:
    if not snapshot.get("running"):
        yield Finding(Level.CRITICAL, f"the agent does not run ({snapshot.get('not_running', 'nobody answers')})")
    if silent := snapshot.get("silent_workers"):
        yield Finding(Level.CRITICAL, f"worker unresponsive: {', '.join(silent)}")
    if error := snapshot.get("journal_error"):
        yield Finding(Level.CRITICAL, f"events are not durable: {error}")
    if error := snapshot.get("trust_error"):
        yield Finding(Level.CRITICAL, f"nothing can be verified: {error}")
    if hold := snapshot.get("hold"):
        yield Finding(Level.WARNING, f"held back by an operator: {hold['reason']}")
    if drift := snapshot.get("drift"):
        yield Finding(Level.WARNING, f"somebody switched this host by hand: {drift} runs")


def _rollout(snapshot: Snapshot) -> Iterator[Finding]:
    record = active_record(snapshot)
    if record is None:
        return
    name, state = record["rollout_id"], record["state"]
    rollback = snapshot.get("rollback") or {}
    if state == "Failed" and (rollback.get("failures") or rollback.get("given_up") or rollback.get("drift")):
        yield Finding(Level.CRITICAL, f"{name} failed and is not rolled back: {rollback.get('reason') or 'see why'}")
    elif state == "Failed" and rollback.get("deferred"):
        text = needs_reboot(rollback["closure"], rollback["deferred"]).removesuffix(".")
        yield Finding(Level.CRITICAL, f"{name} failed, and its rollback {text}{_not_yet(snapshot)}")
    elif state == "Failed":
        level = Level.WARNING if record["rollback_owed"] else Level.CRITICAL
        yield Finding(level, f"{name} failed" + (" and is being rolled back" if record["rollback_owed"] else ""))
    elif state == "Reverted":
        yield Finding(Level.WARNING, f"{name} failed and was rolled back")
    elif state == "Deferred":
        yield Finding(Level.WARNING, f"{name} waits for a reboot{_not_yet(snapshot)}")


def _not_yet(snapshot: Snapshot) -> str:
    reboot = snapshot.get("reboot")
    return f": {reboot['reason']}" if reboot else ""


def _identity(snapshot: Snapshot, now: datetime) -> Iterator[Finding]:
    certificate = snapshot.get("certificate") or {}
    state = certificate.get("state")
    if state in ("missing", "unreadable", "expired"):
        yield Finding(Level.CRITICAL, f"the certificate {certificate.get('path')} is {state}")
    elif (not_after := certificate.get("not_after")) and (left := parse_time(not_after) - now) < CERTIFICATE_LEFT:
        yield Finding(Level.WARNING, f"the certificate expires in {length(left)}")


def _delivery(snapshot: Snapshot, now: datetime) -> Iterator[Finding]:
    queue = snapshot.get("queue") or {}
    if (oldest := queue.get("oldest")) and now - parse_time(oldest) > LATE_EVENT:
        waits = length(now - parse_time(oldest))
        yield Finding(Level.WARNING, f"{queue.get('queued')} undelivered events, the oldest for {waits}")
    if rejected := queue.get("rejected"):
        yield Finding(Level.WARNING, f"{rejected} events refused by the control plane")
    contacts = (snapshot.get("contacts") or {}).values()
    answered = [parse_time(contact["answered_at"]) for contact in contacts if contact.get("answered_at")]
    if contacts and (not answered or now - max(answered) > SILENCE):
        since = f"for {length(now - max(answered))}" if answered else "since the agent started"
        yield Finding(Level.WARNING, f"the control plane has not answered {since}")
