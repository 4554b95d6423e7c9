"""Looks on while something is fetched before its turn: keeps it gentle, within its bounds, and only while wanted."""

from __future__ import annotations

from collections.abc import Callable

from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.realise_progress import Progress
from nixfleet_agent.prefetch import gentle
from nixfleet_agent.prefetch.handover import Download

#: Seconds between two looks at the disk, and between two looks whether it is still wanted.
LOOK_SECS, WANTED_SECS = 1.0, 5.0


class Oversight:
    """Of one download. ``show`` is given the bytes so far; ``wanted`` says why it no longer is, None: it is."""

    def __init__(
        self,
        context: Context,
        download: Download,
        room: gentle.Room,
        show: Callable[[int], None],
        wanted: Callable[[], str | None],
    ) -> None:
        self._context = context
        self._download = download
        self._room = room
        self._show = show
        self._wanted = wanted
        self._group = 0
        self._hurries = False
        self._looked_at = self._asked_at = context.clock.monotonic()

    def on_start(self, pid: int) -> None:
        """Nix runs, and leads a process group."""
        self._group, self._hurries = pid, False
        gentle.lower(self._context, pid)

    def look(self, progress: Progress) -> None:
        """Several times a second.

        Raises:
            CommandError: too little room is left, or a cache sends more than it has announced.
            PhaseInterrupted: it is not wanted any more.
        """
        self._download.progress = progress
        self._room.check_flood(progress.bytes)
        now = self._context.clock.monotonic()
        if now - self._looked_at >= LOOK_SECS:
            self._looked_at = now
            self._show(progress.bytes)
        if self._download.taken_over:
            self._hurry()
            return
        if now == self._looked_at:
            self._room.check()
        if now - self._asked_at >= WANTED_SECS:
            self._asked_at = now
            if (reason := self._wanted()) is not None:
                raise PhaseInterrupted(reason)

    def _hurry(self) -> None:
        if not self._hurries:
            self._hurries = True
            gentle.restore(self._context, self._group)
