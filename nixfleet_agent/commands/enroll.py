"""``enroll``: this host's first certificate, by hand."""

from __future__ import annotations

from nixfleet_agent.commands.identity import host_of
from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.errors import EXIT_OK, ConfigError
from nixfleet_agent.identity.certificate import AgentCertificate, load_certificate
from nixfleet_agent.proto.times import format_time


def configure(parser: Parser) -> None:
    parser.details("The agent does this by itself at its first start. It takes a bootstrap token.")
    parser.example("nixfleet-agent enroll", "nixfleet-agent enroll --force")
    parser.add_argument("--force", action="store_true", help="use the token although there is a valid certificate")


def run(call: Invocation) -> int:
    config = call.config
    with host_of(config) as host:
        if config.client_cert.exists() and not call.options.force:
            certificate = load_certificate(config.client_cert)
            if not certificate.expired(host.clock.now()):
                _report(call, certificate, enrolled=False)
                return EXIT_OK
        if config.bootstrap_token_file is None:
            raise ConfigError("no bootstrap token: set bootstrap_token_file to enroll this host")
        _report(call, host.enrollment.enroll_once(), enrolled=True)
    return EXIT_OK


def _report(call: Invocation, certificate: AgentCertificate, *, enrolled: bool) -> None:
    until = local_time(certificate.not_after)
    if call.json:
        stamp = format_time(certificate.not_after)
        call.print_json({"enrolled": enrolled, "certificate": str(call.config.client_cert), "not_after": stamp})
    elif enrolled:
        call.print(f"enrolled: {call.config.client_cert} is valid until {until}.")
    else:
        call.print(f"already enrolled: {call.config.client_cert} is valid until {until}; --force enrolls again.")
