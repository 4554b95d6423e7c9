"""Foreign text made safe to show: cut at a whole character, control characters escaped."""

from __future__ import annotations

#: Longest string from outside that is shown or logged, in UTF-8 bytes.
FOREIGN_LIMIT = 2048


def clip(text: str, limit: int, mark: str = "") -> str:
    """Cut ``text`` to at most ``limit`` UTF-8 bytes at a whole character; ``mark`` follows only when it was cut."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return text
    return raw[:limit].decode("utf-8", "ignore") + mark


def clip_tail(raw: bytes, limit: int) -> str:
    """The last ``limit`` bytes of ``raw`` as text, starting at a whole character."""
    tail = raw[-limit:] if limit else b""
    while tail and tail[0] & 0xC0 == 0x80 and len(raw) > limit:
        tail = tail[1:]
    return tail.decode("utf-8", "replace")


def printable(text: object, limit: int = FOREIGN_LIMIT) -> str:
    """``text`` with everything a terminal or a log reader could act on escaped, cut to ``limit`` bytes.

    An ESC or a newline in a string of the control plane would forge log lines or drive the operator's terminal.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return clip(shown, limit, "...")
