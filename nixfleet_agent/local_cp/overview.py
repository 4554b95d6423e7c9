"""One picture of the fleet as plain data: what the status page shows, and what ``/status.json`` answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from nixfleet_agent.local_cp.control import ControlPlane
from nixfleet_agent.proto.times import format_time

EVENTS = 20
REPORTS = 10


def overview(control: ControlPlane, now: datetime) -> dict[str, Any]:
    """Everything there is to see, in types of JSON. Rollouts are listed oldest first, events newest first."""
    store = control.store
    queued = store.queued()
    hosts = [
        {
            "hostname": host.hostname,
            "current_closure": host.current_closure,
            "seen_secs_ago": max(0, round((now - host.seen_at).total_seconds())),
            "agent_version": host.agent_version,
            "queued": queued.get(host.hostname, []),
        }
        for host in store.hosts().values()
    ]
    return {
        "at": format_time(now),
        "hosts": hosts,
        "rollouts": _rollouts(control),
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
        "quarantine": [list(pair) for pair in sorted(store.quarantined())],
        "revoked": {hostname: format_time(at) for hostname, at in sorted(store.revocations().items())},
        "bootstrap_reports": store.bootstrap_reports()[-REPORTS:],
        "long_polls": len(control.waiters),
    }


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
