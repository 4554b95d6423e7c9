"""Names that become file names and arguments: what the patterns let through, and what must never pass."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids

HASH = "0123456789abcdfghijklmnpqrsvwxyz"


class Patterns(unittest.TestCase):
    def good(self, pattern: object, *values: str) -> None:
        for value in values:
            with self.subTest(value=value):
                self.assertEqual(ids.require(pattern, value, "it"), value)  # type: ignore[arg-type]

    def bad(self, pattern: object, *values: object) -> None:
        for value in values:
            with self.subTest(value=value), self.assertRaises(ProtoError) as caught:
                ids.require(pattern, value, "the name of it")  # type: ignore[arg-type]
            self.assertIn("the name of it", str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))
            self.assertLess(len(str(caught.exception)), 300)

    def test_rollout_ids(self) -> None:
        self.good(ids.ROLLOUT_ID, "stable@def4567abc", "a-b_c0@0", "edge@" + "f" * 64, "c" * 64 + "@1")
        self.bad(
            ids.ROLLOUT_ID,
            None,
            7,
            "",
            "stable",
            "stable@",
            "@abc",
            "Stable@abc",
            "stable@ABC",
            "stable@xyz",
            "stable@abc/../..",
            "../stable@abc",
            "stable@abc\n",
            "a@b@c",
            "c" * 65 + "@1",
            "stable@" + "f" * 65,
            "ſtable@abc",
        )

    def test_closures(self) -> None:
        self.good(ids.CLOSURE, f"{HASH}-nixos-system-web-01-24.11", f"{HASH}-a", f"{HASH}-?=_+", f"{HASH}-" + "n" * 211)
        self.bad(
            ids.CLOSURE,
            None,
            "",
            HASH,
            f"{HASH}-",
            f"/nix/store/{HASH}-x",
            f"{HASH}-..",
            f"{HASH}-.hidden",
            f"{HASH}-a/b",
            f"{HASH[:-1]}e-x",
            f"{HASH[:-1]}-x",
            f"{HASH.upper()}-x",
            f"{HASH}-x y",
            f"{HASH}-x\n",
            f"{HASH}-" + "n" * 212,
        )

    def test_host_names(self) -> None:
        self.good(ids.HOSTNAME, "web-01", "a", "web_01.example.org", "A" * 253)
        self.bad(ids.HOSTNAME, None, "", "-a", "a-", ".a", "a.", "a b", "a/b", "..", "a\n", "é", "A" * 254)

    def test_the_channel_of_a_rollout(self) -> None:
        self.assertEqual(ids.channel_of("stable-2_x@abc"), "stable-2_x")

    @given(st.text(max_size=40))
    def test_a_file_part_can_never_leave_its_folder(self, text: str) -> None:
        part = ids.file_part(text)
        self.assertEqual(len(part), len(text))
        self.assertRegex(part, r"\A[A-Za-z0-9@._-]*\Z")

    @given(st.from_regex(ids.ROLLOUT_ID, fullmatch=True))
    def test_a_rollout_id_is_its_own_file_part(self, rollout_id: str) -> None:
        self.assertEqual(ids.file_part(rollout_id), rollout_id)


if __name__ == "__main__":
    unittest.main()
