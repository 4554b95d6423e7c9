"""Small closures with real references, made in a Nix store of their own and copied, signed, into a binary cache.

A closure here is what an agent sees of a NixOS system: ``bin/switch-to-configuration`` (``nixos_switch``), one unit and
a reference to the software that it runs, what inhibits a live switch, and the health checks that belong to it. Making
one takes no builder, so it needs no sandbox or root.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.nixos_switch import Switch, inhibitors, units

STORE = "/nix/store"
#: Where probes and hooks find their host; every child of an agent inherits it.
HOST_VARIABLE = "FLEET_DEMO_HOST"

_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"
_EXPORT_MAGIC = 0x4558494E  # "NIXE": marks the end of the archive in `nix-store --import`'s format
_NIX_SECS = 120.0

#: The app starts a moment after its system has become the current one.
_ACTIVATE = """
ln -s "$system" "$SWITCH_CURRENT_SYSTEM.$$" && mv -T "$SWITCH_CURRENT_SYSTEM.$$" "$SWITCH_CURRENT_SYSTEM"
sleep 0.2
"""

_FAIL = """
echo "app.service does not start" >&2
exit 11
"""

_APP = """#!/bin/sh
case "$1" in
version) echo "app {version}" ;;
check) {check} ;;
esac
"""
_HEALTHY = 'echo "all is well"'
_BROKEN = 'echo "app {version} cannot reach its database" >&2; exit 1'


@dataclass(frozen=True, slots=True)
class System:
    """What a version is made of; ``dbus`` and ``init`` are the versions that its D-Bus and its init came with.

    One that is not ``healthy`` fails its check, one that does not ``start`` its switch.
    """

    version: str
    healthy: bool = True
    dbus: str = ""
    init: str = ""
    starts: bool = True


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the fleet's system; ``closure`` is its basename."""

    version: str
    closure: str


class Maker:
    """The builder: its store, its signing key, and the cache that it fills.

    Raises:
        DemoError: from every method, when Nix fails.
    """

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self._store = folder / "store"
        self._trees = folder / "trees"
        self._secret = folder / "cache-key.secret"
        self._conf = folder / "nix-conf"
        for made in (self.cache, self._trees, self._conf):
            made.mkdir(parents=True)
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "NIX_REMOTE": f"local?root={self._store}",
            "NIX_CONF_DIR": str(self._conf),
            "NIX_CONFIG": "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n",
        }
        public = folder / "cache-key.public"
        self._run("nix-store", "--generate-binary-cache-key", "nixfleet-demo-1", str(self._secret), str(public))
        self.public_key = public.read_text(encoding="ascii").strip()

    def releases(self, systems: Iterable[System], cache_url: str) -> dict[str, Release]:
        """Make and publish these; by version."""
        made = {system.version: self._system(system, cache_url) for system in systems}
        self._publish([release.closure for release in made.values()])
        return made

    def _system(self, system: System, cache_url: str) -> Release:
        version = system.version
        check = _HEALTHY if system.healthy else _BROKEN.format(version=version)
        number = version.removeprefix("v")  # what Nix takes for a version begins with a digit
        app = self._path(f"demo-app-{number}", {"bin/app": _APP.format(version=version, check=check)}, {}, ())
        checks = {
            "app": {
                "kind": "exec",
                "mode": "enforce",
                "intervalSeconds": 1,
                "timeoutSecs": 5,
                "command": ["sh", "-c", f'exec "${HOST_VARIABLE}/run/current-system/sw/bin/app" check'],
            },
            "cache-reachable": {
                "kind": "http",
                "mode": "observe",
                "intervalSeconds": 5,
                "timeoutSecs": 5,
                "url": f"{cache_url}/nix-cache-info",
            },
        }
        files = {
            "bin/switch-to-configuration": Switch().script(_ACTIVATE if system.starts else _FAIL),
            **units({"app.service": f"ExecStart={STORE}/{app}/bin/app version"}),
            **inhibitors(dbus_implementation=f"dbus-{system.dbus}"),
            "init-interface-version": f"{system.init}\n",
            "etc/nixfleet/agent/health-checks.json": json.dumps(checks, indent=1),
            "nixos-version": f"{version}\n",
        }
        closure = self._path(f"nixos-system-demo-{version}", files, {"sw": f"../{app}"}, (app,))
        return Release(version, closure)

    def _path(self, name: str, files: Mapping[str, str], links: Mapping[str, str], references: Sequence[str]) -> str:
        """A store path with these files and references; its basename.

        Like a built path it has no content address, so no store takes it without a good signature.
        """
        tree = self._trees / name
        for inner, text in files.items():
            place = tree / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
            place.chmod(0o755 if inner.startswith("bin/") else 0o644)
        for inner, target in links.items():
            (tree / inner).symlink_to(target)
        archive = self._run("nix-store", "--dump", str(tree))
        digest = hashlib.sha256(name.encode() + archive).digest()
        basename = "".join(_BASE32[byte % 32] for byte in digest) + "-" + name
        self._run("nix-store", "--import", stdin=_export(archive, basename, references))
        return basename

    def _publish(self, closures: Sequence[str]) -> None:
        target = f"file://{self.cache}?secret-key={self._secret}&compression=none"
        self._run("nix", "copy", "--to", target, *(f"{STORE}/{closure}" for closure in closures))

    def _run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return run_nix(arguments, self._environment, stdin)


def run_nix(arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes = b"") -> bytes:
    """Standard output of one Nix command.

    Raises:
        DemoError: it failed, or took too long; the message ends with what it said last.
    """
    try:
        done = subprocess.run(  # nosec B603 # no shell; the demo made up every word
            arguments, env=dict(environment), input=stdin, capture_output=True, check=False, timeout=_NIX_SECS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DemoError(f"can't run {arguments[0]}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        raise DemoError(f"{' '.join(arguments[:2])} failed ({done.returncode}): {said[-1]}")
    return done.stdout


def _export(archive: bytes, basename: str, references: Sequence[str]) -> bytes:
    """One path as `nix-store --export` writes it: archive, name, references, no deriver, no old-style signature."""
    listed = sorted(f"{STORE}/{reference}" for reference in references)
    return b"".join(
        [
            struct.pack("<Q", 1),
            archive,
            struct.pack("<Q", _EXPORT_MAGIC),
            _string(f"{STORE}/{basename}"),
            struct.pack("<Q", len(listed)),
            *(_string(reference) for reference in listed),
            _string(""),
            struct.pack("<QQ", 0, 0),
        ]
    )


def _string(text: str) -> bytes:
    raw = text.encode("ascii")
    return struct.pack("<Q", len(raw)) + raw + bytes(-len(raw) % 8)
