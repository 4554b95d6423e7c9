"""Bytes that two JSON readers could understand differently are refused, each for its own reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import strict_json
from nixfleet_agent.proto.strict_json import NotJsonError, loads_strict
from nixfleet_agent.runtime.daemon import STACK_BYTES

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


#: Strings as they may stand in a document: with quotes, colons and backslashes, raw and escaped, equal and nearly so.
STRINGS = st.sampled_from(
    [
        '""',
        '"a"',
        '"b"',
        r'"\u0061"',
        r'"a\""',
        r'"\"a"',
        r'"a\\"',
        r'"a\\\""',
        r'"\\\\"',
        '":a"',
        r'"\":1,\"a"',
        '"{"',
        '"é"',
    ]
)
SPACE = st.sampled_from(["", " ", "\n\t"])


def _joined(brackets: str, parts: Any) -> Any:
    return st.tuples(parts, SPACE).map(lambda made: brackets[0] + ("," + made[1]).join(made[0]) + made[1] + brackets[1])


#: Documents that any JSON reader takes; in every second one some object has a key twice.
DOCUMENTS: Any = st.recursive(
    STRINGS | st.sampled_from(["1", "-2.5e1", "true", "null"]),
    lambda inner: (
        _joined("[]", st.lists(inner, max_size=4))
        | _joined(
            "{}", st.lists(st.tuples(STRINGS, SPACE, inner).map(lambda m: f"{m[0]}{m[1]}:{m[1]}{m[2]}"), max_size=4)
        )
    ),
    max_leaves=12,
)


#: What makes a large document of a small one, and means nothing.
LARGE = b" " * strict_json.SMALL


def _has_a_key_twice(text: str) -> bool:
    twice = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        twice.append(len({key for key, _ in pairs}) < len(pairs))

    json.loads(text, object_pairs_hook=look)
    return any(twice)


class DuplicateKeys(unittest.TestCase):
    @settings(max_examples=400, deadline=None)
    @given(DOCUMENTS)
    def test_a_document_is_refused_exactly_if_an_object_has_a_key_twice(self, text: str) -> None:
        for raw in (text.encode(), text.encode() + LARGE):
            if _has_a_key_twice(text):
                self.assertRaises(strict_json.DuplicateKeyError, loads_strict, raw)
            else:
                self.assertEqual(loads_strict(raw), json.loads(text))

    @settings(max_examples=400, deadline=None)
    @given(DOCUMENTS)
    def test_the_strings_of_a_document_are_counted_without_reading_it(self, text: str) -> None:
        pattern = r'"(?:[^"\\]|\\.)*"'
        self.assertEqual(strict_json._strings_written(text.encode()), len(re.findall(pattern, text)))


class Accepted(unittest.TestCase):
    @settings(max_examples=200, deadline=None)
    @given(VALUES)
    def test_whatever_json_writes_is_read_as_it_was(self, value: Any) -> None:
        small = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            small.decode("utf-8")
        except UnicodeDecodeError:
            self.assertRaises(strict_json.NotUtf8Error, loads_strict, small)
            return
        self.assertEqual(loads_strict(small), value)

    def test_the_same_key_in_two_objects_is_no_duplicate(self) -> None:
        self.assertEqual(loads_strict(b'{"a":{"x":1},"b":{"x":1}}'), {"a": {"x": 1}, "b": {"x": 1}})

    def test_an_escaped_surrogate_pair_is_one_character(self) -> None:
        self.assertEqual(loads_strict(rb'"\ud83d\ude00"'), "\N{GRINNING FACE}")

    def test_an_escaped_backslash_before_ud800_is_text(self) -> None:
        self.assertEqual(loads_strict(rb'"\\ud800"'), "\\ud800")

    def test_depth_is_counted_by_containers_and_64_are_allowed(self) -> None:
        self.assertIsInstance(loads_strict(b"[" * 64 + b"]" * 64), list)
        self.assertIsInstance(loads_strict(b'{"a":' * 64 + b"1" + b"}" * 64), dict)
        self.assertIsInstance(loads_strict(b"[" * 64 + b"]" * 64 + LARGE), list)

    def test_brackets_inside_strings_are_not_depth(self) -> None:
        self.assertEqual(len(loads_strict(json.dumps(["[" * 500]).encode())), 1)

    def test_nesting_is_judged_as_a_reader_would_that_counts(self) -> None:
        tricky = st.text(alphabet='[]{}"\\a', max_size=6)
        values = st.recursive(
            tricky,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky, inner, max_size=3),
            max_leaves=30,
        )

        def levels(value: object) -> int:
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            return max(map(levels, inside), default=0) + isinstance(value, dict | list)

        @given(values, st.integers(0, 8))
        def judged(value: object, depth: int) -> None:
            raw = json.dumps(value).encode()
            if levels(value) > depth:
                self.assertRaises(strict_json.TooDeepError, loads_strict, raw, depth=depth)
            else:
                self.assertEqual(loads_strict(raw, depth=depth), value)

        judged()

    def test_largest_integers_a_double_holds(self) -> None:
        self.assertEqual(loads_strict(b"[9007199254740991,-9007199254740991]"), [2**53 - 1, -(2**53) + 1])


class TheStackOfASmallThread(unittest.TestCase):
    """The C scanner calls itself for each level, and nothing of Python 3.13 ends that before the stack does."""

    def test_the_scanner_never_sees_what_is_nested_too_deep(self) -> None:
        class Scanner:
            def decode(self, text: str) -> object:
                raise AssertionError(f"{len(text)} characters reached it")

        with (
            mock.patch.object(strict_json, "_DECODER", Scanner()),
            mock.patch.object(strict_json, "_PAIRS_DECODER", Scanner()),
        ):
            for start in (b"[", b'{"a":', b'[{"a":', b'["\\\\\\"[",[', b' [ "]" ,[1],'):
                for count in (1_000, 20_000):
                    with self.subTest(start, count=count), self.assertRaises(strict_json.TooDeepError):
                        loads_strict(start * count, limit=4 * 1024 * 1024)

    def test_a_thread_as_small_as_the_agents_outlives_any_number_of_brackets(self) -> None:
        program = f"""
import threading
from nixfleet_agent.proto.strict_json import TooDeepError, loads_strict
def read():
    try:
        loads_strict(b"[" * 40_000)
    except TooDeepError as error:
        print(error)
threading.stack_size({STACK_BYTES})
reader = threading.Thread(target=read)
reader.start()
reader.join()
"""
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual((ran.returncode, ran.stdout), (0, "the body is nested deeper than 64 levels\n"), ran.stderr)

    def test_nothing_from_outside_the_process_is_read_by_another_reader(self) -> None:
        """What a file of the package itself holds, what this process wrote a moment ago, and the readers themselves."""
        own = {"config/schema.py", "proto/schemas.py", "commands/history.py", "journal/entries.py"}
        package = Path(strict_json.__file__).parents[1]
        found = {
            str(path.relative_to(package))
            for path in package.rglob("*.py")
            if re.search(r"\bjson\.loads?\(|JSONDecoder\(", path.read_text())
        }
        self.assertLessEqual(
            {name for name in found if not name.startswith(("demo/", "local_cp/"))}, own | {"proto/strict_json.py"}
        )


class Refused(unittest.TestCase):
    CASES = (
        (strict_json.NotUtf8Error, b'"\xff"'),
        (strict_json.NotUtf8Error, b'"\xed\xa0\x80"'),  # a surrogate written as if it were a character
        (strict_json.NotUtf8Error, b'"\xc0\xaf"'),  # an overlong slash
        (strict_json.NotUtf8Error, '{"a": 1}'.encode("utf-16")),
        (strict_json.NotJsonError, "\ufeff{}".encode()),
        (strict_json.NotJsonError, b""),
        (strict_json.NotJsonError, b"{} {}"),
        (strict_json.NotJsonError, b'{"a": 1,}'),
        (strict_json.NotJsonError, b"{'a': 1}"),
        (strict_json.NotJsonError, b'{"half": "a bo'),
        (strict_json.NotJsonError, b'"a\nb"'),
        (strict_json.NotJsonError, b"01"),
        (strict_json.DuplicateKeyError, b'{"a":1,"a":1}'),
        (strict_json.DuplicateKeyError, b'[{"x":{"a":1,"b":2,"\\u0061":3}}]'),
        (strict_json.BadNumberError, b"NaN"),
        (strict_json.BadNumberError, b'{"a":[Infinity]}'),
        (strict_json.BadNumberError, b"-Infinity"),
        (strict_json.BadNumberError, b"1e400"),
        (strict_json.BadNumberError, b"-1e999"),
        (strict_json.BadNumberError, b"9007199254740992"),
        (strict_json.BadNumberError, b"1" * 100_000),
        (strict_json.BadNumberError, b"0." + b"1" * 100_000),
        (strict_json.LoneSurrogateError, rb'"\ud800"'),
        (strict_json.LoneSurrogateError, rb'{"a":["\uDFFF\ud800"]}'),
        (strict_json.LoneSurrogateError, rb'{"\ud83d": 1}'),
        (strict_json.TooDeepError, b"[" * 65 + b"]" * 65),
        (strict_json.TooDeepError, b'{"a":' * 65 + b"1" + b"}" * 65),
        (strict_json.TooDeepError, b'[{"a":' * 33 + b"1" + b"}]" * 33),
        (strict_json.TooDeepError, b"[" * 10_000 + b"]" * 10_000),
        (strict_json.TooLargeError, b'"' + b"a" * 1024 * 1024 + b'"'),
    )

    def test_a_byte_order_mark_is_named_with_the_remedy(self) -> None:
        with self.assertRaisesRegex(NotJsonError, "trust.json is not JSON: it begins with a byte order mark: save it"):
            loads_strict(b"\xef\xbb\xbf{}", what="trust.json")

    def test_each_has_its_own_error_and_a_message_that_names_the_document(self) -> None:
        for kind, raw in self.CASES:
            with self.subTest(kind=kind.__name__, raw=raw[:40]):
                with self.assertRaises(kind):
                    loads_strict(raw + LARGE)
                with self.assertRaises(kind) as caught:
                    loads_strict(raw, what="the body of a test")
                self.assertIn("the body of a test", str(caught.exception))
                self.assertLess(len(str(caught.exception)), 300)
                self.assertIsInstance(caught.exception, ProtoError)

    def test_limits_are_the_callers(self) -> None:
        self.assertEqual(loads_strict(b"[1]", limit=3), [1])
        self.assertRaises(strict_json.TooLargeError, loads_strict, b"[1] ", limit=3)
        self.assertRaises(strict_json.TooDeepError, loads_strict, b"[[1]]", depth=1)

    def test_a_body_made_to_fill_memory_is_refused_before_it_is_parsed(self) -> None:
        limit = 1024 * 1024
        for bomb in (b"[" + b"[],[[]]," * 100_000 + b"[]]", b"[" + b"{}," * 300_000 + b"{}]"):
            tracemalloc.start()
            try:
                self.assertRaises(strict_json.TooLargeError, loads_strict, bomb, limit=limit)
                self.assertLess(tracemalloc.get_traced_memory()[1], limit)
            finally:
                tracemalloc.stop()

    def test_what_is_accepted_stays_within_four_times_the_limit(self) -> None:
        limit = 1024 * 1024
        for unit in (b"[[[[[]]]]],", b"{},", b'{"a":{}},', b"1.5,", b'"ab",', b"[1],"):
            self._assert_within_four_times(limit, b"[", unit, b"0]")
            self._assert_within_four_times(limit, '["\N{GRINNING FACE}",'.encode(), unit, b"0]")

    def test_one_wide_character_does_not_make_many_times_the_limit_of_a_body(self) -> None:
        limit = 1024 * 1024
        for start in ('"\N{GRINNING FACE}', '"\N{GREEK CAPITAL LETTER OMEGA}', '"é', r'"\ud83d\ude00'):
            self._assert_within_four_times(limit, start.encode(), b"a", b'"')
            self._assert_within_four_times(limit, b"[" + start.encode() + b'"', b',"' + b"a" * 40 + b'"', b"]")

    def test_a_duplicate_at_the_end_of_a_large_body_costs_no_second_copy_of_it(self) -> None:
        unit = b'{"a":"' + b"b" * 50 + b'"},'
        self._assert_within_four_times(1024 * 1024, b"[", unit, b'{"b":1,"b":1}]')

    def _assert_within_four_times(self, limit: int, start: bytes, unit: bytes, end: bytes) -> None:
        """The largest body of this kind that is read at all (to the end, or to its duplicate)."""
        for share in range(100, 0, -2):
            body = start + unit * ((limit * share // 100 - len(start) - len(end)) // len(unit)) + end
            tracemalloc.start()
            try:
                loads_strict(body, limit=limit)
            except strict_json.TooLargeError:
                continue
            except strict_json.DuplicateKeyError:
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            objects = 4096  # the decoder and what else does not depend on the body
            self.assertLess(peak + len(body), 4 * limit + objects, f"{start!r} and {unit!r} in {len(body)} bytes")
            return
        self.fail(f"no body of {unit!r} is read")


if __name__ == "__main__":
    unittest.main()
