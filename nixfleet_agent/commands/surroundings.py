"""The surroundings in which a command runs Nix and switch scripts: this host's configuration, until Ctrl-C."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from nixfleet_agent.activation.context import Context
from nixfleet_agent.config.model import Config
from nixfleet_agent.threads.clock import SystemClock


def context_of(config: Config, environ: Mapping[str, str], log: logging.Logger) -> Context:
    """Nothing but Ctrl-C interrupts it; children get the agent's part of ``environ``."""
    clock, never = SystemClock(), threading.Event()

    def wait(seconds: float) -> None:
        clock.wait(never, seconds)

    return Context(config.activation, config.state_dir, clock, lambda: None, wait, log, base_environment=environ)


@contextmanager
def progress_on_stderr(log: logging.Logger) -> Iterator[None]:
    """What ``log`` is told within the block goes to standard error, for whoever waits."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
