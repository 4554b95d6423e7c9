"""``demo``: a whole fleet on this machine, its control plane and its CI included."""

from __future__ import annotations

import argparse
from pathlib import Path

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.errors import EXIT_OK

#: More would not fit into one machine's memory and ports.
MOST_AGENTS = 500
MOST_PORTS = 65535


def configure(parser: Parser) -> None:
    parser.details("It has a control plane and a CI of its own, and each agent a Nix store.")
    parser.example(
        "nixfleet-agent demo",
        "nixfleet-agent demo --list-scenarios",
        "nixfleet-agent demo --fault kill --agents 5",
        "nixfleet-agent demo --keep",
    )
    # The demo brings the local control plane with it, which no agent on a host ever loads.
    from nixfleet_agent.demo.scenario import FAULTS, PLAIN

    parser.add_argument("--agents", type=_count, metavar="N", help="how many hosts (default: the scenario's, mostly 3)")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C, to look around")
    story = parser.add_mutually_exclusive_group()
    story.add_argument("--scenario", metavar="NAME|FILE", default=PLAIN, help="what is told (default: %(default)s)")
    story.add_argument("--fault", choices=FAULTS, metavar="FAULT", help=f"what goes wrong: {', '.join(FAULTS)}")
    story.add_argument("--list-scenarios", action="store_true", help="the names that --scenario knows, and exit")
    parser.add_argument("--dir", type=Path, metavar="PATH", help="an empty or new folder for the files")
    parser.add_argument("--port", type=_port, default=0, metavar="PORT", help="of the control plane (default: any)")


def run(call: Invocation) -> int:
    options = call.options
    if options.list_scenarios:
        return _list(call)
    from nixfleet_agent.demo.main import DemoOptions
    from nixfleet_agent.demo.main import run as tell

    return tell(
        DemoOptions(
            scenario=options.fault or options.scenario,
            agents=options.agents,
            keep=options.keep,
            json=call.json,
            folder=options.dir,
            port=options.port,
        )
    )


def _list(call: Invocation) -> int:
    from nixfleet_agent.demo.scenario import shipped

    if call.json:
        call.print_json(shipped())
    else:
        call.table(("SCENARIO", "WHAT IT TELLS"), list(shipped().items()))
    return EXIT_OK


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_AGENTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_AGENTS}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= MOST_PORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)
