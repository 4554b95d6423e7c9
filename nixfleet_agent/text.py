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


def byte_size(count: int) -> str:
    """A number of bytes for people: ``412 B``, ``96.3 MiB``."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def byte_delta(count: int) -> str:
    """The same with a sign: ``+96.3 MiB``; nothing for no difference."""
    return f"{'+' if count > 0 else ''}{byte_size(count)}" if count else ""
