"""What the agent knows: asked over its socket, or pieced together from its files while it does not run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from nixfleet_agent.config.model import Config
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from nixfleet_agent.threads.clock import SystemClock

#: The version of `conf/schemas/status.schema.json`: fields are added within it, and never mean something else.
SCHEMA_VERSION = 1

#: Rollouts that are asked for where nobody wants to see all of them.
NEWEST = 20


def snapshot_of(config: Config, newest: int | None = None) -> dict[str, Any]:
    """The sections of the status board as JSON values, and ``running``; ``not_running`` says why it is not.

    ``newest`` is how many rollouts are wanted, for a host may have a thousand; the active one is always among them.

    Raises:
        AgentError: the agent runs and refuses to answer.
        OSError: the state directory may not be read.
    """
    try:
        sections: dict[str, Any] = ask(config.state_dir, "status", newest=newest)
        sections["running"] = True
    except AgentNotRunningError as error:
        # What reads them costs more than the answer of an agent that runs: state machine, journal, certificates.
        from nixfleet_agent.commands.snapshot_files import sections_from_files
        from nixfleet_agent.runtime.state_dir import holder

        sections = sections_from_files(config)
        sections |= {"running": False, "not_running": str(error), "holder_pid": holder(config.state_dir)}
    sections["quarantine"] = [entry for entry in sections.get("quarantine") or () if _in_force(entry, config)]
    sections.setdefault("machine_id", config.machine_id)
    sections["schema_version"] = SCHEMA_VERSION
    return sections


def _in_force(entry: dict[str, Any], config: Config) -> bool:
    until = parse_time(entry["since"]) + timedelta(hours=config.quarantine_hours)
    return SystemClock().now() < until
