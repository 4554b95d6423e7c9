"""``run-now``: let the next activation begin outside the maintenance windows."""

from __future__ import annotations

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.operator.hold import parse_until
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.threads.clock import SystemClock


def configure(parser: Parser) -> None:
    parser.details("One rollout is let through, and the reason is kept. A hold stands all the same.")
    parser.example('nixfleet-agent run-now --reason "security fix, agreed with Kim"')
    parser.add_argument("--reason", metavar="TEXT", required=True, help="what the next operator should know")
    parser.add_argument("--until", metavar="T", help="a length (30m, 4h) or a time; default: 1h")


def run(call: Invocation) -> int:
    clock = SystemClock()
    until = parse_until(call.options.until, clock.now()) if call.options.until else None
    asked = RunNowStore(call.config.state_dir, clock).request(call.options.reason, until)
    if call.json:
        call.print_json(asked.to_json())
        return EXIT_OK
    call.print(f"the next rollout until {local_time(asked.until)} does not wait for a maintenance window.")
    if not call.config.maintenance.windows:
        call.print("No windows are configured here: nothing waits for one anyway.")
    return EXIT_OK
