"""What all runs share: real Nix closures in a signed cache, an installed host to copy, the keys of CI."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

from nixfleet_agent.local_cp.ci import ContinuousIntegration
from tests.faults.nursery import ForkServer
from tests.support.nix import Nixery, NixHost, remove_tree

#: In memory where there is room: what a run waits for is not the disk.
PLACES = (Path("/dev/shm"), Path(tempfile.gettempdir()))
ROOM = 1 << 30

#: What a release's activation does; before it, the switch bears witness.
#: ``undurable`` is what must never be said: a switch ran before the event that allows it was on disk.
_SCRIPT = """
need={need}
case "$action" in switch)
    if ! ls "$TEST_STATE/outbound-queue" "$TEST_STATE"/outbound-sent/*/ | grep -q -E -- "-($need).json"; then
        echo "undurable $self" >>"$SWITCH_LOG"
    fi ;;
esac
{act}
"""
FORWARD_NEEDS = "ActivationStarted"
_FLIP = 'flip "$self"'
_SLOW = f"sleep 0.6; {_FLIP}; sleep 0.3"
_HANG = f'{_FLIP}; echo "settling"; sleep 3; echo "settled"'
#: Fills the file system that the state directory is on.
_FILL = f"""
dd if=/dev/zero of="$TEST_STATE/filler" bs=64k 2>/dev/null
dd if=/dev/zero bs=512 2>/dev/null >>"$TEST_STATE/filler"
{_FLIP}"""
#: Leaves it without one inode, and with room for many bytes.
_LITTER = f"""
mkdir "$TEST_STATE/filler"
{{ n=0; while true >"$TEST_STATE/filler/$n"; do n=$((n + 1)); done; }} 2>/dev/null
{_FLIP}"""
_FAIL = 'echo "starting units"; echo "could not start it" >&2; exit 11'

#: What a host declares; the probe looks at the closure that runs, as a real one looks at a service.
CHECKS = {
    "app": {
        "kind": "exec",
        "mode": "enforce",
        "intervalSeconds": 0.15,
        "timeoutSecs": 5,
        "command": [
            "sh",
            "-c",
            'system=$(readlink "$SWITCH_CURRENT_SYSTEM"); test -e "$TEST_STORE/nix/store/${system##*/}/healthy"',
        ],
    },
    "watched": {"kind": "exec", "mode": "observe", "intervalSeconds": 0.5, "timeoutSecs": 5, "command": ["false"]},
}


class World:
    """Made once for a whole run of the harness; ``close`` removes everything."""

    def __init__(self) -> None:
        roomy = (p for p in PLACES if p.is_dir() and os.access(p, os.W_OK) and shutil.disk_usage(p).free > ROOM)
        self.folder = Path(tempfile.mkdtemp(prefix="nf-", dir=next(roomy, PLACES[-1])))
        self._lock = threading.Lock()
        self._nursery: ForkServer | None = None
        self.ci = ContinuousIntegration()
        self.nixery = Nixery(self.folder / "ci")
        well = {"healthy": "yes\n"}
        self._kernel = self.nixery.path("kernel-1", {"image": "one\n"})
        other = self.nixery.path("kernel-2", {"image": "two\n"})
        self.closures = {
            "v0": self._system("v0", _FLIP, well, needs="Failed|ActivationFailed"),
            "good": self._system("good", _FLIP, well),
            "next": self._system("next", _FLIP, well),
            "large": self._system("large", _FLIP, well | {"data": "x" * 400_000}),
            "slow": self._system("slow", _SLOW, well),
            "settling": self._system("settling", _HANG, well),
            "sick": self._system("sick", _FLIP, {}),
            "filler": self._system("filler", _FILL, {}),
            "litterer": self._system("litterer", _LITTER, {}),
            "broken": self._system("broken", _FAIL, well),
            "kernel": self._system("kernel", _FLIP, well, kernel=other),
            "sick-kernel": self._system("sick-kernel", _FLIP, {}, kernel=other),
        }
        #: CI names it, the cache does not have it.
        self.closures["absent"] = "0" * 32 + "-nixos-system-absent"
        self._template = self.nixery.host("template")
        self._template.boot(self.closures["v0"])

    def _system(
        self, name: str, act: str, files: dict[str, str], needs: str = FORWARD_NEEDS, kernel: str | None = None
    ) -> str:
        kernel = kernel or self._kernel
        script = _SCRIPT.format(need=f"'{needs}'", act=act)
        links = {"kernel": f"/nix/store/{kernel}/image"}
        return self.nixery.system(name, script, files=files, links=links, references=(kernel,))

    def host(self, name: str) -> NixHost:
        """A host that was installed with ``v0``."""
        root = self.nixery.folder / "hosts" / name
        root.mkdir(parents=True)
        for part in ("store-root", "profiles"):
            shutil.copytree(self._template.root / part, root / part, symlinks=True)
        host = self.nixery.host(name)
        (root / "health-checks.json").write_text(json.dumps(CHECKS))
        host.bootloader.write_text(f"{self.closures['v0']}\n")
        host.run_system(self.closures["v0"])
        # As on NixOS: what runs is no garbage.
        (host.store_root / "nix/var/nix/gcroots/current-system").symlink_to(host.current_system)
        host.environment |= {"TEST_STATE": str(host.state_dir), "TEST_STORE": str(host.store_root)}
        return host

    @property
    def nursery(self) -> ForkServer:
        """Where agents are forked; it starts when it is first asked for."""
        with self._lock:
            self._nursery = self._nursery or ForkServer()
            return self._nursery

    def name_of(self, closure: str | None) -> str:
        """The short name of a closure, for reports."""
        return next((name for name, found in self.closures.items() if found == closure), str(closure))

    def close(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
        self.nixery.close()
        remove_tree(self.folder)
