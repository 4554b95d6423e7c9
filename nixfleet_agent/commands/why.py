"""``why``: one paragraph for the operator who asks why nothing moves."""

from __future__ import annotations

import textwrap

from nixfleet_agent.commands.explain import explain
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.snapshot import NEWEST, snapshot_of
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import SystemClock


def configure(parser: Parser) -> None:
    parser.example("nixfleet-agent why")


def run(call: Invocation) -> int:
    snapshot = snapshot_of(call.config, NEWEST)
    text = printable(explain(snapshot, SystemClock().now(), call.config.quarantine_hours), 16384)
    if call.json:
        call.print_json({"why": text})
    else:
        call.print(textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False))
    return EXIT_OK
