"""``run``: the agent itself."""

from __future__ import annotations

import signal

from nixfleet_agent.commands.invocation import Invocation, Parser


def configure(parser: Parser) -> None:
    parser.details("Flags without a command mean this one.")
    parser.example("nixfleet-agent run", "nixfleet-agent run --config /etc/nixfleet/agent.toml")


def run(call: Invocation) -> int:
    """Until the agent is told to stop; its exit code."""
    config = call.config
    # A parent that ignores the ends of its children passes that on, and then every child seems to end with code 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Only now, so that a mistake in the configuration is answered at once.
    from nixfleet_agent.runtime.lean import ENCODING_GUESSERS, SECOND_OPENSSL, without

    # The Prometheus library can't be imported without the second one, nor after others were imported without it.
    scraped = config.metrics.listen or config.metrics.textfile
    with without(*ENCODING_GUESSERS, *(() if scraped else SECOND_OPENSSL)):
        from nixfleet_agent.runtime import daemon

    return daemon.run(config, lambda: call.load_again().config)
