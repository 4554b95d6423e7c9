"""A real process that runs the pipeline, to be killed in the middle: ``agent_process ORDER.json``.

The order names the host's files, the intent, and optionally ``kill_at``: the durable-write boundary at which the
process kills itself. It prints the outcome.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nixfleet_agent import durable
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.config.model import ActivationConfig
from nixfleet_agent.threads.clock import SystemClock
from tests.support.nix import NixHost

_PATHS = ("profile", "current_system", "switch_lock")


def start(host: NixHost, intent: Forward | Rollback, *, kill_at: int = 0) -> subprocess.Popen[str]:
    """Start the process in a session of its own; its standard output is the outcome."""
    config = {key: str(value) if key in _PATHS else value for key, value in asdict(host.activation).items()}
    order = {
        "config": config,
        "state_dir": str(host.state_dir),
        "pid_file": str(host.agent_pid),
        "kind": type(intent).__name__,
        "intent": asdict(intent),
        "kill_at": kill_at,
    }
    path = host.root / "order.json"
    path.write_text(json.dumps(order))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.activation.agent_process", str(path)],
        env=host.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def main() -> None:
    order: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    Path(order["pid_file"]).write_text(str(os.getpid()))
    settings: dict[str, Any] = {key: Path(value) if key in _PATHS else value for key, value in order["config"].items()}
    if order["kill_at"]:
        _kill_at(order["kill_at"])
    context = Context(
        ActivationConfig(**settings),
        Path(order["state_dir"]),
        SystemClock(),
        lambda: None,
        _wait,
        logging.getLogger("agent-process"),
    )
    pipeline = Pipeline(context)
    if order["kind"] == "Forward":
        print(pipeline.forward(Forward(**order["intent"]), lambda method: None))
    else:
        print(pipeline.rollback(Rollback(**order["intent"])))


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def _kill_at(number: int) -> None:
    left = number

    def boundary(step: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    durable.boundary = boundary


if __name__ == "__main__":
    main()
