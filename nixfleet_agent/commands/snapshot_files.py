"""What an agent that does not run left: local truth alone, as boot recovery would read it."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.activation.host import read_current
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.commands import journal_view
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import IdentityError, ProtoError
from nixfleet_agent.identity.certificate import load_certificate
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.maintenance import MaintenanceGate
from nixfleet_agent.operator.quarantine import QuarantineStore
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.telemetry.status import as_json
from nixfleet_agent.threads.clock import SystemClock


def sections_from_files(config: Config) -> dict[str, Any]:
    """The sections that the files prove; nothing is changed (raises OSError where they may not be read)."""
    clock = SystemClock()
    replays = journal_view.rollouts(config.state_dir, config.machine_id)
    newest = replays[0] if replays else None
    return {
        "current_closure": read_current(config.activation),
        "host": {"active_id": newest.record.rollout_id if newest else None},
        "rollouts": [as_json(replay.record) for replay in replays],
        "queue": _queue(config),
        "hold": as_json(HoldStore(config.state_dir, clock).current()),
        "maintenance": as_json(
            MaintenanceGate(config.maintenance, RunNowStore(config.state_dir, clock), clock).status()
        ),
        "rollback": _rollback(config, newest.record.rollout_id if newest else ""),
        "quarantine": [as_json(entry) for entry in QuarantineStore(config.state_dir).entries()],
        "certificate": _certificate(config),
        "trust_error": TrustStore(config).problem(),
    }


def _rollback(config: Config, rollout_id: str) -> dict[str, Any] | None:
    given_up = RollbackControl(config.state_dir).given_up(rollout_id)
    return {"rollout_id": rollout_id, "given_up": True} if given_up else None


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
