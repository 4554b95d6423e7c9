"""The slow cache is as slow as it says, for all its clients together, and serves what is there."""

from __future__ import annotations

import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

from tests.support.limited_cache import LimitedCache


class LimitedCacheTest(unittest.TestCase):
    def test_two_clients_share_the_rate(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            data = bytes(range(256)) * 4000
            (Path(name) / "file").write_bytes(data)
            with LimitedCache(Path(name), 2_000_000) as cache:
                got: list[bytes] = []

                def fetch() -> None:
                    with urllib.request.urlopen(f"{cache.url}/file", timeout=60) as answer:
                        got.append(answer.read())

                clients = [threading.Thread(target=fetch) for _ in range(2)]
                began = time.monotonic()
                for client in clients:
                    client.start()
                for client in clients:
                    client.join()
                self.assertEqual(got, [data, data])
                self.assertGreaterEqual(time.monotonic() - began, 2 * len(data) / 2_000_000)


if __name__ == "__main__":
    unittest.main()
