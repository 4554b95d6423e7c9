"""What every attack has in common: a host, a control plane that lies, and the proof that nothing came of it.

After the attack ``assert_only_delayed`` shows that no switch was ordered, nothing was journaled and nobody died, and
that an honest order of a newer release is still taken.
"""

from __future__ import annotations

import logging
import os
import tempfile
import unittest
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from nixfleet_agent.runtime.workers import longpoll
from tests.attacks.host import MACHINE, Host, Life, until
from tests.attacks.liar import Liar, LyingServer, rollout_path
from tests.support.signing import CiSigner, Release, closure_name
from tests.support.tls import Authority

#: The control plane knows no such rollout, and never will.
WITHDRAWN = "stable@f00"
HOSTS = {MACHINE: "stable", "web-02": "stable", "db-01": "edge"}
# What the agent logs on purpose in these tests is no news for whoever runs them.
logging.getLogger("nixfleet_agent").addHandler(logging.NullHandler())


class AttackCase(unittest.TestCase):
    """``tries`` counts the single attempts of one test, for the table."""

    tries: ClassVar[dict[str, int]] = {}

    def setUp(self) -> None:
        # The throttle of the long poll has tests of its own; here it would only make every attempt a second long.
        self.enterContext(mock.patch.object(longpoll, "LEAST_INTERVAL", 0.02))
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.authority = Authority("fleet CA")
        self.ci = CiSigner()
        self.server = self.open_server()
        self.liar = Liar(self.server, self.authority, MACHINE)
        self.host = Host(self.folder, self.authority, self.ci, self.server.url)
        self.addCleanup(self.host.stop)
        self._commits = 0
        self.life: Life
        self.release: Release

    def open_server(self, **options: Any) -> LyingServer:
        certificate, key = self.authority.write_server(self.folder, **options)
        server = LyingServer(certificate, key, client_ca=self.authority.write_ca(self.folder / "ca.pem"))
        self.addCleanup(server.close)
        return server

    # -- the fleet ----------------------------------------------------------------------------

    def new_release(self, **options: Any) -> Release:
        """The next release of CI: another commit, other closures, signed now."""
        self._commits += 1
        options.setdefault("signed_at", datetime.now(timezone.utc))  # no two releases of one instant
        options.setdefault("commit", f"{self._commits:07x}")
        return self.ci.release(options.pop("hosts", HOSTS), **options)

    def publish(self, **options: Any) -> Release:
        self.release = self.new_release(**options)
        self.liar.publish(self.release)
        return self.release

    @property
    def rollout_id(self) -> str:
        return self.release.rollout_id("stable")

    @property
    def rollout(self) -> str:
        """Where this host's manifest is served."""
        return rollout_path(self.rollout_id)

    @property
    def closure(self) -> str:
        return self.release.closures[MACHINE]

    def start(self, **changes: Any) -> Life:
        """The next process of the agent."""
        if self.host.life is not None:
            self.assert_alive()
        self.host.stop()
        self.liar.hang_up()
        self.life = self.host.start(**changes)
        return self.life

    # -- one attempt --------------------------------------------------------------------------

    @contextmanager
    def attempt(self, name: object) -> Iterator[None]:
        """One way to attack; counted, and what it lied about is over afterwards."""
        type(self).tries[self.id()] = type(self).tries.get(self.id(), 0) + 1
        # One attempt that comes through is all that is wanted of a test that is to fail.
        with nullcontext() if "ATTACK_PATIENCE_SECS" in os.environ else self.subTest(attempt=str(name)):
            yield
            self.withdraw()
        self.liar.lies.clear()

    def withdraw(self) -> None:
        """Put an order in the place of a kept one, which would rightly be taken once the lies about it are over."""
        pending = self.host.pending() if self.host.life is not None else None
        if pending is not None and pending["dispatch"]["rollout_id"] != WITHDRAWN:
            self.liar.dispatch(WITHDRAWN, closure_name("withdrawn"))
            self.until(lambda: self.kept.get("rollout_id") == WITHDRAWN, "it is withdrawn")

    def until(self, condition: Any, what: str) -> Any:
        return until(condition, what, self.situation)

    def situation(self) -> str:
        status = self.life.status()
        lines = [f"{line.get('level')}: {line['message'][:300]}" for line in self.life.log()[-8:]]
        return f"dispatch {status.get('dispatch')}, refusals {status.get('refusals')}, log {lines}"

    def assert_refused(self, label: str, send: Any) -> None:
        """``send`` an order; it must be refused for good, with this reason in log, counters and status."""
        life, counted = self.life, self.life.counted("dispatches_refused", reason=label)
        send()
        self.until(lambda: life.counted("dispatches_refused", reason=label) > counted, f"refused as {label}")
        self._assert_told(label, "refused")
        self.until(lambda: self.host.pending() is None, "the refused order is off the disk")
        self.assertIn(f'dispatches_refused_total{{reason="{label}"}}', life.exposition())

    def assert_kept(self, label: str, send: Any) -> None:
        """``send`` an order; it must be kept for another try, with this reason, and not be acted upon."""
        self.assertEqual(self.keep(send), label)
        self._assert_told(label, "kept")
        kept = self.host.pending()
        assert kept is not None, "what is kept is on disk"

    def keep(self, send: Any) -> str:
        """``send`` an order that will be kept; the label of the reason of its first try."""
        if self.host.pending() is not None:
            self.until(lambda: self.kept, "what the last process kept is known")
        before = self.kept.get("received_at")
        send()
        self.until(lambda: self.kept.get("received_at", before) != before and self.kept.get("label"), "it is kept")
        return str(self.kept["label"])

    @property
    def kept(self) -> dict[str, Any]:
        """What status says of the order that is kept."""
        return self.life.status().get("dispatch") or {}

    def _assert_told(self, label: str, outcome: str) -> None:
        self.until(
            lambda: any(
                r["label"] == label and r["outcome"] == outcome for r in (self.life.status().get("refusals") or ())
            ),
            f"{outcome} as {label} in status",
        )
        self.assertTrue(any(line.get("reason") == label for line in self.life.log()), "the reason is in the log")
        self.assert_untouched()

    def assert_untouched(self) -> None:
        """No order to switch, no journal, no event, nobody died."""
        self.assertEqual(self.life.switches, [])
        self.assertEqual(self.host.journal(), [])
        self.assertEqual(self.liar.events, [])
        self.assertFalse((self.host.state_dir / "switch").exists() and any((self.host.state_dir / "switch").iterdir()))
        self.assert_alive()

    def assert_alive(self) -> None:
        self.assertEqual([f"{death.worker.name}: {death.error!r}" for death in self.life.deaths], [])

    def assert_only_delayed(self) -> None:
        """Nothing came of the attacks, and the control plane that tells the truth again is believed."""
        self.assert_untouched()
        self.liar.lies.clear()
        self.assert_honest_order_is_taken()

    def assert_honest_order_is_taken(self) -> None:
        self.publish()
        before = len(self.life.switches)
        self.liar.dispatch(self.rollout_id, self.closure)
        self.until(lambda: "DispatchAck" in self.liar.kinds(self.rollout_id), "an honest order is acknowledged")
        self.until(lambda: len(self.life.switches) > before, "activation is told of an honest order")
        order = self.life.switches[-1]
        self.assertEqual((order.rollout_id, order.target), (self.rollout_id, self.closure))
        self.assertTrue(any(name.endswith("-Dispatch.json") for name in self.host.journal()), "seq 0 is on disk")
        self.assert_alive()
