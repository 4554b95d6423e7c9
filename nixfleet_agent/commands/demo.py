"""``demo``: a whole fleet on this machine, its control plane and its CI included."""

from __future__ import annotations

import argparse
from pathlib import Path

from nixfleet_agent.commands.invocation import Invocation, Parser

#: More would not fit into one machine's memory and ports.
MOST_AGENTS = 500


def configure(parser: Parser) -> None:
    # The demo brings the local control plane with it, which no agent on a host ever loads.
    from nixfleet_agent.demo.scenario import FAULTS

    parser.add_argument("--agents", type=_count, default=3, metavar="N", help="how many hosts (default: 3)")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C, to look around")
    parser.add_argument("--fault", choices=FAULTS, metavar="FAULT", help=f"what goes wrong: {', '.join(FAULTS)}")
    parser.add_argument("--dir", type=Path, metavar="PATH", help="an empty or new folder for the files")


def run(call: Invocation) -> int:
    from nixfleet_agent.demo.main import DemoOptions
    from nixfleet_agent.demo.main import run as tell

    options = call.options
    return tell(
        DemoOptions(agents=options.agents, keep=options.keep, fault=options.fault, json=call.json, folder=options.dir)
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_AGENTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_AGENTS}")
    return int(text)
