"""What may happen to a host in the middle of a release, each as often as chance has it; all of it is over at the end.

A *stroke* happens and is done. A *condition* is on while strokes fall, and goes away with them.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable

from nixfleet_agent.local_cp.server import Request, Response
from tests.faults.processes import end_all, processes_of
from tests.faults.proxy import Proxy
from tests.faults.rig import STOP_SECS, Problem, Rig
from tests.faults.wire import EVENTS

Stroke = Callable[[Rig, random.Random], None]
#: Turns itself on, and returns what turns it off.
Condition = Callable[[Rig, random.Random, Proxy], Callable[[], object]]


# -- strokes ----------------------------------------------------------------------------------


def kill(rig: Rig, chance: random.Random) -> None:
    """SIGKILL at one to three random moments."""
    for _ in range(chance.randint(1, 3)):
        time.sleep(chance.uniform(0.0, 0.6))
        rig.kill()
        rig.look_after()


def stop(rig: Rig, chance: random.Random) -> None:
    """SIGTERM, and a start."""
    time.sleep(chance.uniform(0.0, 0.6))
    took = rig.stop()
    if took > STOP_SECS:
        raise Problem(f"SIGTERM took {took:.1f} s")
    rig.start()


def reboot(rig: Rig, chance: random.Random) -> None:
    """The whole host."""
    time.sleep(chance.uniform(0.0, 0.6))
    rig.kill()
    end_all(rig.folder)
    rig.reboot()


def hang_up(rig: Rig, chance: random.Random) -> None:
    """SIGHUP and SIGUSR1, for what they may disturb."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        rig.until_started()
        time.sleep(chance.uniform(0.0, 0.4))
        rig.send(number)


def suspend(rig: Rig, chance: random.Random) -> None:
    """Every process of the host stands still, its connections break meanwhile."""
    rig.until_started()
    time.sleep(chance.uniform(0.0, 0.6))
    asleep = [rig.pid, *processes_of(rig.folder)]
    _tell(asleep, signal.SIGSTOP)
    rig.control_plane.server.cut()
    time.sleep(chance.uniform(0.1, 1.0))
    _tell(asleep, signal.SIGCONT)


def _tell(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def set_clock(rig: Rig, chance: random.Random) -> None:
    """The wall clock is wrong by seconds to a month, in either direction, and is set right again."""
    time.sleep(chance.uniform(0.0, 0.6))
    rig.pull("clock", chance.choice((-1, 1)) * chance.choice((2, 90, 3600, 86400, 30 * 86400)))
    time.sleep(chance.uniform(0.1, 1.0))
    rig.pull("clock", 0)


def fail_disk(rig: Rig, chance: random.Random) -> None:
    """Every durable write fails for a while; an agent that can't open its journal at the start ends with 1."""
    time.sleep(chance.uniform(0.0, 0.6))
    rig.tolerated |= {1}
    rig.pull("disk", chance.choice((errno.ENOSPC, errno.EIO, errno.EROFS)))
    until = time.monotonic() + chance.uniform(0.05, 0.6)
    rig.until(lambda: time.monotonic() > until, "the end of the disk's trouble")
    rig.pull("disk", 0)
    rig.until_started()
    rig.tolerated -= {1}


def collect_garbage(rig: Rig, chance: random.Random) -> None:
    """Nix removes what no root holds."""
    for _ in range(chance.randint(1, 3)):
        time.sleep(chance.uniform(0.0, 0.3))
        rig.host.collect_garbage()


def wipe(rig: Rig, chance: random.Random) -> None:
    """The control plane loses its memory."""
    time.sleep(chance.uniform(0.0, 0.6))
    rig.control_plane.control.wipe()


#: What a process does not live through, or what makes a release fail, is rarer: memory is measured in those that live.
#: So is what may take a minute to be made good.
STROKES: tuple[Stroke, ...] = (
    *(hang_up, suspend, set_clock, collect_garbage) * 6,
    *(kill, stop, reboot, fail_disk, wipe) * 2,
)


# -- conditions -------------------------------------------------------------------------------


def partition(rig: Rig, chance: random.Random, proxy: Proxy) -> Callable[[], object]:
    rig.control_plane.partition(True)
    return lambda: rig.control_plane.partition(False)


def network(rig: Rig, chance: random.Random, proxy: Proxy) -> Callable[[], object]:
    """Reset, swallowed, cut, slow or closed connections."""
    proxy.turn(chance.choice(("reset", "refuse", "hole", "half", "drip", "idle")))
    return lambda: proxy.turn("pass")


def answers(rig: Rig, chance: random.Random, proxy: Proxy) -> Callable[[], object]:
    """Some or all answers are wrong; an event's is never a good one that it is not."""
    share = chance.choice((0.33, 1.0))
    wrong = chance.choice((_error, _busy, _garbage, _taken))
    honest = rig.wire.answer
    # A request's thread has its own dice: how many there are depends on time.
    dice = random.Random(chance.random())

    def misbehave(request: Request) -> Response | None:
        return wrong(request, honest) if dice.random() < share else None

    rig.wire.misbehave = misbehave

    def well() -> None:
        rig.wire.misbehave = lambda request: None

    return well


def _error(request: Request, honest: Callable[[Request], Response]) -> Response:
    return Response(status=500, body=b"oops")


def _busy(request: Request, honest: Callable[[Request], Response]) -> Response:
    return Response(status=503, headers={"Retry-After": "1"})


def _garbage(request: Request, honest: Callable[[Request], Response]) -> Response:
    return Response(status=500 if request.path == EVENTS else 200, body=b"\x00\xff{[garbage")


def _taken(request: Request, honest: Callable[[Request], Response]) -> Response:
    """An event is taken, and its sender told otherwise."""
    if request.path == EVENTS:
        honest(request)
    return Response(status=500)


CONDITIONS: tuple[Condition, ...] = (partition, network, answers)
