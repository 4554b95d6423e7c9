"""Between fetching and acting time goes by: what an order rests on is judged at the moment at which it is taken."""

from __future__ import annotations

import unittest
from datetime import timedelta
from typing import Any
from unittest import mock

from nixfleet_agent.artifacts import cache
from nixfleet_agent.trust.errors import StaleError
from nixfleet_agent.trust.resolve import resolve_dispatch
from tests.artifacts.release_base import FLEET_PATH, ROLLOUT, ReleaseTestCase, rollout_path, target
from tests.support.signing import fleet_value, manifest_value


class Moment(ReleaseTestCase):
    def test_a_fleet_that_grew_old_while_its_manifest_was_fetched(self) -> None:
        """The machine was suspended in between; the manifest, signed later, is still fresh."""
        now = self.clock.now()
        release = self.release()
        fleet = self.ci.sign(
            fleet_value({"web-01": "stable"}, signed_at=now - timedelta(minutes=30), closures=release.closures)
        )
        manifest = self.ci.sign(manifest_value(fleet, "stable", release.closures, signed_at=now))
        self.serve_artifact(FLEET_PATH, fleet)
        self.serve_artifact(rollout_path(), manifest)

        def suspended(*arguments: Any) -> Any:
            resolved = resolve_dispatch(*arguments)
            self.clock.advance(45 * 60)
            return resolved

        with mock.patch.object(cache, "resolve_dispatch", suspended), self.assertRaises(StaleError) as caught:
            self.cache.terms(ROLLOUT, "web-01", target(release))
        self.assertIn("fleet.resolved", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
