"""``check``: everything that can be wrong before the agent is started, one line each with what to do."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from nixfleet_agent.activation.context import Context
from nixfleet_agent.commands import checks
from nixfleet_agent.commands.checks import FAIL, OK, Finding
from nixfleet_agent.commands.identity import host_of
from nixfleet_agent.commands.invocation import GREEN, RED, YELLOW, Invocation, Parser
from nixfleet_agent.config.load import Loaded
from nixfleet_agent.config.sources import ConfigProblemsError
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, IdentityError
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.net.sockets import Route
from nixfleet_agent.threads.clock import Clock

_COLOURS = {OK: GREEN, checks.WARN: YELLOW, FAIL: RED}


def configure(parser: Parser) -> None:
    parser.details("One line for each thing, with what to do about it. Exit code 1 when one fails; a warning is none.")
    parser.example("nixfleet-agent check", "nixfleet-agent check --offline", "nixfleet-agent check --print-config")
    parser.add_argument("--print-config", action="store_true", help="each key, its value, and where it comes from")
    parser.add_argument("--offline", action="store_true", help="do not call the control plane")


def run(call: Invocation) -> int:
    """Exit 1 when anything fails; a warning is none."""
    try:
        loaded = call.loaded
    except ConfigProblemsError as error:
        findings = [Finding("configuration", FAIL, problem) for problem in error.problems]
    else:
        if call.options.print_config:
            _print_config(call, loaded)
            return EXIT_OK
        findings = list(_findings(loaded, offline=call.options.offline))
    if call.json:
        call.print_json([{"what": f.what, "level": f.level, "text": f.text} for f in findings])
    else:
        for finding in findings:
            call.print(f"{finding.level:<5} {finding.what:<16} {finding.text}", _COLOURS[finding.level])
    return EXIT_CHECK_FAILED if any(finding.level == FAIL for finding in findings) else EXIT_OK


def _findings(loaded: Loaded, *, offline: bool) -> Iterator[Finding]:
    config = loaded.config
    with host_of(config) as host:
        clock = host.clock
        yield from checks.configuration(loaded)
        yield from checks.ownership(loaded)
        yield from checks.state_directory(config)
        yield from checks.trust_file(config, clock)
        yield from checks.ca_file(config)
        yield from checks.clock_and_marks(config, clock)
        yield from checks.identity(config, clock)
        yield from checks.health_check_file(config)
        yield from checks.hooks(config)
        yield from checks.windows(config, clock)
        yield from checks.nix(config, _context(loaded, clock))
        yield from checks.proxy(config, os.environ)
        if offline:
            return
        try:
            host.credentials.reload()
            yield from checks.reachability(config, host.control_plane, enrolled=True)
        except IdentityError:
            # What is wrong with it was said above; whether anybody is there can be seen without.
            route = Route.of(config)
            nobody = ControlPlane(config.control_plane_url, ca_cert=config.ca_cert, clock=clock, route=route)
            yield from checks.reachability(config, nobody, enrolled=False)
            nobody.close()


def _context(loaded: Loaded, clock: Clock) -> Context:
    """The surroundings that a backend is chosen in; nothing runs in them."""
    config = loaded.config
    return Context(
        config.activation,
        config.state_dir,
        clock,
        lambda: None,
        lambda _: None,
        logging.getLogger("nixfleet_agent.check"),
    )


def _print_config(call: Invocation, loaded: Loaded) -> None:
    values = {name: (_plain(value), origin) for name, (value, origin) in loaded.provenance.items()}
    if call.json:
        call.print_json({name: {"value": value, "from": origin} for name, (value, origin) in values.items()})
        return
    table = ""
    for name, (value, origin) in values.items():
        section, _, key = name.rpartition(".")
        if section != table:
            call.print(f"\n[{section}]")
            table = section
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}" if value is not None else f"#{key} ="
        call.print(f"{line:<60} # {origin}")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
