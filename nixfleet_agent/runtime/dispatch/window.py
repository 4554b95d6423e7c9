"""How long the next long poll may hold: less where something between cuts quiet connections. Pure; time is passed in.

A NAT that forgets a connection after 30 s loses the Dispatch that is handed out after 40, and its answer never comes.
So a poll that died of its quiet is followed by a short one. Where that is answered, it was the quiet and not the
control plane, and the window narrows; a hung control plane is not asked more often by all its hosts for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: What the poll after one that died asks for, and the least life of one that died of quiet, in seconds.
_SHORT = 1.0
_QUIET = 2.0
#: No narrower than this (seconds), or a quarter of what is configured where that is less: polls cost the control plane.
_NARROWEST = 5.0
#: Two polls that were cut within this part of the time that they lived were cut by the same hand.
_ALIKE = 0.2
#: Of the time after which polls are cut, what the next ones ask for.
_MARGIN = 0.75
#: A narrowed window is tried wider after so many seconds, and after twice as many each time that it does not hold.
_PATIENCE = 3600.0
_LONGEST_PATIENCE = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Cut:
    """A poll that died after ``lived`` seconds: ``silently`` until its deadline, or with the end of its connection."""

    lived: float
    silently: bool


@dataclass(frozen=True, slots=True)
class PollWindow:
    """What polls ask for (``wait``) of what is configured (``longest``), in seconds."""

    longest: float
    wait: float
    #: After how many seconds of quiet polls are cut, as far as is known; None while none was.
    cut_after: float | None = None
    #: The last poll, where it died; whether it was for its quiet, the next one will tell.
    suspect: Cut | None = None
    #: The last connection that was ended in its quiet: once, that is a control plane that was restarted.
    ended: float | None = None
    patience: float = _PATIENCE
    since: float = 0.0

    @classmethod
    def of(cls, longest: float) -> PollWindow:
        """As configured: nothing is known of what lies between."""
        return cls(longest, longest)

    @property
    def ask(self) -> float:
        """Seconds that the next poll may hold."""
        return self.wait if self.suspect is None else min(_SHORT, self.wait)

    def told(self, *, shorter: bool) -> str:
        """What to say of a window that has changed to this one."""
        if not shorter:
            return f"long polls ask for {self.wait:.0f} s again, to see whether they still are cut"
        return (
            f"long polls are cut by something between after about {self.cut_after or 0:.0f} s of quiet: from now on "
            f"they ask for {self.wait:.0f} s"
        )

    def died(self, asked: float, lived: float, *, silently: bool) -> PollWindow:
        """A poll that asked for ``asked`` seconds got no answer for ``lived``."""
        if self.suspect is not None or lived < min(_QUIET, asked / 2):
            return replace(self, suspect=None)  # nobody is there, quiet or not
        return replace(self, suspect=Cut(min(lived, asked), silently))

    def answered(self, lived: float, now: float) -> PollWindow:
        """A poll was answered after ``lived`` seconds; ``now`` is monotonic."""
        cut = self.suspect
        if cut is not None:
            return self._narrowed(cut, now)
        held_long = now - self.since >= self.patience and lived >= self.wait / 2
        if self.wait >= self.longest or not held_long:
            return self
        return replace(self, wait=min(self.longest, 2 * self.wait), ended=None, since=now)

    def _narrowed(self, cut: Cut, now: float) -> PollWindow:
        if not cut.silently and (self.ended is None or abs(cut.lived - self.ended) > _ALIKE * cut.lived):
            return replace(self, suspect=None, ended=cut.lived)
        narrowest = min(_NARROWEST, self.longest / 4)
        wait = max(narrowest, cut.lived / 2 if cut.silently else _MARGIN * cut.lived)
        patience = self.patience if self.cut_after is None else min(_LONGEST_PATIENCE, 2 * self.patience)
        return PollWindow(self.longest, min(wait, self.wait), cut.lived, None, None, patience, now)
