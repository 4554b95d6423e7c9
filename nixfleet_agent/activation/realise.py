"""Brings a closure into the store: space for it, signatures of it, a root that holds it, and an end to waiting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nixfleet_agent.activation import failures, nix
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.host import on_disk
from nixfleet_agent.activation.model import EXIT_SIGNATURE_REFUSED, EXIT_UNKNOWN
from nixfleet_agent.activation.patience import Patience
from nixfleet_agent.activation.realise_progress import Progress

PHASE = "realise"
#: A fetch that takes longer than this tells how far it is, this often.
REPORT_SECS = 5.0


def realise(context: Context, closure: str, root: Path, patience: Patience | None = None) -> None:
    """Fetch the closure where it is missing, check its signatures, and hold it with ``root``.

    With ``patience`` what can pass (a cache that fails, a closure that is still being uploaded, a busy database) is
    tried again.

    Raises:
        PhaseFailed: exit code -2 when signatures were refused, -1 with the reason otherwise.
        PhaseInterrupted: Nix has been ended.
    """
    fetch = _Fetch(context, closure, root, patience)
    try:
        if patience is None:
            fetch.attempt()
        else:
            patience.persist(fetch.attempt)
    except CommandError as error:
        raise PhaseFailed(error.phase or PHASE, str(error), error.exit_code) from error


class _Fetch:
    """The tries of one closure. Where a cache fails and there are others, those are asked without it at once.

    Nix itself gives up when the first cache answers a question about a path with an error, and with ``fallback`` some
    versions abort (2.8 does).
    """

    def __init__(self, context: Context, closure: str, root: Path, patience: Patience | None) -> None:
        self._context = context
        self._closure = closure
        self._root = root
        self._patience = patience
        self._structured = True

    def attempt(self) -> None:
        """Raises CommandError."""
        if nix.hold(self._context, self._closure, self._root):
            return
        _check_space(self._context, self._closure)
        done, progress = self._run()
        if done != 0 and self._structured and "log-format" in progress.text:  # a Nix before 2.4
            self._structured = False
            done, progress = self._run()
        if done != 0 and (options := self._without_broken(progress.text)):
            first = progress
            done, progress = self._run(options)
            progress.refusal = progress.refusal or first.refusal
            if done != 0 and failures.classify(first.text).passes:
                raise _failed(done, f"{first.text}\n{progress.text}", progress.refusal)
        if done != 0:
            raise _failed(done, progress.text, progress.refusal)
        nix.check_root(self._closure, self._root)

    def _run(self, options: Sequence[str] = ()) -> tuple[int, Progress]:
        context, patience = self._context, self._patience
        watch = _Watch(context, self._closure, reports_bytes=self._structured)
        timeout = context.config.realise_timeout_secs if patience is None else max(patience.left, 0.0)
        form = ("--log-format", "internal-json") if self._structured else ()
        done = nix.fetch(context, self._closure, self._root, options=(*options, *form), timeout=timeout, watch=watch)
        return done.returncode, watch.progress

    def _without_broken(self, text: str) -> Sequence[str]:
        """The options that ask all caches but those that failed; none when there are no others."""
        if "unable to " not in text:
            return ()
        caches = nix.substituters(self._context)
        broken = failures.broken_caches(text, caches)
        others = [cache for cache in caches if cache not in broken]
        if not broken or not others:
            return ()
        self._context.log.info("asking the caches but %s", ", ".join(broken), extra={"closure": self._closure})
        return ("--option", "substituters", " ".join(others))


def _failed(code: int, text: str, refusal: str | None) -> CommandError:
    reason = text or f"nix-store --realise ended with {code} and said nothing"
    if refusal is not None and refusal not in reason:
        reason = f"{reason}\n{refusal}"
    exit_code = EXIT_UNKNOWN if refusal is None else EXIT_SIGNATURE_REFUSED
    return CommandError(reason, exit_code=exit_code)


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
        message = f"{closure} takes {size.unpacked} bytes in the store, {free} are free: free some and release again"
        raise CommandError(message, failure=_full(message), phase="free-space")


def _full(message: str) -> failures.Failure:
    row = failures.DISK
    return failures.Failure(row.kind, row.passes, row.meaning, message)


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

    def on_start(self, pid: int) -> None:
        self._pid = pid

    def on_stderr(self, piece: bytes) -> None:
        self.progress.feed(piece)

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
