"""``diff [ROLLOUT]``: what would change on this host, from the store alone: packages, sizes, and units."""

from __future__ import annotations

import logging

from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.closure_query import NotInStoreError, difference
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.dry_run import DryRun, dry_activate
from nixfleet_agent.activation.errors import ActivationError
from nixfleet_agent.commands.coming import Coming, NothingComesError, coming, running_closure
from nixfleet_agent.commands.diff_view import as_json, show
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.surroundings import context_of
from nixfleet_agent.errors import EXIT_OK

log = logging.getLogger("nixfleet_agent.diff")


def configure(parser: Parser) -> None:
    parser.details(
        "Packages that come, go or have another version, sizes, and the units that the coming system's own script says "
        "it would stop, start and restart. Nothing is fetched and nothing is changed. Versions are told apart as `nix "
        "store diff-closures` does."
    )
    parser.example(
        "nixfleet-agent diff",
        "nixfleet-agent diff stable@def4567abc",
        "nixfleet-agent diff /nix/store/0c4q6ngn2fdqgwl4ny2rr5yz2m94rgl6-nixos-system-web-01-25.11",
        "nixfleet-agent diff --json",
    )
    parser.add_argument(
        "rollout",
        metavar="ROLLOUT",
        nargs="?",
        help="a rollout id, how it begins, or a closure's store path; default: what CI signed last for this host",
    )


def run(call: Invocation) -> int:
    config = call.config
    what, running = coming(config, call.options.rollout), running_closure(config)
    context = context_of(config, call.environ, log)
    try:
        found = difference(context, running, what.closure)
    except NotInStoreError as error:
        raise NothingComesError(f"{error}: {_advice(what, running)}") from error
    run_dry, unknown = units_of(context, running, what.closure)
    if call.json:
        call.print_json(as_json(what.rollout_id, found, run_dry, unknown))
    else:
        show(call, what.rollout_id, found, run_dry, unknown)
    return EXIT_OK


def units_of(context: Context, running: str, closure: str) -> tuple[DryRun | None, str | None]:
    """What the coming system's script says of units, or why that is not known."""
    if closure == running:
        return None, None
    try:
        dry_run = dry_activate(context, choose(context), closure)
    except ActivationError as error:
        return None, str(error)
    if dry_run is None:
        return None, "this platform has no dry run"
    return (dry_run, None) if dry_run.failure is None else (None, dry_run.failure)


def _advice(what: Coming, running: str) -> str:
    if what.rollout_id is None or what.closure == running:
        return f"`nix-store --realise /nix/store/{what.closure}` fetches it"
    return f"`nixfleet-agent rehearse {what.rollout_id}` fetches it"
