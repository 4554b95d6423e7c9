"""The status page: one picture of the fleet as plain data, and as a page that needs no script and fits a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from typing import Any

from nixfleet_agent.local_cp.control import ControlPlane
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.text import printable

REFRESH_SECS = 2

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem; max-width: 60rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.2rem } h2 { font-size: 1rem; margin: 1.5rem 0 .3rem } p { margin: .3rem 0 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem .2rem 0;
vertical-align: top; overflow-wrap: anywhere } th { font-weight: 600; border-bottom: 1px solid #bbb }
.Converged { color: #116329 } .Failed, .Reverted, .halted { color: #a40e26 }
.Pending, .Activating, .Deferred, .Soaking { color: #7a4d00 } .note { color: #57606a; font-size: .9em }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #15181c } th { border-color: #555 }
.Converged { color: #6fdd8b } .Failed, .Reverted, .halted { color: #ff8a8a }
.Pending, .Activating, .Deferred, .Soaking { color: #e3b341 } .note { color: #9aa4ae } }
"""


def overview(control: ControlPlane, now: datetime) -> dict[str, Any]:
    """Everything that the page shows, in types of JSON."""
    store = control.store
    waiting = control.dispatcher.last_plan.waiting
    queued = store.queued()
    rollouts = []
    for row in store.rollouts():
        placements = store.placements(row.rollout_id)
        rollouts.append(
            {
                "rollout_id": row.rollout_id,
                "opened_at": format_time(row.opened_at),
                "halted": row.halted,
                "states": {hostname: placed.state.value for hostname, placed in sorted(placements.items())},
                "waiting": {
                    host: reason for (rollout_id, host), reason in waiting.items() if rollout_id == row.rollout_id
                },
            }
        )
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
        "rollouts": rollouts,
        "quarantine": [list(pair) for pair in sorted(store.quarantined())],
        "revoked": {hostname: format_time(at) for hostname, at in sorted(store.revocations().items())},
        "bootstrap_reports": store.bootstrap_reports()[-10:],
        "long_polls": len(control.waiters),
    }


def render(picture: Mapping[str, Any]) -> str:
    """The page; every string in it came over the wire at some time and is escaped."""
    rollouts = list(reversed(picture["rollouts"]))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<meta http-equiv=refresh content={REFRESH_SECS}><title>NixFleet local control plane</title>",
        f"<style>{_STYLE}</style><h1>NixFleet local control plane</h1>",
        "<p class=note>For demos, tests and development. "
        f"{len(picture['hosts'])} hosts, {picture['long_polls']} long polls open, {_text(picture['at'])}</p>",
        _hosts(picture["hosts"], rollouts[0] if rollouts else None),
        *(_rollout(rollout) for rollout in rollouts),
        _list("Quarantine", [f"{channel}: {closure}" for channel, closure in picture["quarantine"]]),
        _list("Revoked", [f"{hostname}: certificates before {at}" for hostname, at in picture["revoked"].items()]),
        _list("Bootstrap reports", [_report(report) for report in picture["bootstrap_reports"]]),
    ]
    return "".join(parts)


def _hosts(hosts: Iterable[Mapping[str, Any]], newest: Mapping[str, Any] | None) -> str:
    states = newest["states"] if newest else {}
    rows = [
        (
            _text(host["hostname"]),
            _state(states.get(host["hostname"], "")),
            _text(host["current_closure"] or "switching, or not known"),
            f"{host['seen_secs_ago']} s ago",
            _text(", ".join(host["queued"])),
        )
        for host in hosts
    ]
    return "<h2>Hosts</h2>" + _table(("host", "newest rollout", "runs", "seen", "turn waiting"), rows)


def _rollout(rollout: Mapping[str, Any]) -> str:
    rows = [(_text(hostname), _state(state)) for hostname, state in rollout["states"].items()]
    rows += [(_text(hostname), f"<span class=note>{_text(why)}</span>") for hostname, why in rollout["waiting"].items()]
    halted = f"<p class=halted>{_text(rollout['halted'])}</p>" if rollout["halted"] else ""
    return f"<h2>{_text(rollout['rollout_id'])}</h2>{halted}" + _table(("host", "state"), rows)


def _report(report: Mapping[str, Any]) -> str:
    return f"{report['hostname']}: {report['event']['kind']}: {report['event']['reason']}"


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}</h2>" + "".join(f"<p>{_text(line)}</p>" for line in lines)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Cells are HTML already."""
    heads = "".join(f"<th>{name}" for name in head)
    return f"<table><tr>{heads}" + "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows) + "</table>"


def _state(state: str) -> str:
    return f"<span class={_text(state)}>{_text(state)}</span>" if state else ""


def _text(value: object) -> str:
    return escape(printable(value))
