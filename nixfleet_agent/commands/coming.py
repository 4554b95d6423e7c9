"""What ``diff`` is about: a rollout that this host knows of, or a closure; by default what comes next."""

from __future__ import annotations

from dataclasses import dataclass

from nixfleet_agent.activation.host import STORE, read_link
from nixfleet_agent.artifacts.files import ArtifactFiles
from nixfleet_agent.artifacts.memory import ArtifactCache
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.commands import journal_view
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EXIT_USAGE, AgentError
from nixfleet_agent.proto.ids import CLOSURE
from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.clock import SystemClock


class UnknownComingError(AgentError):
    """What was asked for is not known on this host."""

    exit_code = EXIT_USAGE


class NothingComesError(AgentError):
    """No verified release names this host, or what runs can't be read."""


@dataclass(frozen=True, slots=True)
class Coming:
    """A closure and the rollout that brings it; None for a closure that was named itself."""

    closure: str
    rollout_id: str | None


def running_closure(config: Config) -> str:
    """What runs on this host (raises NothingComesError where it can't be told)."""
    current, why = read_link(config.activation.current_system)
    if current is None:
        raise NothingComesError(f"can't tell what runs: {why}: is this a NixOS host? (activation.current_system)")
    return current


def coming(config: Config, wanted: str | None) -> Coming:
    """What ``wanted`` names; without it, what CI signed last for this host, as the agent's verified cache has it.

    Raises:
        UnknownComingError, NothingComesError
        TrustFileError: the cache can't be verified.
        OSError: the state directory may not be read.
    """
    if wanted is None:
        return _next(config)
    if wanted.startswith(f"{STORE}/") or CLOSURE.fullmatch(wanted):
        name = wanted.removeprefix(f"{STORE}/").rstrip("/")
        if not CLOSURE.fullmatch(name):
            raise UnknownComingError(f"{wanted!r} is no path of a closure: name {STORE}/<hash>-nixos-system-...")
        return Coming(name, None)
    rollout_id, closure = known_rollout(config, wanted)
    return Coming(closure, rollout_id)


def _next(config: Config) -> Coming:
    cache = _verified(config)
    fleet = cache.fleet()
    own = fleet.seen.verified.fleet.host(config.machine_id) if fleet is not None else None
    if fleet is not None and own is not None:
        rollout_id = f"{own.channel}@{fleet.seen.verified.fleet.meta.ci_commit}"
        kept = cache.manifest(rollout_id)
        if kept is not None and (closure := _entry(kept.seen.verified.manifest, config.machine_id)):
            return Coming(closure, rollout_id)
    raise NothingComesError(
        f"no verified release that names {config.machine_id} is cached here: `nixfleet-agent rehearse` asks for it"
    )


def known_rollout(config: Config, wanted: str) -> tuple[str, str]:
    """The id and the target of the one rollout that ``wanted`` is or begins, of those that this host knows.

    Raises:
        UnknownComingError: there is none, or there are several.
    """
    known = _known(config)
    if wanted in known:
        return wanted, known[wanted]
    matching = [name for name in known if name.startswith(wanted)]
    if len(matching) != 1:
        what = "several rollouts begin" if matching else "no rollout that is known here begins"
        raise UnknownComingError(f"{what} with {wanted!r}: see `nixfleet-agent history --list`, or name a store path")
    return matching[0], known[matching[0]]


def _known(config: Config) -> dict[str, str]:
    """The target of each rollout that ran here or that CI has signed for this host."""
    known = {}
    for replay in journal_view.rollouts(config.state_dir, config.machine_id):
        known[replay.record.rollout_id] = replay.record.target_closure
    cache = _verified(config)
    for rollout_id in ArtifactFiles(config.state_dir).rollout_ids():
        kept = cache.manifest(rollout_id)
        if kept is not None and (closure := _entry(kept.seen.verified.manifest, config.machine_id)):
            known[rollout_id] = closure
    return known


def _verified(config: Config) -> ArtifactCache:
    cache = ArtifactCache(ArtifactFiles(config.state_dir), StatusBoard())
    cache.load(TrustStore(config).trust(), SystemClock().now())
    return cache


def _entry(manifest: RolloutManifest, hostname: str) -> str | None:
    entries = manifest.entries(hostname)
    return entries[0].target_closure if len(entries) == 1 else None
