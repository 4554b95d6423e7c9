"""What a command prints to stdout, and the names and flags that the command line and its commands share."""

from __future__ import annotations

import os
import sys

from nixfleet_agent.errors import AgentError

PROGRAM = "nixfleet-agent"

#: The keys that have a flag: those of the Rust agent, so that its unit files work unchanged.
CONFIG_FLAGS = {
    "control_plane_url": "https address of the control plane",
    "machine_id": "this host's name in the fleet",
    "trust_file": "keys that releases must be signed with",
    "ca_cert": "CA of the control plane's certificate",
    "client_cert": "this host's certificate",
    "client_key": "its private key",
    "bootstrap_token_file": "one-time token for the first certificate",  # nosec B105 # a help text
    "state_dir": "where the agent keeps its state",
    "ssh_host_key_file": "the host's SSH Ed25519 key",
    "health_checks_file": "the host's health probes",
    "manifest_freshness_window_secs": "how old a signed release may be",
    "renewal_threshold_fraction": "renew below this part of the certificate's life",
}


class OutputError(AgentError):
    """What a command has to say can't be written."""


def write_stdout(*lines: str, flush: bool = False) -> None:
    """Print to stdout, which may be closed: then to nowhere.

    Raises:
        OutputError: what is behind it takes no more (a full disk).
        BrokenPipeError: its reader went away.
    """
    try:
        for line in lines:
            print(line)
        if flush and sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        mute_stdout()
        raise OutputError(f"can't write to stdout: {error.strerror or error}") from error


def mute_stdout() -> None:
    """Python writes what is left at exit, would complain about it again, and end with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
