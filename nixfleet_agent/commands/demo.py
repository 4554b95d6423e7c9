"""``demo``: a whole fleet on this machine, its control plane and its CI included."""

from __future__ import annotations

from pathlib import Path

from nixfleet_agent.commands.invocation import Invocation, Parser


def configure(parser: Parser) -> None:
    # The demo brings the local control plane with it, which no agent on a host ever loads.
    from nixfleet_agent.demo.scenario import FAULTS

    parser.add_argument("--agents", type=int, default=3, metavar="N", help="how many hosts (default: 3)")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C, to look around")
    parser.add_argument("--fault", choices=FAULTS, metavar="FAULT", help=f"what goes wrong: {', '.join(FAULTS)}")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="an empty or new folder for the files")


def run(call: Invocation) -> int:
    from nixfleet_agent.demo.main import DemoOptions
    from nixfleet_agent.demo.main import run as tell

    options = call.options
    return tell(
        DemoOptions(
            agents=options.agents, keep=options.keep, fault=options.fault, json=call.json, folder=options.folder
        )
    )
