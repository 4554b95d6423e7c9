"""Keeps a download out of everybody's way: lowest priority, a limited rate, and room left on the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nixfleet_agent.activation import nix
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.realise import no_space, store_disk
from nixfleet_agent.config.model import PrefetchConfig

NICEST = 19
#: The I/O classes of ionice(1).
_NO_CLASS, _IDLE = "0", "3"
_PRIORITY_SECS = 10.0
#: How much more than announced a cache may send: headers, retries.
_SLACK = 1.1
_SLACK_BYTES = 1024 * 1024


def lower(context: Context, group: int) -> None:
    """Lowest priority for CPU and disk to every process of the group, and to those that it starts."""
    _prioritise(context, group, NICEST, _IDLE)


def restore(context: Context, group: int) -> None:
    """The agent's own priority again: what is fetched has its turn now."""
    _prioritise(context, group, os.getpriority(os.PRIO_PROCESS, 0), _NO_CLASS)


def _prioritise(context: Context, group: int, niceness: int, io_class: str) -> None:
    """By the programs of util-linux; without them the download is only not as gentle."""
    for command in (["renice", "-n", f"{niceness}", "-g", f"{group}"], ["ionice", "-c", io_class, "-P", f"{group}"]):
        try:
            done = context.run(command, timeout=_PRIORITY_SECS)
        except CommandError as error:
            context.log.debug("no other priority for a download: %s", error)
            continue
        if done.returncode != 0:
            context.log.debug("no other priority for a download: %s", nix.said_by(done))


class Rate:
    """``prefetch.max_rate`` as options of Nix, where it has the setting; asked until Nix tells."""

    def __init__(self, context: Context, config: PrefetchConfig) -> None:
        self._context = context
        self._limit = ("--option", nix.SPEED_SETTING, f"{max(1, round(config.max_rate))}")
        self._options: Sequence[str] | None = None if config.max_rate else ()

    def options(self) -> Sequence[str]:
        """Empty where nothing is limited; that a limit can't be kept is said once."""
        if self._options is None:
            has_it = nix.limits_speed(self._context)
            if has_it is None:
                return self._limit  # a Nix without the setting only warns of it
            self._options = self._limit if has_it else ()
            if not has_it:
                self._context.log.warning(NO_LIMIT)
        return self._options


NO_LIMIT = f"prefetch.max_rate has no effect: this Nix has no setting {nix.SPEED_SETTING}"


class Room:
    """``prefetch.min_free``: what must stay free on the store's disk, before and while something is fetched."""

    def __init__(self, context: Context, min_free: float) -> None:
        self._context = context
        self._min_free = min_free
        self._total: int | None = None

    @property
    def total(self) -> int | None:
        """Bytes that the download in hand takes, where Nix tells."""
        return self._total

    def admit(self, size: nix.FetchSize | None) -> None:
        """Raises CommandError where too little would be left."""
        self._total = None if size is None else size.download
        self.check(0 if size is None else size.unpacked)

    def check(self, needed: int = 0) -> None:
        """Raises CommandError where less than the minimum is left, ``needed`` bytes taken off."""
        disk = store_disk(self._context)
        if disk is None:
            return
        free, least = disk.f_bavail * disk.f_frsize - needed, self._min_free * disk.f_blocks * disk.f_frsize
        if free < least:
            takes = f"it takes {needed} bytes, and " if needed else ""
            raise no_space(
                f"{takes}{max(0, free)} bytes would be left on the store's disk, prefetch.min_free asks for {least:.0f}"
            )
        if disk.f_files and disk.f_favail < self._min_free * disk.f_files:
            raise no_space(
                f"{disk.f_favail} inodes are left on the store's disk, prefetch.min_free asks for "
                f"{self._min_free * disk.f_files:.0f}"
            )

    def check_flood(self, fetched: int) -> None:
        """Raises CommandError where a cache sends more than it has announced."""
        if self._total is not None and fetched > self._total * _SLACK + _SLACK_BYTES:
            raise CommandError(
                f"the caches announced {self._total} bytes, and {fetched} have come: one sends without end"
            )
