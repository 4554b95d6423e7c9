"""The exec runner: one child in a process group of its own, which ends, whole, before the run does."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
from contextlib import ExitStack
from typing import IO

from nixfleet_agent.probes.declarations import ExecDecl
from nixfleet_agent.probes.runners.context import RunnerContext
from nixfleet_agent.probes.runners.outcome import RunnerOutcome, failed, passed
from nixfleet_agent.text import clip_tail
from nixfleet_agent.threads.deadline import Deadline
from nixfleet_agent.threads.interrupts import held

#: How much of the end of the output goes into a reason.
TAIL_BYTES = 300
_CHUNK = 64 * 1024
#: Past this much output the pipe is emptied slowly: a child that floods it is held back instead of fed by a busy core.
_FLOOD_BYTES = 1024 * 1024
_FLOOD_PAUSE = 0.01
#: How long a killed child may take to be gone; only one stuck in the kernel needs more.
_KILL_SECS = 2.0
#: Where the kernel can't report a child's end on a descriptor, it is asked this often.
_POLL_SECS = 0.05
#: poll(2) takes no more than 2^31 ms, 24 days; whoever waits looks at the time anyway.
_LONGEST_POLL_SECS = 3600.0
#: What the service manager says to the agent alone. With NOTIFY_SOCKET a child could feed the agent's own watchdog.
_PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "NIXFLEET_")


def run(decl: ExecDecl, ctx: RunnerContext) -> RunnerOutcome:
    """Run the command without a shell and without input; pass when it ends in time with the expected exit code."""
    deadline = Deadline(ctx.clock, decl.timeout)
    with ExitStack() as stack:
        try:
            with held():  # a command that is interrupted here must know its child
                process = _start(decl)
                child = stack.enter_context(_Child(process))
        except (OSError, ValueError) as error:
            return failed(f"can't run {decl.command[0]}: {getattr(error, 'strerror', None) or error}")
        with ctx.cancel.calling(child.kill_group):
            in_time = child.watch(deadline, ctx)
            child.kill_group()  # after a normal end, too: what it left running in its group
        if not in_time and not child.watch(Deadline(ctx.clock, _KILL_SECS), ctx):
            ctx.unreaped.adopt(process)
            return failed(f"killed after {decl.timeout:g} s and not gone yet: it is stuck in the kernel")
        child.drain()
        code = process.wait()
    if ctx.cancel.is_set:
        return failed("stopped")
    if not in_time:
        return failed(f"no end within {decl.timeout:g} s: killed{child.said()}")
    if code == decl.expect_exit_code:
        return passed()
    return failed(f"{_ended_how(code)}, expected exit code {decl.expect_exit_code}{child.said()}")


def _start(decl: ExecDecl) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_PRIVATE)}
    return subprocess.Popen(  # nosec B603 # the command that the host's owner declared, without a shell
        decl.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        cwd="/",
        env=environment,
        start_new_session=True,
    )


def _ended_how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {int(number): number.name for number in signal.Signals}
    return f"ended by signal {names.get(-code, -code)}"


class _Child:
    """A running child: its end, seen without reaping it, and the end of its output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._tail = b""
        self._seen_bytes = 0
        self._output: IO[bytes] | None = process.stdout
        self._exit: int | None = None

    def __enter__(self) -> _Child:
        assert self._output is not None  # a pipe was asked for
        os.set_blocking(self._output.fileno(), False)
        try:
            self._exit = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):
            self._exit = None  # an old kernel, another system: the child is asked now and then
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None:
            self.kill_group()
        self._close_output()
        if self._exit is not None:
            os.close(self._exit)

    def kill_group(self) -> None:
        """Only before the child is reaped: until then its id, and so its group's, belongs to nobody else."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nothing of the group is left (some systems say EPERM when only the unreaped leader is)

    def watch(self, deadline: Deadline, ctx: RunnerContext) -> bool:
        """Read output until the child has ended: True; False at the deadline."""
        while not self._ended():
            if deadline.over:
                return False
            if self._seen_bytes > _FLOOD_BYTES and not ctx.cancel.is_set:
                ctx.clock.wait(ctx.cancel.event, _FLOOD_PAUSE)
            self._wait(max(0.0, deadline.ends - ctx.clock.monotonic()))
        return True

    def drain(self) -> None:
        """What is in the pipe already; a process that left the group may hold it open for ever."""
        for _ in range(_FLOOD_BYTES // _CHUNK):
            if not self._read():
                return

    def said(self) -> str:
        """The end of the output on one line, for a reason."""
        words = " ".join(clip_tail(self._tail, TAIL_BYTES).split())
        return f": {words}" if words else ""

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        if self._output is not None:
            poll.register(self._output, select.POLLIN)
        if self._exit is not None:
            poll.register(self._exit, select.POLLIN)
        else:
            seconds = min(seconds, _POLL_SECS)
        ready = {descriptor for descriptor, _ in poll.poll(math.ceil(min(seconds, _LONGEST_POLL_SECS) * 1000))}
        if self._output is not None and self._output.fileno() in ready:
            self._read()

    def _read(self) -> bool:
        """Take one piece of output; False when there is none now or there will be none."""
        if self._output is None:
            return False
        piece = self._output.read(_CHUNK)
        if not piece:
            if piece is not None:  # its end; None says "nothing now"
                self._close_output()
            return False
        self._seen_bytes += len(piece)
        self._tail = (self._tail + piece)[-4 * TAIL_BYTES :]
        return True

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None
