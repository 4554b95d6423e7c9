"""Real Nix for tests and demos: a store per host, closures whose switch scripts behave as told, a signed cache.

    with Nixery() as nixery:                      # a maker store, a signing key, an HTTP cache
        v1 = nixery.system("v1")                  # a closure (basename) with bin/switch-to-configuration
        v2 = nixery.system("v2", FAIL)
        host = nixery.host("web-01")              # a store of its own, profile, current-system link
        host.boot(v1)                             # as if installed with v1
        host.environment                          # what the agent's process must see (NIX_REMOTE, NIX_CONFIG, ...)
        host.activation                           # ActivationConfig with tiny budgets

The scripts are the stand-in of ``nixos_switch``; what is given here is the activation of a closure.
Closures are *registered*, not added: they have no content address, so a host fetches them only with a
signature of a trusted key, and they can reference one another. The scripts take everything about the host
from the environment (``SWITCH_CURRENT_SYSTEM`` and others), so that many hosts can share one cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from nixfleet_agent.config.model import ActivationConfig
from nixfleet_agent.demo.nixos_switch import Switch
from tests.support.binary_cache import CacheServer

_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"
_NIX_COMMAND = ("--extra-experimental-features", "nix-command")

_PLAIN = Switch()
SUCCEED = 'echo "switching to $self"; flip "$self"\n'
FAIL = 'echo "starting units" ; echo "could not start it: ünit" >&2; exit 11\n'
#: Units failed to start after the flip, as NixOS says it.
EXIT_4 = 'flip "$self"; echo "warning: the following units failed: nginx.service, foo@1.service" >&2; exit 4\n'
EXIT_0_WITHOUT_FLIP = 'echo "did nothing"\n'
HANG = 'echo "hanging before the flip"; sleep 600\n'
HANG_AFTER_FLIP = 'flip "$self"; echo "hanging after the flip"; sleep 600\n'
#: Takes a while, so that a test can act in between; the flip comes in the middle.
SLOW = 'sleep 0.3; flip "$self"; sleep 0.3; echo "slow one done"\n'
#: Leaves a process behind that keeps the output open; the test must end it (pid in $SWITCH_LOG.daemon).
FORK = 'sleep 600 & echo $! >"$SWITCH_LOG.daemon"; echo "forked"; flip "$self"\n'
FORK_AND_FAIL = 'sleep 600 & echo $! >"$SWITCH_LOG.daemon"; echo "forked and failing"; exit 9\n'
#: 64 MiB of output, then a failure whose reason is in the last line.
FLOOD = 'head -c 67108864 /dev/zero | tr "\\000" "x"; echo; echo "the last word" >&2; exit 12\n'
#: The switch restarts the agent: kill it the hard way, in the middle.
KILL_AGENT = 'kill -9 "$(cat "$TEST_AGENT_PID")"; sleep 0.3; flip "$self"; echo "switched without the agent"\n'
KILL_AGENT_AND_FAIL = 'kill -9 "$(cat "$TEST_AGENT_PID")"; sleep 0.3; echo "failed without the agent" >&2; exit 13\n'
LOCK_REFUSED_ONCE = (
    'if [ ! -e "$SWITCH_LOG.tried" ]; then : >"$SWITCH_LOG.tried"; '
    'echo "Could not acquire lock" >&2; exit 11; fi; flip "$self"\n'
)
LOCK_REFUSED = 'echo "Could not acquire lock" >&2; exit 11\n'


def third_closure(other: str) -> str:
    """A script that ends with a closure that nobody asked for (``other``, a basename)."""
    return f'flip "{other}"\n'


class NixHost:
    """One host: ``{root}/nix/store``, a profile, a current-system link, a state folder, a log of switch calls."""

    def __init__(self, root: Path, nix_config: str) -> None:
        self.root = root
        self.store_root = root / "store-root"
        self.profile = root / "profiles" / "system"
        self.current_system = root / "run" / "current-system"
        self.switch_lock = root / "run" / "nixos" / "switch-to-configuration.lock"
        self.state_dir = root / "state"
        self.switch_log = root / "switch.log"
        self.bootloader = root / "bootloader"
        self.active_units = root / "run" / "units"
        self.agent_pid = root / "agent.pid"
        for folder in (
            self.profile.parent,
            self.switch_lock.parent,
            self.active_units,
            self.state_dir,
            self.store_root,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.switch_lock.touch()
        self.environment: dict[str, str] = {
            **os.environ,
            "NIX_REMOTE": f"local?root={self.store_root}",
            "NIX_CONFIG": nix_config,
            "XDG_CACHE_HOME": str(root / "cache-home"),
            "SWITCH_CURRENT_SYSTEM": str(self.current_system),
            "SWITCH_LOG": str(self.switch_log),
            "SWITCH_LOCK": str(self.switch_lock),
            "SWITCH_UNITS": str(self.active_units),
            "SWITCH_BOOTLOADER": str(self.bootloader),
            "TEST_AGENT_PID": str(self.agent_pid),
        }
        self.activation = ActivationConfig(
            backend="setsid",
            profile=self.profile,
            current_system=self.current_system,
            switch_lock=self.switch_lock,
            store_root=str(self.store_root),
            poll_interval_secs=0.02,
            poll_budget_secs=10.0,
            settle_budget_secs=10.0,
            realise_timeout_secs=30.0,
            realise_stall_secs=10.0,
            guard_secs=600.0,
        )

    def configure(self, **changes: object) -> ActivationConfig:
        """The host's ``[activation]`` with some keys changed; kept for later calls too."""
        self.activation = dataclasses.replace(self.activation, **changes)  # type: ignore[arg-type]
        return self.activation

    def boot(self, closure: str, profile: bool = True) -> None:
        """Fetch ``closure`` and make it what runs, as an installation and a boot would."""
        self.nix("nix-store", "--realise", f"/nix/store/{closure}")
        if profile:
            self.nix("nix-env", "--profile", str(self.profile), "--set", f"/nix/store/{closure}")
        self.run_system(closure)

    def run_system(self, closure: str) -> None:
        """Only the current-system link, as an operator's own switch would leave it."""
        temporary = self.current_system.with_name("current-system.new")
        temporary.symlink_to(f"/nix/store/{closure}")
        os.replace(temporary, self.current_system)

    def boots(self) -> str | None:
        """The closure that the boot entry names; None before the first was written."""
        return self.bootloader.read_text().strip() if self.bootloader.exists() else None

    def units(self) -> dict[str, str]:
        """The definition of each active unit, by its name."""
        return {place.name: place.read_text().strip() for place in self.active_units.iterdir()}

    def running(self) -> str:
        """The basename that the current-system link names."""
        return self.current_system.readlink().name

    def profile_closure(self) -> str:
        """The basename that the profile leads to."""
        return (self.profile.parent / self.profile.readlink()).readlink().name

    def generations(self) -> int:
        """How many generations the profile has."""
        return len([name for name in os.listdir(self.profile.parent) if name.endswith("-link")])

    def switches(self) -> list[str]:
        """The calls of switch scripts so far, oldest first, as ``"<action> <closure>"``."""
        return self.switch_log.read_text().splitlines() if self.switch_log.exists() else []

    def has(self, closure: str) -> bool:
        """Whether the closure is valid in this host's store."""
        return self.nix("nix-store", "--check-validity", f"/nix/store/{closure}", check=False).returncode == 0

    def collect_garbage(self) -> None:
        """Everything that no root holds is gone afterwards."""
        self.nix("nix-store", "--gc")

    def nix(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One Nix command on this host's store."""
        return subprocess.run(arguments, env=self.environment, check=check, capture_output=True, text=True, timeout=60)


class Nixery:
    """A maker store, a signing key, and a binary cache served over HTTP from a thread of this process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._owned = folder is None
        # In memory where there is such a place: what is tested is not how fast a disk syncs.
        quick = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="nixery-", dir=quick)) if folder is None else folder
        self.cache = self.folder / "cache"
        self._maker = self.folder / "maker"
        self._secret = self.folder / "cache-key.secret"
        public = self.folder / "cache-key.public"
        self._environment = {**os.environ, "NIX_REMOTE": f"local?root={self._maker}", "NIX_CONFIG": "substituters ="}
        self._run("nix-store", "--generate-binary-cache-key", "test-cache-1", str(self._secret), str(public))
        self.public_key = public.read_text().strip()
        self.cache.mkdir(parents=True, exist_ok=True)
        self.server = CacheServer(self.cache)

    def __enter__(self) -> Nixery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; remove everything when the folder was made here."""
        self.server.close()
        if self._owned:
            remove_tree(self.folder)

    def host(self, name: str, *, substituters: str | None = None) -> NixHost:
        """A host under this folder that fetches from the cache and trusts its key."""
        source = self.server.url if substituters is None else substituters
        config = f"substituters = {source}\ntrusted-public-keys = {self.public_key}\nsandbox = false\n"
        return NixHost(self.folder / "hosts" / name, config)

    def system(
        self,
        name: str,
        activate: str = SUCCEED,
        *,
        files: Mapping[str, str] | None = None,
        links: Mapping[str, str] | None = None,
        references: Sequence[str] = (),
        switchable: bool = True,
        switch: Switch = _PLAIN,
    ) -> str:
        """A signed closure in the cache; its basename. ``files`` and ``links`` are paths inside it.

        ``activate`` is its activation and ``switch`` all else of its switch script, which ``switchable=False`` leaves
        out.
        """
        contents = {"nixos-version": f"{name}\n", **(files or {})}
        if switchable:
            contents["bin/switch-to-configuration"] = switch.script(activate)
        return self.path(f"nixos-system-{name}", contents, links or {}, references)

    def path(
        self,
        name: str,
        files: Mapping[str, str],
        links: Mapping[str, str] | None = None,
        references: Sequence[str] = (),
    ) -> str:
        """Any signed store path without a content address; its basename."""
        links = links or {}
        digest = hashlib.sha256(
            repr((name, sorted(files.items()), sorted(links.items()), references)).encode()
        ).digest()
        closure = "".join(_BASE32[byte % 32] for byte in digest) + "-" + name
        place = self._maker / "nix/store" / closure
        if not place.exists():
            _build(place, files, links)
            # The hash is given, because Nix 2.8 looks for the path at /nix/store when it has to hash it itself.
            archive = subprocess.run(("nix-store", "--dump", str(place)), check=True, capture_output=True).stdout
            described = [hashlib.sha256(archive).hexdigest(), str(len(archive)), "", str(len(references))]
            lines = [f"/nix/store/{closure}", *described, *(f"/nix/store/{r}" for r in references), ""]
            self._run("nix-store", "--load-db", stdin="\n".join(lines))
        self.publish(closure)
        return closure

    def bulk(self, name: str, count: int, size: int) -> list[str]:
        """``count`` paths of ``size`` random bytes each; they come into the cache with what refers to them."""
        closures, lines = [], []
        for number in range(count):
            data = os.urandom(size)
            digest = hashlib.sha256(data).digest()
            closure = "".join(_BASE32[byte % 32] for byte in digest) + f"-{name}-{number}"
            place = self._maker / "nix/store" / closure
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            place.chmod(0o444)
            archive = subprocess.run(("nix-store", "--dump", str(place)), check=True, capture_output=True).stdout
            lines += [f"/nix/store/{closure}", hashlib.sha256(archive).hexdigest(), str(len(archive)), "", "0"]
            closures.append(closure)
        self._run("nix-store", "--load-db", stdin="\n".join([*lines, ""]))
        return closures

    def publish(self, closure: str) -> None:
        """Sign the closure and copy it, with what it references, to the cache."""
        target = f"file://{self.cache}?secret-key={self._secret}&compression=none"
        self._run("nix", *_NIX_COMMAND, "copy", "--to", target, f"/nix/store/{closure}")

    def narinfo(self, closure: str) -> Path:
        """The file that describes the closure in the cache."""
        return self.cache / f"{closure[:32]}.narinfo"

    def unsign(self, closure: str) -> None:
        """Take the signature away, as an attacker who controls the cache would serve it."""
        self.edit_narinfo(closure, lambda line: None if line.startswith("Sig:") else line)

    def withdraw(self, closure: str) -> None:
        """The cache does not have the closure any more."""
        self.narinfo(closure).unlink()

    def edit_narinfo(self, closure: str, change: Callable[[str], str | None]) -> None:
        """Rewrite the description line by line; None drops a line."""
        path = self.narinfo(closure)
        lines = [changed for line in path.read_text().splitlines() if (changed := change(line)) is not None]
        path.write_text("\n".join(lines) + "\n")

    def _run(self, *arguments: str, stdin: str | None = None) -> None:
        done = subprocess.run(
            arguments, env=self._environment, check=False, input=stdin, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")


def _build(place: Path, files: Mapping[str, str], links: Mapping[str, str]) -> None:
    for inner, text in files.items():
        path = place / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o555)
    for inner, target in links.items():
        path = place / inner
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def remove_tree(folder: Path) -> None:
    """Remove a folder that holds a Nix store (its folders are read-only)."""
    for path, _folders, _files in os.walk(folder):
        Path(path).chmod(0o755)
    shutil.rmtree(folder)
