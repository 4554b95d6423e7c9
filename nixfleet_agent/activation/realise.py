"""Brings a closure into the store: space for it, signatures of it, a root that holds it, and an end to waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.activation import failures, nix, processes
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.host import STORE
from nixfleet_agent.activation.model import EXIT_SIGNATURE_REFUSED, EXIT_UNKNOWN
from nixfleet_agent.activation.patience import Patience
from nixfleet_agent.activation.realise_progress import Progress

PHASE = "realise"
#: A fetch that takes longer than this tells how far it is, this often.
REPORT_SECS = 5.0


def _anything(size: nix.FetchSize | None) -> None:
    """No further condition on what is fetched."""


def _nobody_asks(pid: int) -> None:
    """Nobody has to know Nix's process."""


def _nobody_looks(progress: Progress) -> None:
    """Nobody looks on."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a fetch differs from that of a rollout whose turn it is.

    Args:
        options: further ones for Nix.
        longest_secs: what it may take; None: ``realise_timeout_secs``.
        report_secs: how often a long one is logged.
        admit: given what it takes, None where Nix does not tell; may raise CommandError to refuse it.
        on_start: given the process id of Nix, which leads a process group.
        look: given the progress, several times a second; may raise to end it.
    """

    options: Sequence[str] = ()
    longest_secs: float | None = None
    report_secs: float = REPORT_SECS
    admit: Callable[[nix.FetchSize | None], None] = _anything
    on_start: Callable[[int], None] = _nobody_asks
    look: Callable[[Progress], None] = _nobody_looks


def realise(
    context: Context, closure: str, root: Path, patience: Patience | None = None, manner: Manner | None = None
) -> None:
    """Fetch the closure where it is missing, check its signatures, and hold it with ``root``.

    With ``patience`` what can pass (a cache that fails, a closure that is still being uploaded, a busy database) is
    tried again. A download of the same closure that runs already is waited for, not done twice.

    Raises:
        PhaseFailed: exit code -2 when signatures were refused, -1 with the reason otherwise.
        PhaseInterrupted: Nix has been ended.
    """
    fetch = _Fetch(context, closure, root, patience, manner or Manner())
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

    def __init__(self, context: Context, closure: str, root: Path, patience: Patience | None, manner: Manner) -> None:
        self._context = context
        self._closure = closure
        self._root = root
        self._patience = patience
        self._manner = manner
        self._structured = True

    def attempt(self) -> None:
        """Raises CommandError."""
        if nix.hold(self._context, self._closure, self._root):
            return
        if self._took_over() and nix.hold(self._context, self._closure, self._root):
            return
        size = nix.fetch_size(self._context, self._closure)
        _check_space(self._context, self._closure, size)
        self._manner.admit(size)
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

    @property
    def _left(self) -> float:
        """Seconds that are left for it."""
        if self._patience is not None:
            return max(self._patience.left, 0.0)
        longest = self._manner.longest_secs
        return self._context.config.realise_timeout_secs if longest is None else longest

    def _run(self, options: Sequence[str] = ()) -> tuple[int, Progress]:
        manner = self._manner
        watch = _Watch(self._context, self._closure, manner, reports_bytes=self._structured)
        form = ("--log-format", "internal-json") if self._structured else ()
        options = (*manner.options, *options, *form)
        done = nix.fetch(self._context, self._closure, self._root, options=options, timeout=self._left, watch=watch)
        return done.returncode, watch.progress

    def _took_over(self) -> bool:
        """Wait for the download of this closure that runs already; False where none does. However it ends, it is over.

        Raises:
            CommandError: nothing moves in it, or the time is over; it has been told to end.
            PhaseInterrupted: the same.
        """
        context = self._context
        running = context.running_download(self._closure)
        if running is None:
            return False
        context.log.info("taking over the download that runs", extra={"closure": self._closure})
        watch = _Watch(context, self._closure, self._manner, reports_bytes=True)
        ends = context.clock.monotonic() + self._left
        try:
            while not context.clock.wait(running.ended, processes.SLICE_SECS):
                watch.progress = running.progress
                watch.check()
                if context.clock.monotonic() >= ends:
                    raise CommandError(f"the download of {self._closure} did not end in time")
        finally:
            running.abandon()
        return True

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


def store_disk(context: Context) -> os.statvfs_result | None:
    """The file system of the store; None where it can't be told."""
    store = Path(context.config.store_root + STORE)
    try:
        return os.statvfs(store if store.exists() else store.parent.parent)
    except OSError as error:
        context.log.debug("can't tell the free space of %s: %s", store, error.strerror)
        return None


def _check_space(context: Context, closure: str, size: nix.FetchSize | None) -> None:
    """Refuse a download that would fill the store's disk: a host with a full disk can't be repaired from afar."""
    disk = store_disk(context)
    if size is None or disk is None:
        return
    free = disk.f_bavail * disk.f_frsize
    if size.unpacked > free:
        message = f"{closure} takes {size.unpacked} bytes in the store, {free} are free: free some and release again"
        raise no_space(message)


def no_space(message: str) -> CommandError:
    """A download that the disk has no room for."""
    row = failures.DISK
    failure = failures.Failure(row.kind, row.passes, row.meaning, message)
    return CommandError(message, failure=failure, phase="free-space")


class _Watch:
    """Ends a fetch in which nothing moves, and says how far a long one is.

    Nix's own stall timeout starts again with every byte of one transfer and does not see a daemon that hangs.
    """

    def __init__(self, context: Context, closure: str, manner: Manner, *, reports_bytes: bool) -> None:
        self.progress = Progress()
        self._context = context
        self._closure = closure
        self._manner = manner
        self._reports_bytes = reports_bytes
        self._pid: int | None = None
        self._moved = 0
        self._moved_at = self._told_at = context.clock.monotonic()

    def on_start(self, pid: int) -> None:
        self._pid = pid
        self._manner.on_start(pid)

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
        self._manner.look(self.progress)
        if now - self._told_at >= self._manner.report_secs:
            self._told_at = now
            self._context.log.info("fetching: %s", self._so_far(), extra={"closure": self._closure})

    def _so_far(self) -> str:
        return f"{len(self.progress.paths)} paths, {self.progress.bytes} bytes so far"
