"""A load balancer that is a folder, and the hooks by which a host leaves it before a switch and comes back after it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent import durable

#: What the hooks note in the host's log of switches, before the closure that it is about.
DRAIN, UNDRAIN = "drain", "undrain"
DRAIN_HOOK, UNDRAIN_HOOK = "10-drain", "10-undrain"
#: The moments after which a host may have clients again.
BACK = ("converged", "reverted")

_DRAIN = """#!/bin/sh
# Takes this host out of the load balancer; the switch waits until its last client has left.
if [ -e {served} ]; then
    rm {served}
    echo "{word} $NIXFLEET_TARGET_CLOSURE" >>"$SWITCH_LOG"
fi
if [ -e {clients} ]; then
    echo "clients are still connected" >&2
    exit 1
fi
"""
_UNDRAIN = """#!/bin/sh
# Takes this host into the load balancer again.
echo "{word} $NIXFLEET_TARGET_CLOSURE" >>"$SWITCH_LOG"
: >{served}
"""


@dataclass(frozen=True, slots=True)
class Balancer:
    """In ``folder``: a file for each host that it sends clients to, and one for each host that has some."""

    folder: Path

    def serves(self, name: str) -> bool:
        """Whether it sends clients to this host."""
        return self._served(name).exists()

    def connect(self, name: str, connected: bool) -> None:
        """From now on there are clients on this host, or none any more (raises StorageError)."""
        if connected:
            durable.write(self._clients(name), b"")
        else:
            durable.remove(self._clients(name))

    def add(self, name: str, hooks: Path) -> None:
        """Serve this host, and write its hooks below ``hooks`` (raises StorageError)."""
        words = {"served": shlex.quote(str(self._served(name))), "clients": shlex.quote(str(self._clients(name)))}
        durable.make_directory(self.folder)
        durable.write(self._served(name), b"")
        _write(hooks / "before-switch" / DRAIN_HOOK, _DRAIN.format(word=DRAIN, **words))
        for moment in BACK:
            _write(hooks / moment / UNDRAIN_HOOK, _UNDRAIN.format(word=UNDRAIN, **words))

    def _served(self, name: str) -> Path:
        return self.folder / name

    def _clients(self, name: str) -> Path:
        return self.folder / f"{name}.clients"


def _write(path: Path, text: str) -> None:
    durable.make_directory(path.parent)
    durable.write(path, text.encode(), mode=0o755)
