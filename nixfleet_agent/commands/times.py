"""Times and lengths as people read them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone


def local_time(at: datetime | None) -> str:
    """``2026-05-16 03:30:00 CEST``, in this machine's zone; empty for None."""
    try:
        return at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if at else ""
    except OverflowError:
        # A control plane may name the last second of the year 9999, which local time does not have everywhere.
        return utc_time(at) if at else ""


def utc_time(at: datetime) -> str:
    """``2026-05-16 01:30:00Z``."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def length(span: timedelta | float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``5 days``: the two largest units, never negative."""
    seconds = max(0, int(span.total_seconds() if isinstance(span, timedelta) else span))
    if seconds < 120:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} days"


def ago(at: datetime, now: datetime) -> str:
    """``12 min ago``, or ``in 12 min`` for what is to come."""
    return f"{length(now - at)} ago" if at <= now else f"in {length(at - now)}"
