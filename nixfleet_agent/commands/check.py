"""``check``: everything that can be wrong before the agent is started, one line each with what to do."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nixfleet_agent.activation import nix
from nixfleet_agent.commands import checks
from nixfleet_agent.commands.boot_check import counting
from nixfleet_agent.commands.checks import FAIL, OK, Finding
from nixfleet_agent.commands.identity import host_of
from nixfleet_agent.commands.invocation import GREEN, RED, YELLOW, Invocation, Parser
from nixfleet_agent.commands.surroundings import context_of
from nixfleet_agent.config.load import Loaded
from nixfleet_agent.config.model import Config
from nixfleet_agent.config.sources import ConfigProblemsError
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, IdentityError
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.net.sockets import Route
from nixfleet_agent.prefetch import gentle
from nixfleet_agent.threads.clock import SystemClock

log = logging.getLogger("nixfleet_agent.check")

_COLOURS = {OK: GREEN, checks.WARN: YELLOW, FAIL: RED}


def configure(parser: Parser) -> None:
    parser.details(
        "One line for each thing, with what to do about it. Exit code 1 when one fails; warnings do not affect it."
    )
    parser.example(
        "nixfleet-agent check",
        "nixfleet-agent check --local",
        "nixfleet-agent check --offline --strict",
        "nixfleet-agent check --print-config",
    )
    parser.add_argument("--print-config", action="store_true", help="each key, its value, and where it comes from")
    reach = parser.add_mutually_exclusive_group()
    reach.add_argument("--local", action="store_true", help="everything on this host; do not call the control plane")
    reach.add_argument(
        "--offline", action="store_true", help="the configuration and its files only, as before a release is built"
    )
    parser.add_argument("--strict", action="store_true", help="an unknown word in the health checks fails as well")


def run(call: Invocation) -> int:
    """Exit 1 when anything fails; warnings do not affect it."""
    options = call.options
    try:
        loaded = call.loaded
    except ConfigProblemsError as error:
        return report(call, [Finding("configuration", FAIL, problem) for problem in error.problems])
    if options.print_config:
        _print_config(call, loaded)
        return EXIT_OK
    ignored = [Finding("configuration", checks.WARN, call.retired)] if call.retired else []
    found = (
        of_the_files(loaded, strict=options.strict)
        if options.offline
        else of_the_host(loaded, strict=options.strict, local=options.local)
    )
    return report(call, itertools.chain(ignored, found))


def report(call: Invocation, findings: Iterable[Finding]) -> int:
    """Print the findings, each as soon as it is there; the exit code that they make."""
    code, told = EXIT_OK, []
    for finding in findings:
        code = EXIT_CHECK_FAILED if finding.level == FAIL else code
        told.append({"what": finding.what, "level": finding.level, "text": finding.text})
        if not call.json:
            call.print(f"{finding.level:<5} {finding.what:<16} {finding.text}", _COLOURS[finding.level])
    if call.json:
        call.print_json(told)
    return code


def of_the_files(loaded: Loaded, *, strict: bool) -> Iterator[Finding]:
    """What the configuration and the files it names say by themselves, wherever they lie.

    This judges a release before it is built or activated: no network, no process, and nothing that belongs to the
    running agent is opened. So its time is bounded by the limits of the files' sizes, and a key or certificate of
    this host that is not in order does not refuse a good release.
    """
    config = loaded.config
    yield checks.program()
    yield from checks.configuration(loaded)
    if os.access(config.trust_file, os.F_OK):
        yield from checks.trust_content(config, SystemClock())
    if config.ca_cert is not None and os.access(config.ca_cert, os.F_OK):
        yield from checks.ca_file(config)
    yield from checks.health_check_file(config, strict=strict)


def of_the_host(loaded: Loaded, *, strict: bool = False, local: bool = False) -> Iterator[Finding]:
    """All that can be wrong on this host; ``local`` leaves the control plane in peace."""
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
        yield from checks.health_check_file(config, strict=strict)
        yield from checks.hooks(config)
        yield from checks.windows(config, clock)
        yield from checks.reboots(config)
        yield from counting()
        yield from checks.nix(config, context_of(config, os.environ, log))
        yield from _prefetch(config)
        yield from checks.proxy(config, os.environ)
        if local:
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


def _prefetch(config: Config) -> Iterator[Finding]:
    """Whether what is fetched before a turn can be limited as configured; silent where it is not."""
    limited = config.prefetch.enabled and config.prefetch.max_rate
    if limited and not nix.limits_speed(context_of(config, os.environ, log)):
        yield Finding("prefetch", checks.WARN, gentle.NO_LIMIT)


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
