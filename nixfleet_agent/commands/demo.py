"""``nixfleet-agent demo``: a whole fleet on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.demo.main import DemoOptions
from nixfleet_agent.demo.main import run as run_demo
from nixfleet_agent.demo.scenario import FAULTS

#: More would not fit into one machine's ports and memory.
MOST_AGENTS = 500


def configure(parser: Parser) -> None:
    """Arguments of the command."""
    parser.add_argument("--agents", type=_count, default=3, metavar="N", help="how many hosts; default: 3")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument("--fault", choices=sorted(FAULTS), help="show one defence at work")
    parser.add_argument("--dir", type=Path, metavar="PATH", help="where to put the files; an empty or new folder")


def run(call: Invocation) -> int:
    """Tell the story; exit code 0 only if every host ended where it should."""
    options = call.options
    return run_demo(
        DemoOptions(agents=options.agents, keep=options.keep, fault=options.fault, json=call.json, folder=options.dir)
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_AGENTS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MOST_AGENTS}")
    return int(text)
