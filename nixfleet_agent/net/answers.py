"""What the control plane answered, and what its headers ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from nixfleet_agent.net.verdict import Verdict, classify, describe
from nixfleet_agent.text import FOREIGN_LIMIT, printable

#: Longest wait that a `Retry-After` can ask for, in seconds: a control plane must not silence a host for a week.
LONGEST_RETRY_AFTER = 600.0
_REPLAY_SEQ = re.compile(r"[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer with any status. ``headers`` ignores case; ``body`` is decompressed and within its limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def verdict(self) -> Verdict:
        """Whose answer it is, where no signed artifact was asked for."""
        return classify(self.status, self.headers, self.body)

    def told(self, limit: int = 200) -> str:
        """The status and what was said with it, safe to show: the title of a page, not its markup."""
        if self.body[:limit].lstrip().startswith(b"<"):
            return describe(self.status, self.headers, self.body)
        words = self.excerpt(limit)
        return f"status {self.status}: {words}" if words else f"status {self.status}"

    def excerpt(self, limit: int = FOREIGN_LIMIT) -> str:
        """The beginning of the body, safe to show."""
        return printable(self.body[:limit].decode("utf-8", "replace"), limit)


def retry_after(answer: Answer, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, at most ten minutes; None without one.

    RFC 9110, section 10.2.3. A date in the past is 0.0; a value that is neither seconds nor a date counts as absent.
    """
    value = answer.headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return LONGEST_RETRY_AFTER if len(value) > 6 else min(float(value), LONGEST_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(value[:64])
    except (ValueError, OverflowError):
        # The standard library lets a year or an offset of twenty digits overflow.
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return min(max(0.0, (at - now).total_seconds()), LONGEST_RETRY_AFTER)


def replay_from(answer: Answer) -> int | None:
    """The seq of an `X-Nixfleet-Replay-From` header; None when there is none or it is no unsigned integer."""
    value = answer.headers.get("X-Nixfleet-Replay-From", "").strip()
    return int(value) if _REPLAY_SEQ.fullmatch(value) else None
