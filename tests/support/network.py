"""Two network namespaces and the wire between them, which can be made to lose, delay, reorder, repeat and cut.

As a test uses it:

    with Network() as network:                     # needs root, `ip` and /dev/net/tun
        with network.inside(PLANE):                # this thread: what it binds and what it starts belongs there
            ...
        network.wire.quality = Quality(loss=0.05)
        network.wire.quality = Quality(largest=600)    # a path that silently drops what is larger

The wire is a thread between two tun devices: every packet of the kernels' own TCP goes through it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOST, PLANE = "host", "plane"
#: For these two namespaces alone; no packet leaves them.
ADDRESSES = {HOST: "10.86.0.1", PLANE: "10.86.0.2"}
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_SYN, _ACK = 0x02, 0x10
_TCP = 6


@dataclass(frozen=True, slots=True)
class Quality:
    """Of the wire, both ways, in seconds and bytes; ``jitter`` on top of ``delay`` is what reorders."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    repeat: float = 0.0
    largest: int | None = None
    cut: bool = False


def why_not() -> str:
    """What this machine lacks, for a skipped test; empty when there is nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is not installed (Debian: iproute2)"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "this machine does not allow network namespaces"
    return ""


class Wire:
    """Carries packets between two tun devices until ``close``. ``calls`` counts the host's attempts to connect."""

    def __init__(self, ends: tuple[int, int], seed: int = 1) -> None:
        self.quality = Quality()
        self.calls = 0
        self.dropped = 0
        self._ends = ends
        self._chance = random.Random(seed)
        self._heap: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._stop, self._stopper = os.pipe()
        self._thread = threading.Thread(target=self._run, name="wire")
        self._thread.start()

    def close(self) -> None:
        os.close(self._stopper)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in (*self._ends, self._stop):
            poll.register(descriptor, select.POLLIN)
        while True:
            wait = None if not self._heap else max(0.0, self._heap[0][0] - time.monotonic()) * 1000
            ready = {descriptor for descriptor, _ in poll.poll(wait)}
            if self._stop in ready:
                return
            for one, other in (self._ends, self._ends[::-1]):
                if one in ready:
                    self._take(one, other)
            while self._heap and self._heap[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._heap)
                try:
                    os.write(end, packet)
                except OSError:  # the interface is down
                    self.dropped += 1

    def _take(self, one: int, other: int) -> None:
        packet = os.read(one, 65536)
        if one == self._ends[0] and _is_call(packet):
            self.calls += 1
        quality, chance = self.quality, self._chance
        too_large = quality.largest is not None and len(packet) > quality.largest
        if quality.cut or too_large or chance.random() < quality.loss:
            self.dropped += 1
            return
        for _ in range(2 if chance.random() < quality.repeat else 1):
            self._number += 1
            due = time.monotonic() + quality.delay + quality.jitter * chance.random()
            heapq.heappush(self._heap, (due, self._number, other, packet))


def _is_call(packet: bytes) -> bool:
    """The first packet of a TCP connection, in IPv4."""
    if packet[0] >> 4 != 4 or packet[9] != _TCP:
        return False
    flags = packet[(packet[0] & 15) * 4 + 13]
    return bool(flags & _SYN) and not flags & _ACK


class Network:
    """Both namespaces; everything goes with the end of the ``with`` block."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._names = {end: f"nixfleet-{end}-{os.getpid()}" for end in (HOST, PLANE)}
        try:
            ends = [self._make(end) for end in (HOST, PLANE)]
            self.wire = Wire((ends[0], ends[1]))
            self._undo.callback(self.wire.close)
        except BaseException:
            self._undo.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @contextlib.contextmanager
    def inside(self, end: str) -> Iterator[None]:
        """The calling thread, and what it makes meanwhile, in the namespace ``end``."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self._names[end]}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
            yield
        finally:
            _enter(before)
            os.close(there)
            os.close(before)

    def link(self, end: str, *, up: bool) -> None:
        """Take the interface of ``end`` down, so that every call fails at once, or up again."""
        _ip("-n", self._names[end], "link", "set", _device(end), "up" if up else "down")

    def _make(self, end: str) -> int:
        name, other, device = self._names[end], ADDRESSES[PLANE if end == HOST else HOST], _device(end)
        _ip("netns", "add", name)
        self._undo.callback(_ip, "netns", "delete", name)
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        self._undo.callback(os.close, tun)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN | _IFF_NO_PI))
        _ip("link", "set", device, "netns", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", ADDRESSES[end], "peer", other, "dev", device)
        _ip("-n", name, "link", "set", device, "up")
        return tun


def _device(end: str) -> str:
    return f"nf{end[0]}{os.getpid()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "can't enter a network namespace")
