"""``run``: the agent itself."""

from __future__ import annotations

from nixfleet_agent.commands.invocation import Invocation, Parser


def configure(parser: Parser) -> None:
    """It has no arguments of its own."""


def run(call: Invocation) -> int:
    """Until the agent is told to stop; its exit code."""
    config = call.config
    # Only now, so that a mistake in the configuration is answered at once.
    from nixfleet_agent.runtime.lean import ENCODING_GUESSERS, SECOND_OPENSSL, without

    with without(*ENCODING_GUESSERS, *SECOND_OPENSSL):
        from nixfleet_agent.runtime import daemon

    return daemon.run(config, lambda: call.load_again().config)
