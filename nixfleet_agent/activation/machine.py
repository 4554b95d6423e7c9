"""What a pipeline asks of the machine besides its files: to run a program, and who and which boot is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nixfleet_agent.activation import host, locks, processes
from nixfleet_agent.activation.host import Process
from nixfleet_agent.activation.processes import Finished
from nixfleet_agent.threads.clock import Clock


class Run(Protocol):
    """As ``processes.run``."""

    def __call__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        clock: Clock,
        timeout: float,
        check: Callable[[], None],
        on_stderr: Callable[[bytes], None] | None = None,
        on_start: Callable[[int], None] | None = None,
    ) -> Finished: ...


class Machine(Protocol):
    """See the module; what each answers is described where ``SystemMachine`` has it from."""

    @property
    def run(self) -> Run: ...
    def boot_id(self) -> str: ...
    def process(self, pid: int) -> Process | None: ...
    def lock_holders(self, lock: Path) -> list[int]: ...


class SystemMachine:
    """The one that this process runs on."""

    run = staticmethod(processes.run)
    boot_id = staticmethod(host.read_boot_id)
    process = staticmethod(host.process)
    lock_holders = staticmethod(locks.holders)


SYSTEM_MACHINE = SystemMachine()
