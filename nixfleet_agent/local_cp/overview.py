"""One picture of the fleet, or of one of its hosts, as plain data: what the status pages show, and `/status.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nixfleet_agent.journal.chain_check import MISSING
from nixfleet_agent.local_cp.control import ControlPlane
from nixfleet_agent.local_cp.store import HostRow
from nixfleet_agent.local_cp.waiting import DETAILED, reasons
from nixfleet_agent.proto.times import format_time

EVENTS = 20
REPORTS = 10
BROKEN = 20
#: Of one host: rollouts, newest first, and events of each.
HOST_ROLLOUTS, HOST_EVENTS = 6, 200


def overview(control: ControlPlane, now: datetime) -> dict[str, Any]:
    """Everything there is to see, in types of JSON. Rollouts are listed oldest first, events newest first."""
    store = control.store
    rollouts = _rollouts(control)
    return {
        "at": format_time(now),
        "hosts": _hosts(control, rollouts, now),
        "rollouts": rollouts,
        "events": [
            {
                "received_at": at,
                "hostname": hostname,
                "rollout_id": rollout_id,
                "seq": event["seq"],
                "kind": event["kind"],
            }
            for at, hostname, rollout_id, event in store.newest_events(EVENTS)
        ],
        "broken_links": [list(link) for link in store.broken_links(BROKEN)],
        "quarantine": [list(pair) for pair in sorted(store.quarantined())],
        "revoked": {hostname: format_time(at) for hostname, at in sorted(store.revocations().items())},
        "bootstrap_reports": store.bootstrap_reports()[-REPORTS:],
        "long_polls": len(control.waiters),
    }


def of_host(control: ControlPlane, hostname: str, now: datetime) -> dict[str, Any] | None:
    """One host and the events of its rollouts, newest rollout first; None where nothing is known of it."""
    store = control.store
    row = store.host(hostname)
    rollouts = [rollout for rollout in reversed(_rollouts(control)) if _has_part(hostname, rollout)]
    if row is None and not rollouts:
        return None
    newest = rollouts[0] if rollouts else None
    return {
        "at": format_time(now),
        "hostname": hostname,
        "heard": None if row is None else _heard(row, now),
        "waits": "" if newest is None else _waits(control, newest).get(hostname, ""),
        "rollouts": [
            {
                "rollout_id": rollout["rollout_id"],
                "opened_at": rollout["opened_at"],
                "state": rollout["states"].get(hostname),
                "target": control.catalogue.target(rollout["rollout_id"], hostname),
                "events": _timeline(control, hostname, rollout["rollout_id"]),
            }
            for rollout in rollouts[:HOST_ROLLOUTS]
        ],
    }


def _timeline(control: ControlPlane, hostname: str, rollout_id: str) -> list[dict[str, Any]]:
    """The last events of one rollout on one host, oldest first; ``link`` is the verdict on what each follows."""
    links = control.store.links(hostname, rollout_id)
    return [
        {"received_at": at, "event": event, "signed": signed, "link": links.get(event["seq"], MISSING)}
        for at, signed, event in control.store.timeline(hostname, rollout_id)[-HOST_EVENTS:]
    ]


def _hosts(control: ControlPlane, rollouts: Sequence[Mapping[str, Any]], now: datetime) -> list[dict[str, Any]]:
    """Each host that was heard of, with its part in the newest rollout that it has, or waits for, one in."""
    newest: dict[str, Mapping[str, Any]] = {}
    for rollout in rollouts:
        newest |= dict.fromkeys([*rollout["states"], *rollout["waiting"]], rollout)
    waits = {id(rollout): _waits(control, rollout) for rollout in {id(r): r for r in newest.values()}.values()}
    queued = control.store.queued()
    hosts = []
    for hostname, row in control.store.hosts().items():
        part = newest.get(hostname)
        told = {"rollout_id": None, "state": None, "waits": ""}
        if part is not None:
            state, waiting = part["states"].get(hostname), waits[id(part)].get(hostname, "")
            told = {"rollout_id": part["rollout_id"], "state": state, "waits": waiting}
        hosts.append({"hostname": hostname, **_heard(row, now), **told, "queued": queued.get(hostname, [])})
    return hosts


def _heard(row: HostRow, now: datetime) -> dict[str, Any]:
    return {
        "current_closure": row.current_closure,
        "seen_secs_ago": max(0, round((now - row.seen_at).total_seconds())),
        "agent_version": row.agent_version,
    }


def _waits(control: ControlPlane, rollout: Mapping[str, Any]) -> dict[str, str]:
    """What its hosts wait for, by name."""
    store, rollout_id = control.store, rollout["rollout_id"]
    found = reasons(
        store.placements(rollout_id),
        rollout["waiting"],
        store.records_in(rollout_id, DETAILED),
        store.deferred_by(rollout_id),
        control.own_words(),
    )
    return dict(found)


def _has_part(hostname: str, rollout: Mapping[str, Any]) -> bool:
    return hostname in rollout["states"] or hostname in rollout["waiting"]


def _rollouts(control: ControlPlane) -> list[dict[str, Any]]:
    waiting = control.dispatcher.last_plan.waiting
    waves = {view.rollout_id: [list(wave.hosts) for wave in view.waves] for view in control.catalogue.open_rollouts}
    return [
        {
            "rollout_id": row.rollout_id,
            "opened_at": format_time(row.opened_at),
            "halted": row.halted,
            # Of a rollout that a newer one has replaced only the hosts that took part are known.
            "waves": waves.get(row.rollout_id),
            "states": {
                hostname: placed.state.value
                for hostname, placed in sorted(control.store.placements(row.rollout_id).items())
            },
            "waiting": {host: reason for (of, host), reason in waiting.items() if of == row.rollout_id},
        }
        for row in control.store.rollouts()
    ]
