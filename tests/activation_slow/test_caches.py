"""Caches that fail for as long as they do in the field, under Nix's own defaults."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.model import Completed
from tests.activation.case import PipelineCase
from tests.support.binary_cache import CacheServer


class CachesTest(PipelineCase):
    def tearDown(self) -> None:
        self.nixery.server.status = lambda path: None

    def test_fifteen_seconds_of_502_do_not_end_the_rollout(self) -> None:
        target = self.nixery.system("late")
        self.host.configure(realise_timeout_secs=120.0)
        end = self.clock.monotonic() + 15.0
        self.nixery.server.status = lambda path: 502 if self.clock.monotonic() < end else None
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual({waiting.kind for waiting in self.waits if waiting}, {"server"})

    def test_of_several_caches_one_that_is_broken_does_not_end_it(self) -> None:
        broken = CacheServer(self.nixery.cache)
        self.addCleanup(broken.close)
        for part in (".narinfo", "/nar/", "nix-cache-info"):
            for order in ((broken, self.nixery.server), (self.nixery.server, broken)):
                with self.subTest(part, first="broken" if order[0] is broken else "good"):
                    self.setUp()
                    broken.status = lambda path, part=part: 502 if part in path else None  # type: ignore[misc]
                    sources = " ".join(server.url for server in order)
                    config = self.host.environment["NIX_CONFIG"]
                    self.host.environment["NIX_CONFIG"] = config.replace(self.nixery.server.url, sources)
                    target = self.nixery.system(f"two-{part.strip('/.')}-{order[0] is broken}")
                    self.assertEqual(self.forward(target), Completed(target, 0, ()))
                    self.assertEqual(self.waits, [], "without a wait")


if __name__ == "__main__":
    unittest.main()
