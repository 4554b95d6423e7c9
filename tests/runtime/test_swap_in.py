"""A host that the Rust agent ran on: its certificate serves, its events arrive in their order, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import unittest
from datetime import timedelta
from pathlib import Path
from typing import Any

from nixfleet_agent.config.model import Config
from nixfleet_agent.journal.entries import decode, read_raw
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.events import to_wire
from nixfleet_agent.runtime import swap_in
from nixfleet_agent.runtime.workers.outbound import envelope
from tests.runtime.harness import temporary
from tests.state_machine.machine import event
from tests.support.tls import Authority, new_host_key, now, write_host_key

HOST, R = "web-01", "stable@def4567abc"
KINDS = ("DispatchAck", "ActivationStarted", "ActivationCompleted")


def queued(seq: int, kind: str, hostname: str = HOST) -> tuple[str, bytes]:
    """Name and content of a file of the Rust agent's queue."""
    body: dict[str, Any] = {
        "seq": seq,
        "hostname": hostname,
        "rollout_id": R,
        "event_kind": kind,
        "created_at": "2026-05-16T01:00:00.123456789Z",
        "payload": to_wire(event(kind, seq)),
    }
    return f"{seq:020}-{hostname}-{R}-{kind}.json", json.dumps(body, indent=2).encode()


class SwapIn(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary(self)
        self.key = write_host_key(self.folder / "host_key")
        self.source = self.folder / "rust"
        (self.source / "outbound-queue").mkdir(parents=True)
        for seq, kind in enumerate(KINDS, start=1):
            self.put(*queued(seq, kind))

    def put(self, name: str, content: bytes) -> None:
        (self.source / "outbound-queue" / name).write_bytes(content)

    def config(self, state_dir: Path) -> Config:
        return Config(
            control_plane_url="https://cp",
            machine_id=HOST,
            state_dir=state_dir,
            client_cert=state_dir / "agent-cert.pem",
            client_key=self.folder / "host_key",
        )

    def certificate(self, place: Path | None = None, **options: Any) -> bytes:
        path = (place or self.source) / "agent-cert.pem"
        key = options.pop("key", self.key)
        Authority().write_client(path, key, HOST, not_before=now(), not_after=now() + timedelta(days=30), **options)
        return path.read_bytes()

    def told(self, config: Config) -> list[str]:
        return [f"{step.what}: {step.text}" for step in swap_in.steps(config, self.source)]

    def assert_delivers(self, state_dir: Path) -> None:
        """Every event goes out once, lowest seq first, and ends among the delivered."""
        journal = Journal(state_dir, HOST)
        journal.open()
        bodies = []
        while (path := journal.first(R)) is not None:
            bodies.append(json.loads(envelope(decode(read_raw(path)), lambda _: None)))
            journal.delivered(R, path)
        self.assertEqual([body["event"] for body in bodies], [to_wire(event(k, s)) for s, k in enumerate(KINDS, 1)])
        self.assertEqual({(body["hostname"], body["rolloutId"]) for body in bodies}, {(HOST, R)})
        self.assertEqual(list((state_dir / "outbound-corrupt").iterdir()), [])
        self.assertEqual(len(list((state_dir / "outbound-sent" / R).iterdir())), len(KINDS))

    def test_in_the_same_folder_needs_no_copy(self) -> None:
        self.certificate()
        config = self.config(self.source)
        self.assertTrue(all(step.do is None for step in swap_in.steps(config, self.source)))
        swap_in.on_first_start(config, self.source)
        self.assert_delivers(self.source)

    def test_from_another_folder_copies_once_and_leaves_what_was_there(self) -> None:
        pem = self.certificate()
        config = self.config(self.folder / "ours")
        before = {path: path.read_bytes() for path in self.source.rglob("*") if path.is_file()}
        swap_in.on_first_start(config, self.source)
        self.assertEqual(config.client_cert.read_bytes().strip(), pem.strip())
        self.assert_delivers(config.state_dir)
        self.assertEqual({path: path.read_bytes() for path in self.source.rglob("*") if path.is_file()}, before)
        self.assertTrue(all(step.do is None for step in swap_in.steps(config, self.source)), "all was taken over")
        shutil.rmtree(config.state_dir / "outbound-sent" / R)
        swap_in.on_first_start(config, self.source)
        self.assertEqual(list((config.state_dir / "outbound-queue").iterdir()), [], "only at the first start")

    def test_the_certificate_is_found_in_the_folder_of_its_own_that_the_rust_module_has(self) -> None:
        place = self.folder / "nixfleet"
        place.mkdir()
        pem = self.certificate(place)
        for config in (self.config(self.folder / "ours"), self.config(self.source)):
            with self.subTest(config.state_dir.name):
                swap_in.on_first_start(config, self.source)
                self.assertEqual(config.client_cert.read_bytes().strip(), pem.strip())
                self.assert_delivers(config.state_dir)
        self.assertEqual((place / "agent-cert.pem").read_bytes(), pem)

    def test_what_is_not_this_hosts_is_left(self) -> None:
        self.certificate(key=new_host_key())
        self.put(*queued(9, "Converged", hostname="web-02"))
        self.put("00000000000000000008-web-01-x.json", b"{")
        config = self.config(self.folder / "ours")
        told = self.told(config)
        self.assertIn("is of another key or name than this host's: it has to enroll", told[0])
        self.assertTrue(any("is of web-02, and is left" in line for line in told), told)
        self.assertTrue(any("can't be read, and is left" in line for line in told), told)
        swap_in.on_first_start(config, self.source)
        self.assertFalse(config.client_cert.exists())
        self.assertEqual(len(list((config.state_dir / "outbound-queue").iterdir())), len(KINDS))

    def test_a_certificate_that_this_agent_has_is_not_replaced(self) -> None:
        self.certificate()
        config = self.config(self.folder / "ours")
        config.state_dir.mkdir()
        config.client_cert.write_bytes(b"mine")
        self.assertIn("is left: this agent has one", self.told(config)[0])
        swap_in.on_first_start(config, self.source)
        self.assertEqual(config.client_cert.read_bytes(), b"mine")

    def test_the_last_rollout_is_told(self) -> None:
        record = {
            "closure_hash": "abc-nixos",
            "channel_ref": R,
            "rollout_id": R,
            "dispatched_at": "2026-05-16T01:00:00Z",
        }
        (self.source / "last_dispatched").write_text(json.dumps(record))
        self.assertTrue(self.told(self.config(self.folder / "ours"))[-1].startswith(f"rollout: {R} to abc-nixos"))

    def test_nothing_there_is_nothing_to_do(self) -> None:
        self.assertEqual(list(swap_in.steps(self.config(self.folder / "ours"), self.folder / "nowhere")), [])


if __name__ == "__main__":
    unittest.main()
