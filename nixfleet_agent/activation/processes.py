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
    """How a child ended, and the end of what it said: at most ``KEPT_BYTES`` of each output, unless asked for more."""

    returncode: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class _Terms:
    """How long a child may take, who looks on, and how much of its standard output is kept."""

    clock: Clock
    timeout: float
    check: Callable[[], None]
    on_stderr: Callable[[bytes], None] | None = None
    on_start: Callable[[int], None] | None = None
    kept: int = KEPT_BYTES


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
    return _run(arguments, environment, _Terms(clock, timeout, check, on_stderr, on_start))


def read(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    clock: Clock,
    timeout: float,
    check: Callable[[], None],
    limit: int,
) -> Finished:
    """``run`` for a child whose whole answer counts, up to ``limit`` bytes of it.

    Raises:
        CommandError: as ``run``, and for an answer that is longer.
    """
    done = _run(arguments, environment, _Terms(clock, timeout, check, kept=limit + 1))
    if len(done.stdout) > limit:
        raise CommandError(f"{arguments[0]} answered with more than {limit} bytes")
    return done


def _run(arguments: Sequence[str], environment: Mapping[str, str], terms: _Terms) -> Finished:
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
    try:
        if terms.on_start is not None:
            terms.on_start(child.pid)
        return _follow(child, Deadline(terms.clock, terms.timeout), terms)
    except TimeoutError as error:
        raise CommandError(f"{arguments[0]} did not end within {terms.timeout:g} s") from error
    finally:
        _end(child)


def _follow(child: subprocess.Popen[bytes], deadline: Deadline, terms: _Terms) -> Finished:
    assert child.stdout is not None and child.stderr is not None
    limits = {child.stdout: terms.kept, child.stderr: KEPT_BYTES}
    kept = {child.stdout: bytearray(), child.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(SLICE_SECS)
            for key, _ in ready:
                stream = key.fileobj  # type: ignore[assignment]
                listener = terms.on_stderr if stream is child.stderr else None
                if not _read(stream, kept[stream], limits[stream], listener):
                    selector.unregister(stream)
            # Something that outlives the child may hold its output open: its own end is what counts.
            if not ready and child.poll() is not None:
                break
            terms.check()
            if deadline.over:
                raise TimeoutError
    while child.poll() is None:  # it closed its output and goes on
        terms.check()
        if deadline.over:
            raise TimeoutError
        try:
            child.wait(SLICE_SECS)
        except subprocess.TimeoutExpired:
            continue
    return Finished(child.returncode, bytes(kept[child.stdout]), bytes(kept[child.stderr]))


def _read(stream: IO[bytes], kept: bytearray, limit: int, listener: Callable[[bytes], None] | None) -> bool:
    try:
        piece = os.read(stream.fileno(), KEPT_BYTES)
    except BlockingIOError:
        return True
    kept += piece
    del kept[:-limit]
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
