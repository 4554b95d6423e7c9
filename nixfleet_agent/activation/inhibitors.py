"""Tells what a running system can't change under itself, so that it takes a reboot."""

from __future__ import annotations

from nixfleet_agent.activation.host import resolve, store_path

#: Replacing these live has killed sessions, lost the bus, or left modules that no longer match.
COMPONENTS = (
    ("dbus", "etc/systemd/system/dbus.service"),
    ("systemd", "sw/lib/systemd/systemd"),
    ("kernel", "kernel"),
)


def inhibitor(store_root: str, running: str | None, target: str) -> str | None:
    """The first component whose file differs between the two closures; one that is missing on a side is none."""
    if running is None:
        return None
    for component, path in COMPONENTS:
        before = resolve(store_root, f"{store_path(running)}/{path}")
        after = resolve(store_root, f"{store_path(target)}/{path}")
        if before is not None and after is not None and before != after:
            return component
    return None
