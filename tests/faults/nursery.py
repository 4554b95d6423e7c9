"""Agents without the price of their imports: one process has imported everything, and forks an agent when asked to.

What is forked is the daemon from its command line on, in a process of its own; only the start of Python is spared,
and its end, for taking the interpreter apart touches, and so copies, every page of what was imported (87 ms). Whoever
cares about start or end begins an agent with exec.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent.parent
_STATUS = struct.Struct("i")
_REQUEST_LIMIT = 1 << 20


class Child:
    """An agent's process, as much like ``subprocess.Popen`` as the harness needs."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self.returncode: int | None = None
        #: Its id, which stays its own until its end was seen: whoever forked it waits for it only then.
        self.pid: int = _STATUS.unpack(_exactly(channel, _STATUS.size))[0]

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
                self._take()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        with self._lock:
            if self.returncode is None:
                if not select.select([self._channel], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("agent", timeout or 0.0)
                self._take()
            assert self.returncode is not None
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _take(self) -> None:
        self.returncode = _STATUS.unpack(_exactly(self._channel, _STATUS.size))[0]
        self._channel.close()


class ForkServer:
    """The harness's end. ``close`` ends the process that forks."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": str(TOP)},
            cwd=TOP,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(self, config: Path, environment: Mapping[str, str], log: Path) -> Child:
        """``python -m tests.faults.agent CONFIG`` in a session of its own, its output appended to ``log``."""
        ours, theirs = socket.socketpair()
        request = json.dumps([str(config), dict(environment), str(log)], ensure_ascii=True).encode()
        with theirs, self._lock:
            socket.send_fds(self._channel, [request], [theirs.fileno()])
        return Child(ours)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = channel.recv(size, socket.MSG_WAITALL)
    if len(data) != size:
        raise ChildProcessError("the nursery is gone")
    return data


# -- the process that forks: one thread, so that nothing is held by another one when it does ---------------------------


def serve(channel: socket.socket) -> int | None:
    """Fork as asked to. Returns in the forked agent with its exit code, in this process with None at the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        request, descriptors = _receive(channel)
        if not request:
            return None
        with socket.socket(fileno=descriptors[0]) as line:
            if os.fork() == 0:
                channel.close()
                return _keep(line, *json.loads(request))


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    received = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(_REQUEST_LIMIT, socket.CMSG_LEN(received.itemsize))
    for _, _, content in ancillary:
        received.frombytes(content)
    return data, list(received)


def _keep(line: socket.socket, config: str, environment: Mapping[str, str], log: str) -> int | None:
    """Fork the agent, say its pid, wait for its end and say that. Returns only in the agent."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ready, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ready)
        line.sendall(_STATUS.pack(pid))
        os.close(go)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # only where WNOHANG is said
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        # Reaped only once the harness knows: until then the pid is nobody else's.
        with contextlib.suppress(OSError):
            line.sendall(_STATUS.pack(code))
            line.recv(1)
        os.waitpid(pid, 0)
        os._exit(0)
    os.close(go)
    os.read(ready, 1)
    os.close(ready)
    line.close()
    return _agent(config, environment, log)


def _agent(config: str, environment: Mapping[str, str], log: str) -> int:
    """What exec would have begun."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from tests.faults.agent import main

    code = main(config)
    # The interpreter would wait for any other thread; it does so here as well.
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)
    return code


def _main(descriptor: int) -> Any:
    from nixfleet_agent.commands import run  # noqa: F401
    from nixfleet_agent.runtime.lean import ENCODING_GUESSERS, SECOND_OPENSSL, without

    with without(*ENCODING_GUESSERS, *SECOND_OPENSSL):
        from nixfleet_agent.config import schema  # noqa: F401
        from nixfleet_agent.runtime import daemon  # noqa: F401
    import tests.faults.agent  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is here is garbage never: a collection in an agent would copy every page of it, 26 ms each time.
    gc.collect()
    gc.freeze()
    return serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1])))
