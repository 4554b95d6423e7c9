"""``verify``: a signed fleet or manifest, judged offline as ``run`` would, but without its memory of past ones."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from nixfleet_agent.commands.files import read_input
from nixfleet_agent.commands.invocation import GREEN, RED, Invocation, Parser
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_USAGE, AgentError, ConfigError, ProtoError
from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.trust import errors as refusals
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.resolve import require_entry
from nixfleet_agent.trust.roots import TrustRoots, parse_trust
from nixfleet_agent.trust.verify import FLEET_LIMIT, MANIFEST_LIMIT, SIGNATURE_LIMIT, verify_fleet, verify_manifest


class ArgumentsError(AgentError):
    """Arguments that do not go together."""

    exit_code = EXIT_USAGE


def configure(parser: Parser) -> None:
    parser.details(
        "Says which check failed. Uses the configured trust file and freshness window, and remembers nothing."
    )
    parser.example(
        "nixfleet-agent verify --fleet fleet.resolved --sig fleet.resolved.sig",
        "nixfleet-agent verify --manifest manifest.json --sig manifest.json.sig --host web-01",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fleet", metavar="FILE", type=Path, help="a fleet.resolved as CI published it")
    what.add_argument("--manifest", metavar="FILE", type=Path, help="a rollout manifest as CI published it")
    parser.add_argument("--sig", metavar="FILE", type=Path, required=True, help="its signature (64 raw bytes)")
    parser.add_argument("--host", metavar="NAME", help="with --manifest: also require exactly one entry for this host")
    parser.add_argument("--rollout", metavar="ID", help="with --manifest: the rollout id it must be for")


def run(call: Invocation) -> int:
    options, config = call.options, call.config
    if options.fleet and (options.host is not None or options.rollout is not None):
        raise ArgumentsError("--host and --rollout go with --manifest: a fleet is verified as a whole")
    trust = parse_trust(read_input(config.trust_file, BODY_LIMIT, ConfigError), str(config.trust_file))
    signature = read_input(options.sig, SIGNATURE_LIMIT)
    override = config.manifest_freshness_window_secs
    window = None if override is None else timedelta(seconds=override)
    now = SystemClock().now()
    try:
        if options.fleet:
            report = _fleet(read_input(options.fleet, FLEET_LIMIT), signature, trust, now, window)
        else:
            raw = read_input(options.manifest, MANIFEST_LIMIT)
            report = _manifest(raw, signature, trust, now, window, options.rollout, options.host)
    except refusals.VerificationError as refusal:
        _say_refused(call, refusal)
        return EXIT_CHECK_FAILED
    if call.json:
        call.print_json({"verified": True, **report})
    else:
        call.print("verified  " + "  ".join(f"{k}={v}" for k, v in report.items()), GREEN)
    return EXIT_OK


def _fleet(
    raw: bytes, signature: bytes, trust: TrustRoots, now: datetime, window: timedelta | None
) -> dict[str, object]:
    verified = verify_fleet(raw, signature, trust, now=now, override_window=window, marks=Marks())
    fleet = verified.fleet
    return {
        "artifact": "fleet.resolved",
        "hash": verified.hash,
        "signed_at": format_time(verified.signed_at),
        "key": verified.key_name,
        "hosts": len(fleet.hosts),
        "channels": len(fleet.channels),
    }


def _manifest(
    raw: bytes,
    signature: bytes,
    trust: TrustRoots,
    now: datetime,
    window: timedelta | None,
    rollout_id: str | None,
    host: str | None,
) -> dict[str, object]:
    asked = rollout_id or _own_id(raw)
    verified = verify_manifest(raw, signature, asked, trust, now=now, window=window, marks=Marks())
    report: dict[str, object] = {
        "artifact": asked,
        "hash": verified.hash,
        "signed_at": format_time(verified.signed_at),
        "key": verified.key_name,
        "hosts": len(verified.manifest.host_set),
    }
    if host is not None:
        entries = verified.manifest.entries(host)
        target = entries[0].target_closure if entries else ""
        entry = require_entry(verified.manifest, host, target)
        report |= {"host": host, "wave": entry.wave_index, "target_closure": entry.target_closure}
    return report


def _own_id(raw: bytes) -> str:
    """The id that the manifest gives itself: nobody asked for another, so there is nothing to be swapped for.

    One that gives itself none is judged under a name that no manifest has: the checks before the id say what is wrong.
    """
    try:
        value = loads_strict(raw, limit=MANIFEST_LIMIT, what="the manifest")
        return RolloutManifest.parse(value, "the manifest").rollout_id
    except ProtoError:
        return "(no id)"


def _say_refused(call: Invocation, refusal: refusals.VerificationError) -> None:
    if call.json:
        call.print_json({"verified": False, "check": refusal.reason, "final": refusal.final, "message": str(refusal)})
    else:
        call.print(f"refused  check={refusal.reason}  {refusal}", RED)
