"""``hold``: start no new activation for now."""

from __future__ import annotations

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.operator.hold import HoldStore, parse_until
from nixfleet_agent.threads.clock import SystemClock


def configure(parser: Parser) -> None:
    parser.details("What runs, a rollback and renewals go on. It ends by itself.")
    parser.example('nixfleet-agent hold --reason "disk swap, ask Kim" --until 4h')
    parser.add_argument("--reason", metavar="TEXT", required=True, help="what the next operator should know")
    parser.add_argument("--until", metavar="T", help="a length (90m, 4h, 2d) or a time; default: 24h")


def run(call: Invocation) -> int:
    clock = SystemClock()
    until = parse_until(call.options.until, clock.now()) if call.options.until else None
    hold = HoldStore(call.config.state_dir, clock).set(call.options.reason, until)
    if call.json:
        call.print_json(hold.to_json())
    else:
        call.print(f"held until {local_time(hold.until)}: no new activation starts; what runs goes on.")
        call.print("`nixfleet-agent release` ends the hold.")
    return EXIT_OK
