"""``release``: end a hold."""

from __future__ import annotations

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.threads.clock import SystemClock


def configure(parser: Parser) -> None:
    parser.example("nixfleet-agent release")


def run(call: Invocation) -> int:
    released = HoldStore(call.config.state_dir, SystemClock()).release()
    if call.json:
        call.print_json({"released": released})
    else:
        call.print("released: new activations start again." if released else "there was no hold in force.")
    return EXIT_OK
