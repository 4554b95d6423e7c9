"""What the running agent takes from the machine that it runs on: time, threads, chance, processes, connections."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from nixfleet_agent.activation.machine import SYSTEM_MACHINE, Machine
from nixfleet_agent.net.client import Connect
from nixfleet_agent.net.session import Session
from nixfleet_agent.probes import runners
from nixfleet_agent.probes.set import Runner
from nixfleet_agent.threads.clock import Clock, SystemClock
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Built once; by default the machine as it is.

    ``rng`` makes a source of randomness for one user of it, ``connect`` a connection to the control plane; ``probe``
    runs one probe once. Without ``listens`` no command can reach the agent through its socket.
    """

    clock: Clock = field(default_factory=SystemClock)
    threads: Threads = SYSTEM_THREADS
    machine: Machine = SYSTEM_MACHINE
    rng: Callable[[], random.Random] = random.Random
    connect: Connect = Session
    probe: Runner = runners.run
    listens: bool = True
