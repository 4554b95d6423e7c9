"""A host on which the Rust agent ran, and this one starts: the same identity, its events, its rollout, and the next."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import unittest
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.conformance import judging
from nixfleet_agent.conformance.stand import HOSTNAME, INSTALLED, Settings, Stand, rollout_id
from nixfleet_agent.demo.closures import System
from nixfleet_agent.demo.processes import remove_tree
from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import State
from tests.conformance_slow.test_conformance import own_mounts

AGENT = (
    "unshare --mount sh -c 'mount --bind {root}/lib /var/lib && exec "
    f"{sys.executable} -m nixfleet_agent run --config {{config}} --state-dir /var/lib/nixfleet-agent"
    " --client-cert /var/lib/nixfleet-agent/agent-cert.pem'"
)
BEFORE = "0" * 32 + "-nixos-system-before"


@unittest.skipUnless(os.geteuid() == 0 and own_mounts(), "needs a mount namespace: run as root")
class SwapIn(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swap-in-")).resolve()
        self.addCleanup(remove_tree, self.folder)
        systems = {version: System(version) for version in (INSTALLED, "v1")}
        self.stand = Stand(self.folder, Settings(agent=AGENT), systems)
        self.addCleanup(self.stand.close)
        self.lib = self.stand.host.folder / "lib"

    def leave_what_the_rust_agent_leaves(self) -> None:
        """Its certificate, three events that were not delivered, the rollout that it was in; and no token."""
        stand, queue = self.stand, self.lib / "nixfleet-agent" / "outbound-queue"
        for folder in (self.lib / "nixfleet", queue):
            folder.mkdir(parents=True)
        (stand.host.folder / "bootstrap-token.json").unlink()
        csr, month = make_csr(stand.key, HOSTNAME), timedelta(days=30)
        issued = stand.plane.authority.issue(csr, HOSTNAME, stand.clock.now(), month)
        (self.lib / "nixfleet" / "agent-cert.pem").write_text(issued.pem)
        at, closure, rollout = format_time(stand.clock.now()), stand.closure(INSTALLED), rollout_id(INSTALLED)
        events = [
            {"kind": "DispatchAck", "currentClosureAtDispatch": BEFORE, "receivedAt": at},
            {"kind": "ActivationStarted", "startedAt": at, "switchMethod": "systemd-run"},
            {"kind": "ActivationCompleted", "observedCurrentClosure": closure, "exitCode": 0, "completedAt": at},
        ]
        for seq, event in enumerate(events, start=1):
            entry = {"seq": seq, "hostname": HOSTNAME, "rollout_id": rollout, "event_kind": event["kind"]}
            entry |= {"created_at": at, "payload": {**event, "seq": seq}}
            (queue / f"{seq:020}-{HOSTNAME}-{rollout}-{event['kind']}.json").write_text(json.dumps(entry, indent=2))
        last = {"closure_hash": closure, "channel_ref": rollout, "rollout_id": rollout, "dispatched_at": at}
        (self.lib / "nixfleet-agent" / "last_dispatched").write_text(json.dumps(last))

    def test_it_goes_on_where_the_other_one_was_and_then_converges_by_itself(self) -> None:
        self.leave_what_the_rust_agent_leaves()
        stand, state = self.stand, self.lib / "nixfleet-agent"
        stand.publish(INSTALLED)
        stand.host.start()
        stand.until_state(rollout_id(INSTALLED), State.CONVERGED)
        log = judging.log(stand.recorder.exchanges, rollout_id(INSTALLED))
        self.assertEqual([event["seq"] for event in log], list(range(1, len(log) + 1)))
        self.assertEqual(log[0]["currentClosureAtDispatch"], BEFORE)
        self.assertIsNone(judging.in_order(log, "ActivationCompleted", "ProbeTopologyDeclared", "Converged"))
        self.assertEqual(stand.host.switches(), [], "what runs is not switched to again")
        rollout = stand.publish("v1")
        stand.until_state(rollout, State.CONVERGED)
        self.assertEqual(stand.host.running_closure(), stand.closure("v1"))
        before = judging.log(stand.recorder.exchanges, rollout)[0]["currentClosureAtDispatch"]
        self.assertEqual(before, stand.closure(INSTALLED))
        for folder in ("outbound-rejected", "outbound-corrupt"):
            self.assertEqual(list((state / folder).iterdir()), [])
        self.assertEqual(judging.contract(stand.recorder.exchanges), (None, None))
        self.assertEqual([e.path for e in stand.recorder.exchanges if e.path == "/v1/enroll"], [])
        self.assertTrue((self.lib / "nixfleet" / "agent-cert.pem").exists())


if __name__ == "__main__":
    unittest.main()
