"""``rollback retry|give-up``: what to do about a rollback that keeps failing."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.commands.invocation import Invocation, Parser, add_action
from nixfleet_agent.commands.snapshot import snapshot_of
from nixfleet_agent.errors import EXIT_OK, AgentError
from nixfleet_agent.operator.rollback_control import RollbackControl


def configure(parser: Parser) -> None:
    parser.details("`nixfleet-agent why` says what stands in the way of it.")
    parser.example("nixfleet-agent rollback retry", "nixfleet-agent rollback give-up")
    actions = parser.add_subparsers(dest="action", required=True, metavar="retry|give-up")
    add_action(actions, "retry", "try again now, not when the pause after the last failure is over")
    add_action(actions, "give-up", "leave the host as it is; a newer rollout, or `retry`, ends that")


def run(call: Invocation) -> int:
    config = call.config
    snapshot = snapshot_of(call.config)
    rollout_id = _owing(snapshot)
    control = RollbackControl(config.state_dir)
    if call.options.action == "retry":
        control.ask_retry(rollout_id)
        when = "at once" if snapshot["running"] else "when it is started: it does not run"
        said = f"the agent tries to roll back {rollout_id} again {when}."
    else:
        control.give_up(rollout_id)
        said = f"the rollback of {rollout_id} is given up: the host stays as it is until a newer rollout."
    if call.json:
        call.print_json({"rollout_id": rollout_id, "action": call.options.action})
    else:
        call.print(said)
    return EXIT_OK


def _owing(snapshot: dict[str, Any]) -> str:
    """The one rollout whose rollback is owed (raises AgentError when there is none)."""
    active = (snapshot.get("host") or {}).get("active_id")
    for record in snapshot.get("rollouts") or []:
        if record["rollout_id"] == active and record["rollback_owed"]:
            return str(active)
    raise AgentError("no rollback is owed on this host: there is nothing to retry or give up (see `status`)")
