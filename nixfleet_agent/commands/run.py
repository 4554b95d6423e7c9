"""``run``: the agent itself."""

from __future__ import annotations

import signal

from nixfleet_agent.commands.invocation import Invocation, Parser
from nixfleet_agent.config.model import Config
from nixfleet_agent.config.ownership import believed, require_safe


def configure(parser: Parser) -> None:
    parser.details("Flags without a command mean this one.")
    parser.example("nixfleet-agent run", "nixfleet-agent run --config /etc/nixfleet/agent.toml")


def run(call: Invocation) -> int:
    """Until the agent is told to stop; its exit code."""
    config, file = call.config, call.loaded.file
    # Before anything of it is believed, and with the state directory before anything is written there.
    require_safe(believed(config, file))
    # A parent that ignores the ends of its children passes that on, and then every child seems to end with code 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Only now, so that a mistake in the configuration is answered at once.
    from nixfleet_agent.runtime.lean import ENCODING_GUESSERS, SECOND_OPENSSL, without

    # The Prometheus library can't be imported without the second one, nor after others were imported without it.
    scraped = config.metrics.listen or config.metrics.textfile
    with without(*ENCODING_GUESSERS, *(() if scraped else SECOND_OPENSSL)):
        from nixfleet_agent.runtime import daemon

    def load_again() -> Config:
        loaded = call.load_again()
        require_safe(believed(loaded.config, loaded.file))
        return loaded.config

    return daemon.run(config, load_again, call.retired)
