"""``renew``: a new certificate for the same key, by hand."""

from __future__ import annotations

from nixfleet_agent.commands.identity import host_of
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.errors import EXIT_OK
from nixfleet_agent.proto.times import format_time

_PROOF = {True: "the control plane takes it", False: "it could not be tried yet", None: ""}


def configure(parser: Parser) -> None:
    parser.details("The agent does this by itself when less than half of its life is left.")
    parser.example("nixfleet-agent renew", "nixfleet-agent renew --force")
    parser.add_argument("--force", action="store_true", help="renew although it is not due")


def run(call: Invocation) -> int:
    with host_of(call.config) as host:
        host.credentials.reload()
        renewed = host.renewal.renew_once(force=call.options.force)
    until, left = local_time(renewed.certificate.not_after), f"{renewed.remaining_fraction:.0%}"
    if call.json:
        stamp = format_time(renewed.certificate.not_after)
        call.print_json({"renewed": renewed.renewed, "not_after": stamp, "proven": renewed.proven})
    elif renewed.renewed:
        call.print(f"renewed: valid until {until}; {_PROOF[renewed.proven]}. A running agent uses it within a minute.")
    else:
        call.print(f"not due: valid until {until}, {left} of its life left; --force renews it all the same.")
    return EXIT_OK
