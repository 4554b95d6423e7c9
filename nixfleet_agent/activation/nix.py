"""The calls of Nix that an activation makes: argument lists, a time limit each, and what their answers mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.failures import MISSING, classify, plain, plain_all
from nixfleet_agent.activation.host import store_path

#: A question to the local store or its daemon; the daemon may have to start first.
QUERY_SECS = 120.0
#: Asking the caches for sizes only informs; the fetch itself has its own limits.
SIZES_SECS = 60.0
#: `nix-env` waits for the profile's lock.
PROFILE_SECS = 300.0

#: In KiB a second, for each transfer; newer than 2.8.
SPEED_SETTING = "download-speed"
#: Older Nix says all in MiB (2.8 does); newer picks the unit that fits (2.34 does).
_UNITS = {"B": 1} | {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGTPEZY", 1)}
_SUBSTITUTERS = re.compile(r"^substituters = (.*)$", re.MULTILINE)
_SIZES = re.compile(r"\(([0-9.]+) ((?:[KMGTPEZY]i)?B) download, ([0-9.]+) ((?:[KMGTPEZY]i)?B) unpacked\)")


@dataclass(frozen=True, slots=True)
class FetchSize:
    """Bytes to download, and bytes they take in the store."""

    download: int
    unpacked: int


#: A cache's "not there" is remembered for an hour by default, and CI may upload a moment after it has published.
FETCH_OPTIONS = ("--option", "narinfo-cache-negative-ttl", "0")


def hold(context: Context, closure: str, root: Path) -> bool:
    """Make ``root`` a garbage collector's root of a closure that is in the store; False when it is not there.

    One call tells both: asking first would start Nix, and open its database, twice.

    Raises:
        CommandError: Nix refused, could not tell, or the root does not lead to the closure.
    """
    # No substituters: this is about what is here, and must neither fetch nor wait for a network.
    arguments = ["nix-store", "--realise", store_path(closure), "--option", "substitute", "false"]
    done = context.run([*arguments, *root_arguments(root)], timeout=QUERY_SECS)
    if done.returncode != 0:
        said = said_by(done)
        if classify(said).kind == MISSING.kind:
            return False
        raise CommandError(f"nix-store --add-root failed ({done.returncode}): {said}")
    check_root(closure, root)
    return True


def is_valid(context: Context, closure: str) -> bool:
    """Whether the closure is in the store, by Nix's database; no root is made.

    Raises:
        CommandError: Nix could not tell.
    """
    done = context.run(["nix-store", "--check-validity", store_path(closure)], timeout=QUERY_SECS)
    if done.returncode == 0:
        return True
    said = said_by(done)
    if "is not valid" in said:
        return False
    raise CommandError(f"nix-store --check-validity failed ({done.returncode}): {said}")


def root_arguments(root: Path) -> list[str]:
    """``--indirect`` is the default since Nix 2.4; 2.3 needs it for a root outside its own folder."""
    return ["--add-root", str(root), "--indirect"]


def check_root(closure: str, root: Path) -> None:
    """Raises CommandError unless the root that Nix has made resolves to the closure."""
    try:
        target = str(root.readlink())
    except OSError as error:
        raise CommandError(f"Nix made no root at {root}: {error.strerror or error}") from error
    if target != store_path(closure):
        raise CommandError(f"the root {root} leads to {target}, not to {store_path(closure)}")


class Watch(Protocol):
    """Looks on while a fetch runs; ``check`` may raise to end it."""

    def check(self) -> None: ...
    def on_stderr(self, piece: bytes) -> None: ...
    def on_start(self, pid: int) -> None: ...


def fetch_size(context: Context, closure: str) -> FetchSize | None:
    """What fetching the closure would take; None where Nix does not tell (an old version, a cache that is slow)."""
    arguments = ["nix-store", "--realise", "--dry-run", store_path(closure), *FETCH_OPTIONS]
    try:
        done = context.run(arguments, timeout=SIZES_SECS)
    except CommandError as error:
        context.log.info("fetching without knowing the size: %s", error, extra={"closure": closure})
        return None
    match = _SIZES.search(said_by(done))
    if match is None:
        return None
    download, download_unit, unpacked, unpacked_unit = match.groups()
    return FetchSize(_bytes(download, download_unit), _bytes(unpacked, unpacked_unit))


def fetch(
    context: Context,
    closure: str,
    root: Path,
    *,
    options: Sequence[str],
    timeout: float,
    watch: Watch,
) -> processes.Finished:
    """``nix-store --realise`` with further ``options``, for ``timeout`` seconds at most.

    Raises:
        CommandError: Nix can't be run, or its time is over.
    """
    arguments = ["nix-store", "--realise", store_path(closure), *root_arguments(root), *FETCH_OPTIONS, *options]
    return context.run(
        arguments, timeout=timeout, check=watch.check, on_stderr=watch.on_stderr, on_start=watch.on_start
    )


def substituters(context: Context) -> list[str]:
    """The caches that Nix is configured with; none where it does not tell."""
    match = _SUBSTITUTERS.search(_settings(context) or "")
    return match[1].split() if match else []


def limits_speed(context: Context) -> bool | None:
    """Whether this Nix has a limit for the speed of a download; None where it does not tell."""
    settings = _settings(context)
    return None if settings is None else re.search(rf"^{SPEED_SETTING} = ", settings, re.MULTILINE) is not None


def _settings(context: Context) -> str | None:
    """``name = value`` in lines, as Nix has them; None where it does not tell."""
    for command in ("show-config", "config show"):
        arguments = ["nix", "--extra-experimental-features", "nix-command", *command.split()]
        try:
            done = context.run(arguments, timeout=QUERY_SECS)
        except CommandError:
            return None
        if done.returncode == 0:
            return plain_all(done.stdout)
    return None


def set_profile(context: Context, profile: Path, closure: str) -> None:
    """Make a new generation of ``profile`` that is the closure.

    Raises:
        CommandError: Nix refused.
    """
    arguments = ["nix-env", "--profile", str(profile), "--set", store_path(closure)]
    done = context.run(arguments, timeout=PROFILE_SECS)
    if done.returncode != 0:
        raise CommandError(f"nix-env --profile {profile} --set failed ({done.returncode}): {said_by(done)}")


def said_by(done: processes.Finished) -> str:
    """Standard error of a call, without colours, its end when it is long."""
    return plain(done.stderr)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])
