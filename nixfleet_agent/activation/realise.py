"""Brings a closure into the store: space for it, signatures of it, a root that holds it, and an end to waiting."""

from __future__ import annotations

import os
from pathlib import Path

from nixfleet_agent.activation import nix
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.host import on_disk
from nixfleet_agent.activation.model import EXIT_SIGNATURE_REFUSED
from nixfleet_agent.activation.realise_progress import Progress

PHASE = "realise"
#: A fetch that takes longer than this tells how far it is, this often.
REPORT_SECS = 5.0


def realise(context: Context, closure: str, root: Path) -> None:
    """Fetch the closure where it is missing, check its signatures, and hold it with ``root``.

    Raises:
        PhaseFailed: exit code -2 when signatures were refused, -1 with the reason otherwise.
        PhaseInterrupted: Nix has been ended.
    """
    try:
        if nix.is_valid(context, closure):
            nix.hold(context, closure, root)
            return
        _check_space(context, closure)
        _fetch(context, closure, root)
    except CommandError as error:
        raise PhaseFailed(PHASE, str(error)) from error


def _check_space(context: Context, closure: str) -> None:
    """Refuse a download that would fill the store's disk: a host with a full disk can't be repaired from afar."""
    size = nix.fetch_size(context, closure)
    if size is None:
        return
    store = on_disk(context.config.store_root, closure).parent
    try:
        disk = os.statvfs(store if store.exists() else store.parent.parent)
    except OSError as error:
        context.log.debug("can't tell the free space of %s: %s", store, error.strerror)
        return
    free = disk.f_bavail * disk.f_frsize
    if size.unpacked > free:
        raise PhaseFailed(
            "free-space",
            f"{closure} takes {size.unpacked} bytes in the store, {free} are free: free some and release again",
        )


def _fetch(context: Context, closure: str, root: Path) -> None:
    done, progress = _run(context, closure, root, structured=True)
    if done != 0 and "log-format" in progress.text:  # a Nix before 2.4
        done, progress = _run(context, closure, root, structured=False)
    if done != 0:
        reason = progress.text or f"nix-store --realise ended with {done} and said nothing"
        if progress.refusal is None:
            raise PhaseFailed(PHASE, reason)
        told = reason if progress.refusal in reason else f"{reason}\n{progress.refusal}"
        raise PhaseFailed(PHASE, told, EXIT_SIGNATURE_REFUSED)
    nix.check_root(closure, root)


def _run(context: Context, closure: str, root: Path, *, structured: bool) -> tuple[int, Progress]:
    watch = _Watch(context, closure, reports_bytes=structured)
    done = nix.fetch(
        context,
        closure,
        root,
        structured=structured,
        check=watch.check,
        on_stderr=watch.progress.feed,
        on_start=watch.start,
    )
    return done.returncode, watch.progress


class _Watch:
    """Ends a fetch in which nothing moves, and says how far a long one is.

    Nix's own stall timeout starts again with every byte of one transfer and does not see a daemon that hangs.
    """

    def __init__(self, context: Context, closure: str, *, reports_bytes: bool) -> None:
        self.progress = Progress()
        self._context = context
        self._closure = closure
        self._reports_bytes = reports_bytes
        self._pid: int | None = None
        self._moved = 0
        self._moved_at = self._told_at = context.clock.monotonic()

    def start(self, pid: int) -> None:
        self._pid = pid

    def check(self) -> None:
        self._context.check()
        now = self._context.clock.monotonic()
        if not self._reports_bytes and self._pid is not None:
            self.progress.look_at(self._pid)
        if self.progress.moved != self._moved:
            self._moved, self._moved_at = self.progress.moved, now
        stall = self._context.config.realise_stall_secs
        if now - self._moved_at >= stall:
            raise CommandError(f"no new byte and no new path for {stall:g} s; {self._so_far()}")
        if now - self._told_at >= REPORT_SECS:
            self._told_at = now
            self._context.log.info("fetching: %s", self._so_far(), extra={"closure": self._closure})

    def _so_far(self) -> str:
        return f"{len(self.progress.paths)} paths, {self.progress.bytes} bytes so far"
