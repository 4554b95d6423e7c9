"""The services of an agent of which a test has some parts and needs no others."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.prefetch.handover import Handover
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.orders import outranks
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import FakeClock


class _Absent:
    """Stands where the test has nothing: fails who touches it, though not who only keeps it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _Absent(f"{self._name}.{attribute}")

    def __call__(self, *arguments: object) -> Any:
        raise AssertionError(f"the test has no {self._name}")


def services(**parts: Any) -> Services:
    """``parts`` by name, real queues and a fake clock where none is given, and nothing in place of the others."""
    clock = parts.setdefault("clock", FakeClock())
    shutdown = parts.setdefault("shutdown", ShutdownToken(clock))
    parts.setdefault("config", config())
    parts.setdefault("platform", Platform(clock=clock))
    parts.setdefault("board", StatusBoard())
    parts.setdefault("inputs", InputQueue(shutdown))
    parts.setdefault("activation", Mailbox(clock, shutdown, outranks))
    parts.setdefault("prefetch", Handover(shutdown))
    parts.setdefault("probes", Mailbox(clock, shutdown))
    return Services(**{field.name: parts.pop(field.name, _Absent(field.name)) for field in fields(Services)}, **parts)


def config(**tuning: float) -> Config:
    """A host that is called web-01, with these intervals."""
    return Config(
        control_plane_url="https://cp.invalid",
        machine_id="web-01",
        state_dir=Path("no-state-dir"),
        tuning=TuningConfig(**tuning),
    )
