"""Runs a child in a process group of its own, until it ends, its time is over, or the caller has to leave."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.deadline import Deadline

#: How much of each output is kept: its end. A child that floods can't fill our memory.
KEPT_BYTES = 64 * 1024
#: Longest time until a shutdown, a stall or a deadline is noticed.
SLICE_SECS = 0.1
#: From the friendly signal to the other one; a shutdown has two seconds in all.
GRACE_SECS = 0.5


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended, and the last ``KEPT_BYTES`` of what it said."""

    returncode: int
    stdout: bytes
    stderr: bytes


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    clock: Clock,
    timeout: float,
    check: Callable[[], None],
    on_stderr: Callable[[bytes], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> Finished:
    """Run ``arguments`` to the end. ``check`` is called every ``SLICE_SECS`` and may raise to end the child.

    Args:
        timeout: seconds the child may take.
        on_stderr: given each piece of standard error as it comes.
        on_start: given the child's process id.

    Raises:
        CommandError: no such program, or its time is over.
    """
    try:
        child = subprocess.Popen(  # nosec B603 # no shell; names from outside have their form checked before
            list(arguments),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(
            f"can't run {arguments[0]}: {error.strerror or error}; is it installed and on PATH?"
        ) from error
    if on_start is not None:
        on_start(child.pid)
    try:
        return _follow(child, Deadline(clock, timeout), check, on_stderr)
    except TimeoutError as error:
        raise CommandError(f"{arguments[0]} did not end within {timeout:g} s") from error
    finally:
        _end(child)


def _follow(
    child: subprocess.Popen[bytes],
    deadline: Deadline,
    check: Callable[[], None],
    on_stderr: Callable[[bytes], None] | None,
) -> Finished:
    assert child.stdout is not None and child.stderr is not None
    kept = {child.stdout: bytearray(), child.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(SLICE_SECS)
            for key, _ in ready:
                stream = key.fileobj  # type: ignore[assignment]
                if not _read(stream, kept[stream], on_stderr if stream is child.stderr else None):
                    selector.unregister(stream)
            # Something that outlives the child may hold its output open: its own end is what counts.
            if not ready and child.poll() is not None:
                break
            check()
            if deadline.over:
                raise TimeoutError
    while child.poll() is None:  # it closed its output and goes on
        check()
        if deadline.over:
            raise TimeoutError
        try:
            child.wait(SLICE_SECS)
        except subprocess.TimeoutExpired:
            continue
    return Finished(child.returncode, bytes(kept[child.stdout]), bytes(kept[child.stderr]))


def _read(stream: IO[bytes], kept: bytearray, listener: Callable[[bytes], None] | None) -> bool:
    try:
        piece = os.read(stream.fileno(), KEPT_BYTES)
    except BlockingIOError:
        return True
    kept += piece
    del kept[:-KEPT_BYTES]
    if piece and listener is not None:
        listener(piece)
    return bool(piece)


def _end(child: subprocess.Popen[bytes]) -> None:
    """See the child's end, with everything in its group when it has not ended by itself; leave no zombie."""
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    if child.poll() is not None:
        return
    signal_group(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE_SECS)
    except subprocess.TimeoutExpired:
        pass
    signal_group(child.pid, signal.SIGKILL)
    child.wait()


def signal_group(group: int, number: signal.Signals) -> None:
    """Signal a process group; one that is gone is no error."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
