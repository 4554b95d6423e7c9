"""What differs between closures, package by package: names are split as Nix does, and sums add up."""

from __future__ import annotations

import json
import re
import subprocess
import unittest

from nixfleet_agent.activation.closure_query import NotInStoreError, difference
from nixfleet_agent.activation.packages import RESIZED_BYTES, ClosureDiff, PackageChange, compare, split_name
from nixfleet_agent.errors import ProtoError
from tests.activation.case import PipelineCase

HASH = "0c4q6ngn2fdqgwl4ny2rr5yz2m94rgl6-"
#: Store names with what is hard about them.
NAMES = (
    "nginx-1.26.2",
    "glibc-2.40-66",
    "openssl-3.3.2-bin",
    "gcc-13.3.0-lib",
    "xgcc-13.3.0-libgcc",
    "wine-9.0-lib32",
    "nix-2.24.9-man",
    "linux-6.6.63-modules",
    "source",
    "unit-nginx.service",
    "etc-hosts",
    "X-Restart-Triggers-nginx",
    "nixos-system-web-01-25.11.20251120.abcdef0",
    "perl5.40.0-JSON-XS-4.03",
    "python3.12-requests-2.32.3",
    "hello-2.12.1-unstable",
    "hello-unstable-2024-05-01",
    "pam_unix.so-",
    "a--1",
    "a-_b",
    "a-1-",
    "-1.0",
    "dbus-1",
    "font-0123-Bold",
)


def paths(*names: str, size: int = 100) -> dict[str, int]:
    return {HASH + name: size for name in names}


class NameTest(unittest.TestCase):
    def test_the_version_begins_after_the_first_dash_that_no_letter_follows(self) -> None:
        for name, package, version in (
            ("nginx-1.26.2", "nginx", "1.26.2"),
            ("glibc-2.40-66", "glibc", "2.40-66"),
            ("python3.12-requests-2.32.3", "python3.12-requests", "2.32.3"),
            ("source", "source", ""),
            ("a--1", "a", "-1"),
            ("font-0123-Bold", "font", "0123-Bold"),
        ):
            self.assertEqual(split_name(HASH + name), (package, version))

    def test_an_outputs_name_is_no_part_of_the_version(self) -> None:
        for name, package, version in (
            ("openssl-3.3.2-bin", "openssl", "3.3.2"),
            ("wine-9.0-lib32", "wine", "9.0"),
            ("hello-2.12.1-unstable", "hello", "2.12.1"),
            ("unit-nginx.service", "unit-nginx.service", ""),
        ):
            self.assertEqual(split_name(HASH + name), (package, version))

    def test_it_is_nixs_own_way_to_split(self) -> None:
        """Nix's ``parseDrvName`` is the second half of the rule, asked of the Nix of this machine."""
        stripped = [re.sub(r"\A(.*)-([a-z]+|lib32|lib64)\Z", r"\1", name) for name in NAMES]
        expression = f"map builtins.parseDrvName (builtins.fromJSON {json.dumps(json.dumps(stripped))})"
        asked = ("nix-instantiate", "--eval", "--strict", "--json", "--expr", expression)
        answer = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout
        theirs = [(each["name"], each["version"]) for each in json.loads(answer)]
        self.assertEqual([split_name(HASH + name) for name in NAMES], theirs)


class CompareTest(unittest.TestCase):
    def test_each_package_is_in_one_list(self) -> None:
        before = paths("app-1", "gone-1", "same-1", "big-1", "etc")
        after = paths("app-2", "new-1", "same-1", "etc") | {HASH + "big-1": 100 + RESIZED_BYTES}
        found = compare("old", "new", before, after)
        self.assertEqual(found.added, (PackageChange("new", (), ("1",), 100),))
        self.assertEqual(found.removed, (PackageChange("gone", ("1",), (), -100),))
        self.assertEqual(found.changed, (PackageChange("app", ("1",), ("2",), 0),))
        self.assertEqual(found.resized, (PackageChange("big", (), (), RESIZED_BYTES),))
        self.assertEqual((found.size_before, found.size_after, found.size_delta), (500, 500 + RESIZED_BYTES, 8192))

    def test_a_little_more_of_the_same_version_is_no_news(self) -> None:
        found = compare("old", "new", paths("app-1"), {HASH + "app-1": 100 + RESIZED_BYTES - 1})
        self.assertEqual((found.changed, found.resized), ((), ()))

    def test_versions_side_by_side_are_told_apart(self) -> None:
        found = compare("old", "new", paths("py-3.11", "py-3.12"), paths("py-3.12", "py-3.13", "py-3.13-dev"))
        self.assertEqual(found.changed, (PackageChange("py", ("3.11",), ("3.13",), 100),))

    def test_what_is_new_is_counted_by_path(self) -> None:
        after = {HASH + "a-1": 1, HASH.replace("0", "1") + "a-1": 1, HASH + "b": 1}
        found = compare("old", "new", paths("a-1"), after)
        self.assertEqual((found.paths_before, found.paths_after, found.paths_new), (1, 3, 2))

    def test_it_survives_json(self) -> None:
        found = compare("old", "new", paths("app-1", "gone-1"), paths("app-2", "new-1"))
        self.assertEqual(ClosureDiff.from_json(json.loads(json.dumps(found.to_json()))), found)

    def test_json_of_another_form_is_refused(self) -> None:
        good = compare("old", "new", paths("app-1"), paths("app-2")).to_json()
        for bad in (None, [], {}, {**good, "added": None}, {**good, "changed": [{}]}, {**good, "added": [3]}):
            with self.assertRaises(ProtoError):
                ClosureDiff.from_json(bad)


class StoreTest(PipelineCase):
    def test_the_store_is_asked_and_agrees_with_nix(self) -> None:
        """Whatever ``nix store diff-closures`` of this machine tells of two real closures, we tell too, and no more."""
        big = {"data": "x" * 70_000}
        old = [self.nixery.path(name, {"a": name}) for name in NAMES if not name.startswith("-")]
        new = [
            self.nixery.path(name.replace("1.26.2", "1.27"), big) for name in NAMES if name not in ("source", "-1.0")
        ]
        running = self.nixery.system("running-1", references=old)
        coming = self.nixery.system("coming-1", references=new)
        for closure in (running, coming):
            self.host.nix("nix-store", "--realise", f"/nix/store/{closure}")
        found = difference(self.pipeline()._context, running, coming)
        command = ("nix", "--extra-experimental-features", "nix-command", "store", "diff-closures")
        said = self.host.nix(*command, f"/nix/store/{running}", f"/nix/store/{coming}").stdout
        theirs = {line.partition(": ")[0] for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()}
        ours = {change.name for change in (*found.added, *found.removed, *found.changed, *found.resized)}
        self.assertEqual(ours, theirs)
        self.assertIn(("1.26.2",), [change.before for change in found.changed])
        self.assertEqual(found.paths_after, len(new) + 1)

    def test_a_closure_that_is_not_there_is_named(self) -> None:
        with self.assertRaisesRegex(NotInStoreError, f"{self.v2} is not in this host's store"):
            difference(self.pipeline()._context, self.v1, self.v2)


if __name__ == "__main__":
    unittest.main()
