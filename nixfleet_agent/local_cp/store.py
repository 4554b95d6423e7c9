"""The tables of the control plane as typed calls. No rule of the protocol lives here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nixfleet_agent.journal.chain_check import BAD, GAP, STRIPPED, Standing, start
from nixfleet_agent.local_cp import records
from nixfleet_agent.local_cp.database import Database
from nixfleet_agent.local_cp.planner import Placement
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine import RolloutRecord, State

#: Bootstrap reports that are kept: the newest.
REPORTS_KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """What the last heartbeat of a host said."""

    hostname: str
    seen_at: datetime
    agent_version: str
    current_closure: str | None
    rollout_id: str | None
    uptime_secs: int
    reported: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout that was opened; ``number`` grows with each."""

    rollout_id: str
    channel: str
    opened_at: datetime
    number: int
    halted: str | None


class Store(Database):
    """Each call is one transaction of its own, or a part of the one that is open."""

    # Hosts

    def save_host(self, host: HostRow) -> None:
        self.run(
            "INSERT OR REPLACE INTO hosts VALUES (?, ?, ?, ?, ?, ?, ?)",
            host.hostname,
            format_time(host.seen_at),
            host.agent_version,
            host.current_closure,
            host.rollout_id,
            host.uptime_secs,
            json.dumps(dict(host.reported)),
        )

    def host(self, hostname: str) -> HostRow | None:
        rows = self.rows("SELECT * FROM hosts WHERE hostname = ?", hostname)
        return _host(rows[0]) if rows else None

    def hosts(self) -> dict[str, HostRow]:
        return {row[0]: _host(row) for row in self.rows("SELECT * FROM hosts ORDER BY hostname")}

    # Rollouts

    def open_rollout(self, rollout_id: str, channel: str, now: datetime) -> bool:
        """True when it is new."""
        sql = "INSERT OR IGNORE INTO rollouts VALUES (?, ?, ?, (SELECT 1 + count(*) FROM rollouts), NULL)"
        return self.run(sql, rollout_id, channel, format_time(now)) == 1

    def rollouts(self) -> list[RolloutRow]:
        """All, oldest first."""
        rows = self.rows("SELECT rollout_id, channel, opened_at, number, halted FROM rollouts ORDER BY number")
        return [RolloutRow(row[0], row[1], parse_time(row[2]), row[3], row[4]) for row in rows]

    def halt(self, rollout_id: str, reason: str) -> None:
        """No more turns in this rollout; those not fetched yet are withdrawn, with their untouched records."""
        with self.transaction():
            self.run("UPDATE rollouts SET halted = coalesce(halted, ?) WHERE rollout_id = ?", reason, rollout_id)
            self.withdraw(rollout_id)

    def withdraw(self, rollout_id: str) -> None:
        """Take back the turns that no host has fetched."""
        self.run(
            "DELETE FROM records WHERE rollout_id = ? AND state = ? AND delivered_at IS NULL AND hostname IN "
            "(SELECT hostname FROM queue WHERE rollout_id = ?)",
            rollout_id,
            State.PENDING.value,
            rollout_id,
        )
        self.run("DELETE FROM queue WHERE rollout_id = ?", rollout_id)

    # Records and events

    def record(self, rollout_id: str, hostname: str) -> RolloutRecord | None:
        rows = self.rows("SELECT record FROM records WHERE rollout_id = ? AND hostname = ?", rollout_id, hostname)
        return records.load(rows[0][0]) if rows else None

    def records_of(self, hostname: str) -> list[RolloutRecord]:
        rows = self.rows("SELECT record FROM records WHERE hostname = ? ORDER BY rollout_id", hostname)
        return [records.load(row[0]) for row in rows]

    def last_seqs(self, hostname: str) -> dict[str, int]:
        return dict(self.rows("SELECT rollout_id, last_event_seq FROM records WHERE hostname = ?", hostname))

    def save_record(self, record: RolloutRecord) -> None:
        self.run(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, NULL, ?) ON CONFLICT DO UPDATE SET state = excluded.state, "
            "terminal = excluded.terminal, last_event_seq = excluded.last_event_seq, record = excluded.record",
            record.rollout_id,
            record.hostname,
            record.state.value,
            record.terminal,
            record.last_event_seq,
            records.dump(record),
        )

    def placements(self, rollout_id: str) -> dict[str, Placement]:
        rows = self.rows(
            "SELECT hostname, state, terminal, delivered_at, EXISTS (SELECT 1 FROM queue WHERE queue.hostname = "
            "records.hostname AND queue.rollout_id = records.rollout_id) FROM records WHERE rollout_id = ?",
            rollout_id,
        )
        return {
            row[0]: Placement(State(row[1]), bool(row[2]), bool(row[4]), parse_time(row[3]) if row[3] else None)
            for row in rows
        }

    def records_in(self, rollout_id: str, states: Iterable[State]) -> dict[str, Mapping[str, Any]]:
        """The stored form of the records of one rollout in these states, by host name (``records.dump``)."""
        sql = "SELECT hostname, record FROM records WHERE rollout_id = ? AND state IN (SELECT value FROM json_each(?))"
        rows = self.rows(sql, rollout_id, json.dumps([state.value for state in states]))
        return {hostname: json.loads(record) for hostname, record in rows}

    def under_way(self, limit: int) -> list[str]:
        """Hosts that have a turn and have not switched yet."""
        sql = "SELECT DISTINCT hostname FROM records WHERE state IN (?, ?) LIMIT ?"
        return [row[0] for row in self.rows(sql, State.PENDING.value, State.ACTIVATING.value, limit)]

    def append_event(
        self, hostname: str, rollout_id: str, event: Mapping[str, Any], signature: str | None, now: datetime
    ) -> None:
        """Keep an event as it came; ``seq`` and ``kind`` are those of the event."""
        self.run(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)",
            hostname,
            rollout_id,
            event["seq"],
            event["kind"],
            json.dumps(event),
            signature,
            format_time(now),
        )

    def standing(self, hostname: str, rollout_id: str) -> Standing:
        """Where the chain of one rollout on one host stands here."""
        sql = (
            "SELECT following, (SELECT count(chain_signature) FROM links WHERE hostname = ? AND rollout_id = ?) "
            "FROM links WHERE hostname = ? AND rollout_id = ? ORDER BY seq DESC LIMIT 1"
        )
        rows = self.rows(sql, hostname, rollout_id, hostname, rollout_id)
        return Standing(rows[0][0], rows[0][1] > 0) if rows else start(hostname, rollout_id)

    def append_link(self, envelope: Mapping[str, Any], verdict: str, after: Standing) -> None:
        """Keep an event's link to the one before it as it came, what became of checking it, and what is to follow."""
        self.run(
            "INSERT INTO links VALUES (?, ?, ?, ?, ?, ?, ?)",
            envelope["hostname"],
            envelope["rolloutId"],
            envelope["event"]["seq"],
            envelope.get("previous"),
            envelope.get("chainSignature"),
            verdict,
            after.previous,
        )

    def links(self, hostname: str, rollout_id: str) -> dict[int, str]:
        """The verdict on the link of each event (``journal.chain_check``), by seq."""
        return dict(
            self.rows("SELECT seq, verdict FROM links WHERE hostname = ? AND rollout_id = ?", hostname, rollout_id)
        )

    def broken_links(self, limit: int) -> list[tuple[str, str, int, str]]:
        """(host name, rollout id, seq, verdict) of events whose link does not hold here."""
        sql = "SELECT hostname, rollout_id, seq, verdict FROM links WHERE verdict IN (?, ?, ?) LIMIT ?"
        return self.rows(sql, GAP, STRIPPED, BAD, limit)

    def events(self, hostname: str, rollout_id: str) -> list[dict[str, Any]]:
        """The log of one rollout on one host, by seq."""
        rows = self.rows(
            "SELECT event FROM events WHERE hostname = ? AND rollout_id = ? ORDER BY seq", hostname, rollout_id
        )
        return [json.loads(row[0]) for row in rows]

    def timeline(self, hostname: str, rollout_id: str) -> list[tuple[str, bool, dict[str, Any]]]:
        """(received at, whether it was signed, event) of the log of one rollout on one host, by seq."""
        sql = (
            "SELECT received_at, signature IS NOT NULL, event FROM events "
            "WHERE hostname = ? AND rollout_id = ? ORDER BY seq"
        )
        return [(at, bool(signed), json.loads(event)) for at, signed, event in self.rows(sql, hostname, rollout_id)]

    def deferred_by(self, rollout_id: str) -> dict[str, str]:
        """What keeps a release from being switched to live, by the host that has deferred it."""
        sql = "SELECT hostname, event FROM events WHERE rollout_id = ? AND kind = 'ActivationDeferred'"
        return {hostname: str(json.loads(event)["component"]) for hostname, event in self.rows(sql, rollout_id)}

    def arrivals(self, hostname: str, rollout_id: str) -> list[int]:
        """Seqs of the log of one rollout on one host, in the order in which they came."""
        sql = "SELECT seq FROM events WHERE hostname = ? AND rollout_id = ? ORDER BY received_at"
        return [row[0] for row in self.rows(sql, hostname, rollout_id)]

    def kinds(self) -> list[tuple[str, str, str]]:
        """(host name, rollout id, kind) of the events that have come."""
        return self.rows("SELECT DISTINCT hostname, rollout_id, kind FROM events")

    def newest_events(self, count: int) -> list[tuple[str, str, str, dict[str, Any]]]:
        """(received at, host name, rollout id, event) of the last ones that came, newest first."""
        sql = "SELECT received_at, hostname, rollout_id, event FROM events ORDER BY received_at DESC LIMIT ?"
        return [(*row[:3], json.loads(row[3])) for row in self.rows(sql, count)]

    # The queue of turns

    def enqueue(self, dispatch: Dispatch) -> None:
        body = json.dumps(dispatch.to_json())
        self.run(
            "INSERT INTO queue (hostname, rollout_id, dispatch) VALUES (?, ?, ?)",
            dispatch.hostname,
            dispatch.rollout_id,
            body,
        )

    def dequeue(self, hostname: str, now: datetime) -> Dispatch | None:
        """The oldest turn of a host, which is then delivered."""
        with self.transaction():
            rows = self.rows("SELECT id, dispatch FROM queue WHERE hostname = ? ORDER BY id LIMIT 1", hostname)
            if not rows:
                return None
            dispatch = Dispatch.parse(json.loads(rows[0][1]))
            self.run("DELETE FROM queue WHERE id = ?", rows[0][0])
            self.run(
                "UPDATE records SET delivered_at = ? WHERE rollout_id = ? AND hostname = ?",
                format_time(now),
                dispatch.rollout_id,
                hostname,
            )
            return dispatch

    def take_back(self, dispatch: Dispatch) -> None:
        """A turn that was dequeued did not reach its host."""
        sql = "UPDATE records SET delivered_at = NULL WHERE rollout_id = ? AND hostname = ?"
        self.run(sql, dispatch.rollout_id, dispatch.hostname)

    def queued(self) -> dict[str, list[str]]:
        """Rollout ids of the turns that wait, by host."""
        waiting: dict[str, list[str]] = {}
        for hostname, rollout_id in self.rows("SELECT hostname, rollout_id FROM queue ORDER BY id"):
            waiting.setdefault(hostname, []).append(rollout_id)
        return waiting

    # Identity and quarantine

    def use_nonce(self, nonce: str, hostname: str, now: datetime) -> bool:
        """False when the token was used before."""
        return self.run("INSERT OR IGNORE INTO nonces VALUES (?, ?, ?)", nonce, hostname, format_time(now)) == 1

    def log_certificate(self, serial: str, hostname: str, not_before: datetime, not_after: datetime) -> None:
        times = (format_time(not_before), format_time(not_after))
        self.run("INSERT INTO certificates VALUES (?, ?, ?, ?)", serial, hostname, *times)

    def certificates(self) -> dict[str, int]:
        """How many each host was issued."""
        return dict(self.rows("SELECT hostname, count(*) FROM certificates GROUP BY hostname"))

    def revoke(self, hostname: str, not_before: datetime) -> None:
        """Refuse every certificate of the host that starts before ``not_before``."""
        self.run("INSERT OR REPLACE INTO revocations VALUES (?, ?)", hostname, format_time(not_before))

    def revocations(self) -> dict[str, datetime]:
        return {row[0]: parse_time(row[1]) for row in self.rows("SELECT hostname, not_before FROM revocations")}

    def quarantine(self, channel: str, closure: str, hostname: str, now: datetime) -> None:
        self.run("INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?)", channel, closure, hostname, format_time(now))

    def quarantined(self) -> frozenset[tuple[str, str]]:
        """(channel, closure) of each."""
        return frozenset((row[0], row[1]) for row in self.rows("SELECT channel, closure FROM quarantine"))

    def save_bootstrap_report(self, report: Mapping[str, Any], now: datetime) -> None:
        self.run(
            "INSERT INTO bootstrap_reports (received_at, report) VALUES (?, ?)", format_time(now), json.dumps(report)
        )
        # Anybody may report, with no certificate at all.
        self.run("DELETE FROM bootstrap_reports WHERE id <= (SELECT max(id) FROM bootstrap_reports) - ?", REPORTS_KEPT)

    def bootstrap_reports(self) -> list[dict[str, Any]]:
        return [json.loads(row[0]) for row in self.rows("SELECT report FROM bootstrap_reports ORDER BY id")]


def _host(row: Any) -> HostRow:
    return HostRow(
        hostname=row[0],
        seen_at=parse_time(row[1]),
        agent_version=row[2],
        current_closure=row[3],
        rollout_id=row[4],
        uptime_secs=row[5],
        reported=json.loads(row[6]),
    )
