"""What Nix says, in the wording of its versions."""

from __future__ import annotations

import unittest
from typing import Any, cast
from unittest import mock

from nixfleet_agent.activation import nix
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.nix import FetchSize
from nixfleet_agent.activation.processes import Finished

CLOSURE = "ydvwfdgph7ba0as22nrz4qy3vlps72x6-nixos-system-web-01-25.11"


class Sizes(unittest.TestCase):
    def size(self, words: str) -> FetchSize | None:
        context: Any = mock.create_autospec(Context, instance=True)
        context.run = lambda arguments, **_: Finished(0, b"", words.encode())
        return nix.fetch_size(cast(Context, context), CLOSURE)

    def test_are_read_in_whatever_unit_nix_picks(self) -> None:
        for words, found in (
            ("these 2 paths will be fetched (0.01 MiB download, 0.03 MiB unpacked):\n", FetchSize(10485, 31457)),  # 2.8
            ("this path will be fetched (8.5 KiB download, 8.5 KiB unpacked):\n", FetchSize(8704, 8704)),  # 2.34
            ("this path will be fetched (12 B download, 1.0 EiB unpacked):\n", FetchSize(12, 1 << 60)),
            ("this path will be fetched (some download, more unpacked):\n", None),
        ):
            with self.subTest(words):
                self.assertEqual(self.size(words), found)


if __name__ == "__main__":
    unittest.main()
