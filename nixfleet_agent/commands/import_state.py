"""``import-state``: take over what the Rust agent left."""

from __future__ import annotations

from pathlib import Path

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.runtime import swap_in
from nixfleet_agent.runtime.state_dir import StateDir


def configure(parser: Parser) -> None:
    parser.details(
        "The agent does this by itself at its first start. Nothing of the other agent is changed or removed, and what "
        "was taken over before is not taken again."
    )
    parser.example("nixfleet-agent import-state --dry-run", "nixfleet-agent import-state --from /mnt/old --dry-run")
    parser.add_argument(
        "--from", dest="source", metavar="DIR", type=Path, default=swap_in.SOURCE, help=f"default: {swap_in.SOURCE}"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def run(call: Invocation) -> int:
    """Say what is there, and do it; another agent on the state directory is the lock's refusal."""
    config, source = call.config, call.options.source.absolute()
    state = None if call.options.dry_run else StateDir.take(config.state_dir)
    try:
        rows = []
        for step in swap_in.steps(config, source):
            if step.do is not None and state is not None:
                step.do()
            done = "keep" if step.do is None else "done" if state is not None else "would"
            rows.append((step.what, done, step.text))
    finally:
        if state is not None:
            state.release_lock()
    if call.json:
        call.print_json([{"what": what, "outcome": outcome, "text": text} for what, outcome, text in rows])
    elif rows:
        call.table(("WHAT", "", "HOW"), rows)
    else:
        call.print(f"there is nothing of the Rust agent in {source}.")
    return EXIT_OK
