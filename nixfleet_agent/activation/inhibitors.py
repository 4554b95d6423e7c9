"""Tells what a running system can't change under itself, so that it takes a reboot.

A closure of NixOS 25.11 or later says so itself: ``switch-inhibitors`` is a JSON object, and a key that both systems
have with different values inhibits a live switch. For closures without that file three parts are compared.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import PhaseFailed
from nixfleet_agent.activation.host import resolve, store_path
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.text import clip, printable

PHASE = "switch-inhibitors"
FILE = "switch-inhibitors"
#: Replacing these live has killed sessions, lost the bus, or left modules that no longer match.
COMPONENTS = (
    ("dbus", "etc/systemd/system/dbus.service"),
    ("systemd", "sw/lib/systemd/systemd"),
    ("kernel", "kernel"),
)
#: The component where a script finds by itself that its system takes effect at the next boot alone.
INIT_INTERFACE = "init-interface"

_MAX_BYTES = 64 * 1024
_NAME_BYTES = 256
#: Keys of ``switch-inhibitors`` that stand for PID 1, D-Bus or the kernel, by their first word.
_CORE = frozenset({"dbus", "systemd", "kernel", "linux", "init"})


@dataclass(frozen=True, slots=True)
class Inhibition:
    """What stands in the way of a live switch: at least one component."""

    components: tuple[str, ...]

    @property
    def component(self) -> str:
        """The components as one word for events, logs and people."""
        return clip(printable(", ".join(self.components)), _NAME_BYTES)

    @property
    def core(self) -> Inhibition | None:
        """What a rollback leaves to a reboot too: PID 1, D-Bus and the kernel. All else is overridden."""
        found = tuple(name for name in self.components if re.split(r"[-_.]", name.lower())[0] in _CORE)
        return Inhibition(found) if found else None


def between(context: Context, running: str | None, target: str) -> Inhibition | None:
    """What inhibits a live switch from ``running`` to ``target``.

    Raises:
        PhaseFailed: the target's file can't be used. That of the running system is only warned of, for a host must
            be able to leave a release that has a bad one.
    """
    if running is None:
        return None
    root = context.config.store_root
    try:
        after = _read(root, target)
    except ProtoError as error:
        raise PhaseFailed(PHASE, f"{target}: {error}") from error
    return _compared(context, running, target, after)


def under(context: Context, running: str | None, prior: str) -> Inhibition | None:
    """What of PID 1, D-Bus and the kernel a live switch back to ``prior`` would replace; never a reason not to go."""
    if running is None:
        return None
    try:
        after = _read(context.config.store_root, prior)
    except ProtoError as error:
        context.log.warning("%s: %s", prior, error, extra={"closure": prior})
        after = None
    found = _compared(context, running, prior, after)
    return found.core if found else None


def _compared(context: Context, running: str, target: str, after: Mapping[str, Any] | None) -> Inhibition | None:
    root = context.config.store_root
    before = None
    if after is not None:
        try:
            before = _read(root, running)
        except ProtoError as error:
            context.log.warning("what runs, %s: %s", running, error, extra={"closure": running})
    if before is None or after is None:
        changed = tuple(name for name, path in COMPONENTS if _differ(root, running, target, path))
    else:
        changed = tuple(sorted(key for key in before.keys() & after.keys() if before[key] != after[key]))
    return Inhibition(changed) if changed else None


def _differ(root: str, running: str, target: str, path: str) -> bool:
    """A file that is missing on a side inhibits nothing."""
    before, after = (resolve(root, f"{store_path(closure)}/{path}") for closure in (running, target))
    return before is not None and after is not None and before != after


def _read(root: str, closure: str) -> Mapping[str, Any] | None:
    """The closure's own inhibitors; None when it has no such file, or one of the first form, a list of store paths.

    Raises:
        ProtoError: it is neither.
    """
    place = resolve(root, f"{store_path(closure)}/{FILE}")
    if place is None:
        return None
    try:
        with Path(root + place).open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise ProtoError(f"{FILE} can't be read: {error.strerror}") from error
    if raw and all(line.startswith(b"/nix/store/") for line in raw.split()):
        return None
    found = loads_strict(raw, limit=_MAX_BYTES, what=FILE)
    if not isinstance(found, dict):
        raise ProtoError(f"{FILE} is no JSON object: {clip(printable(found), _NAME_BYTES)}")
    return found
