"""Whatever is read from outside, made strange by chance: the documented errors, in bounded time, and nothing else."""

from __future__ import annotations

import base64
import copy
import json
import logging
import tempfile
import time
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixfleet_agent.artifacts.trust_store import MARKS_FILE, TrustStore
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import AgentError, IdentityError, ProtoError, StorageError
from nixfleet_agent.identity.certificate import check_answer
from nixfleet_agent.journal.entries import decode, parse_name
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.net.answers import Answer, replay_from, retry_after
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.quarantine import QuarantineStore
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.probes import health_checks
from nixfleet_agent.probes.runners.evidence_file import EvidenceError, EvidenceReader
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.enrollment import BootstrapToken, CertificateAnswer
from nixfleet_agent.proto.heartbeat import snapshots
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.reboots.ledger import Asked, RebootLedger
from nixfleet_agent.runtime.dispatch.pending import FILE_NAME, PendingDispatch
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.trust.errors import TrustFileError, VerificationError
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.verify import open_fleet, open_manifest
from tests.support.signing import CiSigner, closure_name, fleet_value, manifest_value
from tests.support.tls import DAY, Authority, now, pem_of, write_host_key

logging.getLogger("nixfleet_agent").addHandler(logging.NullHandler())

AT = "2026-05-16T01:30:00Z"
CLOSURE = closure_name("nixos-system-x")
#: CPU seconds that reading one small document may take; a slow machine is no slow algorithm.
BOUND_SECS = 2.0

STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=20).map(lambda raw: base64.b64encode(raw).decode()),
    st.lists(st.none() | st.integers() | st.text(max_size=5), max_size=4),
    st.dictionaries(st.text(max_size=8), st.integers() | st.none() | st.text(max_size=8), max_size=4),
    st.sampled_from(
        ["9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+23:59", "..", "\x1b[2J", "\ud800", "a" * 5000, -0.0, 2**53]
    ),
)


@dataclass(frozen=True)
class Target:
    """A reader, a document that it takes, and what it may raise for any other."""

    name: str
    good: Any
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()

    @property
    def sound(self) -> bytes:
        return json.dumps(self.good).encode()


def judge(target: Target, raw: bytes) -> bool:
    """Whether ``raw`` is taken. AssertionError where a refusal is not as documented, too long, or too slow."""
    began, taken = time.thread_time(), False
    try:
        target.read(raw)
        taken = True
    except target.errors as error:
        assert isinstance(error, AgentError), repr(error)
        assert "\n" not in str(error), repr(error)
        assert len(str(error).encode("utf-8", "replace")) < 16 * 1024
    assert time.thread_time() - began < BOUND_SECS
    return taken


class World:
    """Keys, files and stores that the readers need; made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ci = CiSigner()
        self.trust = parse_trust(self.ci.trust_bytes())
        self.authority = Authority("fleet CA")
        self.key = write_host_key(folder / "key")
        self.certificate = pem_of(
            self.authority.issue_client(self.key.private.public_key(), "web-01", not_after=now() + 60 * DAY)
        )
        self.config = Config(
            control_plane_url="https://cp", machine_id="web-01", state_dir=folder, trust_file=folder / "trust.json"
        )
        self.now = datetime.now(timezone.utc)

    def targets(self) -> list[Target]:
        return [*self.wire(), *self.signed(), *self.files()]

    # -- from the control plane ---------------------------------------------------------------

    def wire(self) -> list[Target]:
        order = {"hostname": "web-01", "rollout_id": "stable@def", "target_closure": CLOSURE}
        order |= {"soak_due_at": AT, "enqueued_at": AT}
        hint: dict[str, Any] = {
            "rolloutId": "stable@def",
            "hostname": "web-01",
            "channel": "stable",
            "state": "Soaking",
        }
        hint |= {"targetClosure": CLOSURE, "dispatchedAt": AT, "soakDueAt": AT, "lastEventSeq": 3}
        return [
            Target("order", order, lambda raw: Dispatch.parse(loads_strict(raw)), (ProtoError,)),
            Target(
                "heartbeat's answer",
                {"received_at": AT, "bootstrap_rollouts": [hint, hint]},
                lambda raw: snapshots(loads_strict(raw), 16),
                (ProtoError,),
            ),
            Target(
                "certificate's answer", {"certPem": self.certificate}, self._certificate, (ProtoError, IdentityError)
            ),
        ]

    def _certificate(self, raw: bytes) -> object:
        return check_answer(
            CertificateAnswer.parse(raw).cert_pem,
            public_raw=self.key.public_raw,
            machine_id="web-01",
            current=None,
            anchors=(self.authority.certificate,),
            now=self.now,
        )

    # -- signed: what is found here must have CI's signature first ------------------------------

    def signed(self) -> list[Target]:
        hosts = {"web-01": "stable", "db-01": "edge"}
        closures = dict.fromkeys(hosts, CLOSURE)
        fleet = fleet_value(hosts, signed_at=self.now, closures=closures)
        manifest = manifest_value(self.ci.sign(fleet), "stable", closures, signed_at=self.now)
        trust = self.ci.trust_value(cacheKeys=["k"], issuanceCaPems=["x"], rootCaPem="y")
        trust["ciReleaseKey"] |= {"previous": CiSigner("ecdsa-p256").public, "rejectBefore": AT, "retireAt": AT}
        claims = {"hostname": "web-01", "expectedPubkeyFingerprint": "x", "issuedAt": AT, "expiresAt": AT, "nonce": "n"}
        return [
            Target("fleet", fleet, self._fleet, (VerificationError,)),
            Target("manifest", manifest, self._manifest, (VerificationError,)),
            Target("trust file", trust, parse_trust, (TrustFileError,)),
            Target("token", {"version": 1, "claims": claims, "signature": "c2ln"}, BootstrapToken.parse, (ProtoError,)),
        ]

    def _fleet(self, raw: bytes) -> object:
        fleet = open_fleet(raw, self.ci.signature(raw), self.trust, now=self.now)
        return fleet.fleet.freshness_window, fleet.fleet.host("web-01"), fleet.fleet.channels_in_use

    def _manifest(self, raw: bytes) -> object:
        manifest = open_manifest(raw, self.ci.signature(raw), "stable@def4567abc", self.trust, now=self.now)
        return manifest.manifest.entries("web-01")

    # -- from this host's own disk ---------------------------------------------------------------

    def files(self) -> list[Target]:
        mark = {"schemaVersion": 1, "fleet": AT, "channels": {"stable": AT}}
        accepted = {
            "kind": "Dispatch",
            "acceptance": 1,
            "targetClosure": CLOSURE,
            "priorClosure": CLOSURE,
            "soakDueAt": AT,
            "soakFloorMinutes": 1,
            "policy": "halt",
            "acceptedAt": AT,
            "manifest": {"hash": "h", "signedAt": AT},
            "fleet": {"hash": "h", "signedAt": AT},
            "marks": mark,
        }
        entry = {"seq": 0, "hostname": "web-01", "rolloutId": "stable@def", "eventKind": "Dispatch"}
        entry |= {"createdAt": AT, "event": accepted, "local": {}}
        ack = {"kind": "DispatchAck", "seq": 1, "currentClosureAtDispatch": CLOSURE, "receivedAt": AT}
        order = {"hostname": "web-01", "rollout_id": "stable@def", "target_closure": CLOSURE}
        order |= {"soak_due_at": AT, "enqueued_at": AT}
        kept = {"schemaVersion": 1, "dispatch": order, "receivedAt": AT, "asOf": AT, "keptForSecs": 1.5, "held": False}
        control = {"controlId": "c", "passed": True, "frameworkArticles": {"nis2": ["21"]}}
        evidence = {"schemaVersion": 1, "hostname": "web-01", "collectedAt": AT, "controls": [control]}
        declared = {
            "web": {"kind": "http", "url": "http://127.0.0.1/", "intervalSeconds": 5, "mode": "enforce"},
            "port": {"kind": "tcp", "host": "127.0.0.1", "port": 22},
            "run": {"kind": "exec", "command": ["true"], "timeoutSecs": 3},
            "proof": {"kind": "evidence", "framework": "nis2", "controlOverrides": {"c": {"mode": "observe"}}},
        }
        asked = Asked("stable@def", "forward", "boot-1", self.now)
        quarantined = {"channel": "stable", "closure": CLOSURE, "rolloutId": "stable@def", "since": AT, "reason": "r"}
        return [
            Target("journal file: acceptance", entry, self._journal, (ProtoError,)),
            Target("journal file: event", {**entry, "seq": 1, "event": ack}, self._journal, (ProtoError,)),
            Target("kept order", kept, self._kept),
            Target("hold", {"reason": "r", "since": AT, "until": AT}, self._hold),
            Target("reboots", [asked.to_json()], self._reboots, (StorageError,)),
            Target("quarantine", {"schemaVersion": 1, "entries": [quarantined]}, self._quarantine),
            Target("high-water marks", mark, self._marks),
            Target("rollback given up", {"rolloutId": "stable@def"}, self._given_up),
            Target("evidence", evidence, self._evidence, (EvidenceError,)),
            Target(
                "health checks", declared, lambda raw: (health_checks.parse(raw, 5.0), health_checks.lint(raw, 5.0))
            ),
        ]

    def _journal(self, raw: bytes) -> object:
        entry = decode(raw)
        if entry.seq == 0:
            return Acceptance.parse(entry.rollout_id, entry.event).record("web-01")
        return entry.remote_event()

    def _kept(self, raw: bytes) -> object:
        (self.folder / FILE_NAME).write_bytes(raw)
        return PendingDispatch(self.folder).load()

    def _hold(self, raw: bytes) -> object:
        (self.folder / "hold.json").write_bytes(raw)
        return HoldStore(self.folder, SystemClock()).current()

    def _reboots(self, raw: bytes) -> object:
        ledger = RebootLedger(self.folder)
        ledger.path.write_bytes(raw)
        return ledger.last("stable@def", "forward")

    def _quarantine(self, raw: bytes) -> object:
        (self.folder / "quarantine.json").write_bytes(raw)
        store = QuarantineStore(self.folder)
        return store.refusal("stable", CLOSURE, now=self.now, hours=24, running=None), store.lost, store.entries()

    def _given_up(self, raw: bytes) -> object:
        (self.folder / "rollback-given-up.json").write_bytes(raw)
        return RollbackControl(self.folder).given_up("stable@def")

    def _marks(self, raw: bytes) -> object:
        (self.folder / MARKS_FILE).write_bytes(raw)
        return TrustStore(self.config).recover_marks([]).newest

    def _evidence(self, raw: bytes) -> object:
        path = self.folder / "evidence.json"
        path.write_bytes(raw)
        try:
            signed = self.key.sign(rfc8785.dumps(json.loads(raw)))
        except (ValueError, RecursionError):
            signed = bytes(64)
        Path(f"{path}.sig").write_text(base64.b64encode(signed).decode())
        return EvidenceReader("web-01", self.folder / "key").read(path)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the parts of a document are."""
    found = [here]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += places(part, (*here, key))
    return found


@st.composite
def strange_documents(draw: st.DrawFn, good: Any) -> bytes:
    """``good`` with parts replaced, removed, renamed or repeated; then, at times, with its bytes damaged."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, 3))):
        value = _changed(draw, value)
    raw = json.dumps(value).encode("utf-8", "surrogatepass")
    return _damaged(draw, raw) if draw(st.integers(0, 3)) == 0 else raw


def _changed(draw: st.DrawFn, value: Any) -> Any:
    place = draw(st.sampled_from(places(value)))
    if not place:
        return draw(STRANGE) if draw(st.integers(0, 9)) == 0 else value
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    action = draw(st.sampled_from(("replace", "remove", "rename", "wrap")))
    if action == "replace":
        parent[place[-1]] = draw(STRANGE)
    elif action == "remove":
        del parent[place[-1]]
    elif action == "rename" and isinstance(parent, dict):
        parent[draw(st.text(max_size=10))] = parent.pop(place[-1])
    else:
        for _ in range(draw(st.integers(1, 80))):
            parent[place[-1]] = [parent[place[-1]]]
    return value


def _damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    at = draw(st.integers(0, len(raw)))
    piece = draw(st.binary(max_size=6) | st.sampled_from([b"1e400", b"NaN", b'"\\ud800"', b"[" * 60_000, b"9" * 5000]))
    end = draw(st.integers(at, min(len(raw), at + 20)))
    return raw[:at] + piece + raw[end:]


class Fuzz(unittest.TestCase):
    EXAMPLES = 40

    def setUp(self) -> None:
        self.world = World(Path(self.enterContext(tempfile.TemporaryDirectory())))

    def fuzz(self, target: Target, examples: int) -> None:
        """``target`` over that many documents."""

        def read(raw: bytes) -> None:
            judge(target, raw)

        self.assertTrue(judge(target, target.sound), f"the {target.name} that is sound is taken")
        options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        options(given(strange_documents(target.good))(read))()
        options(given(st.binary(max_size=300))(read))()

    def test_documents_made_strange(self) -> None:
        for target in self.world.targets():
            with self.subTest(target.name):
                self.fuzz(target, self.EXAMPLES)

    def test_files_that_end_a_recursive_parser(self) -> None:
        for target in self.world.targets():
            for raw in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000):
                with self.subTest(target.name):
                    try:
                        target.read(raw)
                    except target.errors as error:
                        self.assertIsInstance(error, AgentError)

    def test_headers_made_strange(self) -> None:
        text = st.text(st.characters(max_codepoint=255), max_size=60)
        parts = st.sampled_from(
            ["Mon", ",", " ", "1", "99999999999", "Jan", "2026", "0001", "9999", ":", "+2359", "-9999", "GMT"]
        )
        moment = datetime(2026, 5, 16, tzinfo=timezone.utc)

        @settings(max_examples=10 * self.EXAMPLES, deadline=None, database=None)
        @given(text | st.lists(parts, max_size=14).map("".join))
        def read(value: str) -> None:
            answer = Answer(503, {"Retry-After": value, "X-Nixfleet-Replay-From": value}, b"")
            seconds = retry_after(answer, moment)
            self.assertTrue(seconds is None or 0 <= seconds <= 600)
            seq = replay_from(answer)
            self.assertTrue(seq is None or seq >= 0)

        read()

    def test_file_names_made_strange(self) -> None:
        @settings(max_examples=5 * self.EXAMPLES, deadline=None, database=None)
        @given(st.from_regex(r"\A\d{0,22}-?.{0,40}-[A-Za-z]*\.json\Z") | st.text(max_size=60))
        def read(name: str) -> None:
            found = parse_name(name, "web-01")
            if found is not None:
                self.assertNotIn("/", found.rollout_id)
                self.assertLess(found.seq, 2**53)

        read()


def run_for(minutes: float) -> int:
    """Fuzz all targets in turn until the time is over; the exit code."""
    until = time.monotonic() + timedelta(minutes=minutes).total_seconds()
    rounds = 0
    while time.monotonic() < until:
        for name in ("test_documents_made_strange", "test_headers_made_strange", "test_file_names_made_strange"):
            test = Fuzz(name)
            test.EXAMPLES = 300
            result = unittest.TestResult()
            test.run(result)
            for _, text in (*result.errors, *result.failures):
                print(text)
            if not result.wasSuccessful():
                return 1
        rounds += 1
        print(f"{rounds} rounds, nothing found", flush=True)
    return 0


if __name__ == "__main__":
    unittest.main()
