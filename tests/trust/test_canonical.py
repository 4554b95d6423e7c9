"""The canonical form of JSON against the vectors and number samples of RFC 8785."""

from __future__ import annotations

import json
import struct
import unittest
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.trust.canonical import canonical, sha256_hex
from nixfleet_agent.trust.errors import MalformedArtifactError

#: RFC 8785, appendix B: the bits of an IEEE 754 double, and how ECMAScript writes it.
NUMBERS = (
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
)


def _read_back(number: float) -> bool:
    """JCS writes doubles from 2^53 up to 1e21 as integers, which a strict reader refuses as inexact."""
    return not 2**53 <= abs(number) < 1e21


JSON_VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(_read_back)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


class Vectors(unittest.TestCase):
    def test_numbers_of_appendix_b(self) -> None:
        for bits, expected in NUMBERS:
            with self.subTest(bits=bits):
                (number,) = struct.unpack(">d", bytes.fromhex(bits))
                self.assertEqual(canonical(number), expected.encode())

    def test_the_example_of_section_3_2_2(self) -> None:
        raw = (
            rb'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
            rb'"string":"\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\u0022\/","literals":[null,true,false]}'
        )
        expected = (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        )
        self.assertEqual(canonical(loads_strict(raw)), expected.encode())

    def test_keys_are_sorted_by_utf_16_code_unit(self) -> None:
        names = {
            "\u20ac": "Euro Sign",
            "\r": "Carriage Return",
            "\ufb33": "Hebrew Letter Dalet With Dagesh",
            "1": "One",
            "\U0001f600": "Emoji: Grinning Face",
            "\u0080": "Control",
            "\u00f6": "Latin Small Letter O With Diaeresis",
        }
        order = [value for _, value in json.loads(canonical(names), object_pairs_hook=lambda pairs: pairs)]
        self.assertEqual(
            order,
            [
                "Carriage Return",
                "One",
                "Control",
                "Latin Small Letter O With Diaeresis",
                "Euro Sign",
                "Emoji: Grinning Face",
                "Hebrew Letter Dalet With Dagesh",
            ],
        )

    def test_a_hash_is_lower_case_hex(self) -> None:
        self.assertEqual(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


class Properties(unittest.TestCase):
    @settings(max_examples=300, deadline=None)
    @given(JSON_VALUES)
    def test_canonical_bytes_mean_the_value_and_are_a_fixed_point(self, value: Any) -> None:
        once = canonical(value)
        again = loads_strict(once)
        self.assertEqual(again, value)
        self.assertEqual(canonical(again), once)

    @settings(max_examples=100, deadline=None)
    @given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.integers(0, 9)), st.randoms())
    def test_the_order_of_members_does_not_matter(self, value: dict[str, int], chance: Any) -> None:
        members = list(value.items())
        chance.shuffle(members)
        self.assertEqual(canonical(dict(members)), canonical(value))

    def test_what_has_no_canonical_form_is_refused(self) -> None:
        for value in (float("nan"), float("inf"), "\ud800", {"\udc00": 1}, 2**53, {1: 2}, object()):
            with self.subTest(value=repr(value)):
                self.assertRaises(MalformedArtifactError, canonical, value)


if __name__ == "__main__":
    unittest.main()
