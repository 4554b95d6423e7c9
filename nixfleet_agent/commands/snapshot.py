"""What the agent knows: asked over its socket, or pieced together from its files while it does not run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from nixfleet_agent.activation.host import read_current
from nixfleet_agent.activation.quarantine import QuarantineStore
from nixfleet_agent.clock import SystemClock
from nixfleet_agent.commands import journal_view
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import IdentityError, ProtoError
from nixfleet_agent.identity.certificate import load_certificate
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.runtime.hold import HoldStore
from nixfleet_agent.runtime.status import as_json
from nixfleet_agent.runtime.status_socket import AgentNotRunningError, ask


def snapshot_of(config: Config) -> dict[str, Any]:
    """The sections of the status board as JSON values, and ``running``; ``not_running`` says why it is not.

    Raises:
        AgentError: the agent runs and refuses to answer.
        OSError: the state directory may not be read.
    """
    try:
        sections: dict[str, Any] = ask(config.state_dir, "status")
        sections["running"] = True
    except AgentNotRunningError as error:
        sections = _from_files(config)
        sections |= {"running": False, "not_running": str(error)}
    sections["quarantine"] = [entry for entry in sections.get("quarantine") or () if _in_force(entry, config)]
    sections.setdefault("machine_id", config.machine_id)
    sections.setdefault("current_closure", read_current(config.activation))
    return sections


def _in_force(entry: dict[str, Any], config: Config) -> bool:
    until = parse_time(entry["since"]) + timedelta(hours=config.quarantine_hours)
    return SystemClock().now() < until


def _from_files(config: Config) -> dict[str, Any]:
    """Local truth alone, as boot recovery would read it; nothing is changed."""
    clock = SystemClock()
    replays = journal_view.rollouts(config.state_dir, config.machine_id)
    newest = replays[0] if replays else None
    return {
        "host": {"active_id": newest.record.rollout_id if newest else None},
        "rollouts": [as_json(replay.record) for replay in replays],
        "queue": _queue(config),
        "hold": as_json(HoldStore(config.state_dir, clock).current()),
        "quarantine": [as_json(entry) for entry in QuarantineStore(config.state_dir).entries()],
        "certificate": _certificate(config),
    }


def _queue(config: Config) -> dict[str, Any]:
    waiting = journal_view.scan(config.state_dir, config.machine_id, ("queued",))
    rejected = journal_view.scan(config.state_dir, config.machine_id, ("rejected",))
    stamps = []
    for item in waiting:
        try:
            stamps.append(item.read().created_at)
        except ProtoError:
            continue  # `queue list` shows it; it has no age
    return {"queued": len(waiting), "rejected": len(rejected), "oldest": as_json(min(stamps, default=None))}


def _certificate(config: Config) -> dict[str, Any]:
    try:
        certificate = load_certificate(config.client_cert)
    except IdentityError as error:
        state = "unreadable" if config.client_cert.exists() else "missing"
        return {"path": str(config.client_cert), "state": state, "failure": str(error), "not_after": None}
    state = "expired" if certificate.expired(SystemClock().now()) else "valid"
    return {"path": str(config.client_cert), "state": state, "not_after": as_json(certificate.not_after)}
