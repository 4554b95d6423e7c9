"""``rehearse [ROLLOUT]``: all of a rollout that can be done before its turn, and whether the real one would begin."""

from __future__ import annotations

import logging
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from nixfleet_agent.activation import nix, realise
from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.closure_query import difference
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.dry_run import DryRun
from nixfleet_agent.activation.errors import ActivationError
from nixfleet_agent.activation.model import Forward
from nixfleet_agent.activation.packages import ClosureDiff
from nixfleet_agent.activation.readiness import DRY_RUN, INHIBITORS, Obstacle, Readiness, inspect
from nixfleet_agent.activation.realise_progress import Progress
from nixfleet_agent.artifacts.cache import ManifestCache, Terms
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.commands.coming import NothingComesError, UnknownComingError, known_rollout, running_closure
from nixfleet_agent.commands.diff_view import as_json, show
from nixfleet_agent.commands.host_view import gates, recovered
from nixfleet_agent.commands.identity import host_of
from nixfleet_agent.commands.invocation import GREEN, RED, YELLOW, Invocation, Parser
from nixfleet_agent.commands.surroundings import context_of, progress_on_stderr
from nixfleet_agent.commands.times import local_time
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.prefetch.status import percent
from nixfleet_agent.proto.ids import ROLLOUT_ID
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.restore import marks_of
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.rollout.succession import rollback_target
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.text import byte_size
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trust.errors import VerificationError

log = logging.getLogger("nixfleet_agent.rehearse")

VERIFY, FETCH = "verify", "fetch"
#: Between two words on how far a download is.
_TELL_SECS = 2.0


@dataclass(frozen=True, slots=True)
class Verified:
    """What CI signed for this host in one rollout, judged as a Dispatch of this moment would be."""

    rollout_id: str
    closure: str
    terms: Terms
    way_back: str | None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How far it came: ``verified`` None where that failed, the others None where nothing was fetched to look at."""

    obstacles: tuple[Obstacle, ...]
    verified: Verified | None = None
    diff: ClosureDiff | None = None
    readiness: Readiness | None = None

    @property
    def would_begin(self) -> bool:
        """Whether the real one, with its turn now, would."""
        return not any(obstacle.blocks for obstacle in self.obstacles)

    @property
    def takes_reboot(self) -> bool:
        """Whether it would only be what boots next."""
        return any(obstacle.what == INHIBITORS and not obstacle.blocks for obstacle in self.obstacles)

    @property
    def units(self) -> tuple[DryRun | None, str | None]:
        """The dry run that tells what would become of units, or why it is not known; neither where it runs already."""
        if self.readiness is None:
            return None, None
        dry_run = self.readiness.dry_run
        if dry_run is None:
            return None, next((each.text for each in self.obstacles if each.what == DRY_RUN), "it was not asked")
        return (dry_run, None) if dry_run.failure is None else (None, dry_run.failure)


def configure(parser: Parser) -> None:
    parser.details(
        "Verifies what CI signed as a Dispatch of this moment would be, fetches the closure into the store, shows what "
        "`diff` shows, and checks what the real one would meet: a hold, the maintenance windows, the quarantine, the "
        "way back, switch inhibitors, room in /boot, the script and its dry-activate. Changes nothing but that the "
        "store has the closure then. Exit code 0 when the real one would begin now."
    )
    parser.example(
        "nixfleet-agent rehearse", "nixfleet-agent rehearse stable@def4567abc", "nixfleet-agent rehearse --json"
    )
    parser.add_argument(
        "rollout",
        metavar="ROLLOUT",
        nargs="?",
        help="a rollout id, or how one that is known here begins; default: what CI publishes for this host now",
    )


def run(call: Invocation) -> int:
    running = running_closure(call.config)
    with progress_on_stderr(log), host_of(call.config) as host:
        host.credentials.reload()
        rehearsal = _rehearse(call, host.control_plane, host.clock, running)
    if call.json:
        call.print_json(_as_json(rehearsal))
    else:
        _print(call, rehearsal)
    return EXIT_OK if rehearsal.would_begin else EXIT_CHECK_FAILED


def _rehearse(call: Invocation, control_plane: ControlPlane, clock: Clock, running: str) -> Rehearsal:
    config = call.config
    host = recovered(config, clock)
    try:
        verified = _verify(config, control_plane, clock, host, call.options.rollout)
    except VerificationError as refusal:
        return Rehearsal((Obstacle(VERIFY, str(refusal), True),))
    found = [
        Obstacle(what, why, True) for what, why in gates(config, host, verified.rollout_id, verified.closure, clock)
    ]
    context = context_of(config, call.environ, log)
    # A root somewhere else than the agent's own: nothing of it may be left in the state directory.
    with tempfile.TemporaryDirectory(prefix="nixfleet-rehearse-") as folder:
        try:
            _fetch(context, verified.closure, Path(folder) / "target")
        except ActivationError as error:
            return Rehearsal((*found, Obstacle(FETCH, str(error), True)), verified)
        diff = difference(context, running, verified.closure)
        if verified.closure == running:
            return Rehearsal(tuple(found), verified, diff)
        policy = str(verified.terms.resolved.policy)
        intent = Forward(verified.rollout_id, verified.closure, verified.way_back, policy)
        readiness = inspect(context, choose(context), intent)
    return Rehearsal((*found, *readiness.obstacles), verified, diff, readiness)


def _verify(config: Config, control_plane: ControlPlane, clock: Clock, host: Host, wanted: str | None) -> Verified:
    """Raises NothingComesError, UnknownComingError, TransportError, VerificationError."""
    store = TrustStore(config)
    store.recover_marks(marks_of(host))
    cache = ManifestCache(config, control_plane, store, clock, StatusBoard())
    cache.load()
    rollout_id = _published(config, cache) if wanted is None else _named(config, wanted)
    entries = cache.fetch_manifest(rollout_id, window=None).manifest.entries(config.machine_id)
    # Without an entry of ours any closure is refused, for that very reason.
    closure = entries[0].target_closure if entries else ""
    terms = cache.terms(rollout_id, config.machine_id, closure)
    way_back, _ = rollback_target(host, running_closure(config))
    return Verified(rollout_id, closure, terms, way_back)


def _published(config: Config, cache: ManifestCache) -> str:
    fleet = cache.fetch_fleet().fleet
    own = fleet.host(config.machine_id)
    if own is None:
        raise NothingComesError(f"the fleet that CI signed does not name {config.machine_id}: is machine_id right?")
    return f"{own.channel}@{fleet.meta.ci_commit}"


def _named(config: Config, wanted: str) -> str:
    """A rollout that is known here, or an id in full, which the control plane may know."""
    try:
        return known_rollout(config, wanted)[0]
    except UnknownComingError:
        if ROLLOUT_ID.fullmatch(wanted):
            return wanted
        if "/" in wanted:
            raise UnknownComingError("only what CI signed is rehearsed: name a rollout, or see `diff`") from None
        raise


class _Fetching:
    """Tells whoever waits how far the download is."""

    def __init__(self, context: Context, closure: str) -> None:
        self._clock = context.clock
        self._closure = closure
        self._total: int | None = None
        self._began = self._told_at = context.clock.monotonic()

    def admit(self, size: nix.FetchSize | None) -> None:
        self._total = None if size is None else size.download
        log.info("fetching %s%s", self._closure, f", {byte_size(self._total)} to download" if self._total else "")

    def look(self, progress: Progress) -> None:
        if self._clock.monotonic() - self._told_at < _TELL_SECS:
            return
        self._told_at = self._clock.monotonic()
        share = percent(progress.bytes, self._total)
        log.info("%s so far%s", byte_size(progress.bytes), "" if share is None else f", {share} %")

    def over(self) -> None:
        log.info("fetched in %.1f s", self._clock.monotonic() - self._began)


def _fetch(context: Context, closure: str, root: Path) -> None:
    if nix.is_valid(context, closure):
        log.info("in the store already: %s", closure)
        realise.realise(context, closure, root)
        return
    fetching = _Fetching(context, closure)
    manner = realise.Manner(report_secs=math.inf, admit=fetching.admit, look=fetching.look)
    realise.realise(context, closure, root, manner=manner)
    fetching.over()


def _print(call: Invocation, rehearsal: Rehearsal) -> None:
    verified = rehearsal.verified
    if verified is not None:
        terms = verified.terms
        call.print(f"{'verified':<10} {verified.rollout_id}, signed {local_time(terms.manifest.signed_at)}")
        call.print(f"{'policy':<10} {terms.resolved.policy}, way back {verified.way_back or 'none'}")
    if rehearsal.diff is not None:
        show(call, None, rehearsal.diff, *rehearsal.units)
    call.print()
    for each in rehearsal.obstacles:
        call.print(f"{'no' if each.blocks else 'note':<5} {each.what:<12} {each.text}", RED if each.blocks else YELLOW)
    call.print(*_verdict(rehearsal))


def _verdict(rehearsal: Rehearsal) -> tuple[str, str]:
    if not rehearsal.would_begin:
        return "with its turn now it would not begin", RED
    if rehearsal.takes_reboot:
        return "with its turn now it would begin, and take effect at the next reboot", YELLOW
    return "with its turn now it would begin", GREEN


def _as_json(rehearsal: Rehearsal) -> dict[str, object]:
    verified = rehearsal.verified
    return {
        "rollout_id": verified.rollout_id if verified else None,
        "target_closure": verified.closure if verified else None,
        "signed_at": format_time(verified.terms.manifest.signed_at) if verified else None,
        "policy": str(verified.terms.resolved.policy) if verified else None,
        "way_back": verified.way_back if verified else None,
        "would_begin": rehearsal.would_begin,
        "takes_reboot": rehearsal.takes_reboot,
        "obstacles": [asdict(obstacle) for obstacle in rehearsal.obstacles],
        "diff": None
        if verified is None or rehearsal.diff is None
        else as_json(verified.rollout_id, rehearsal.diff, *rehearsal.units),
    }
