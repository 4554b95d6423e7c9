"""Fleets as CI signs them in the field, old and new: strict about what is acted on, indifferent to everything else.

The table of the protocol guide is what the tests go by: every field that it does not name is changed, and every field
that it names is shown to matter.
"""

from __future__ import annotations

import copy
import unittest
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.state_machine.states import Policy
from nixfleet_agent.trust.errors import VerificationError
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.resolve import Resolved, resolve_dispatch
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.verify import verify_fleet, verify_manifest
from tests.docs.pages import DOCS, first_column, section
from tests.support.signing import CiSigner, closure_name, fleet_value, manifest_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
HOSTS = {"web-01": "stable", "web-02": "stable", "db-01": "edge"}
CLOSURES = {host: closure_name(host) for host in HOSTS}
CI = CiSigner()
TRUST = parse_trust(CI.trust_bytes())

Document = dict[str, Any]


def verdict(fleet: Document, change_manifest: Callable[[Document], object] = lambda _: None) -> Resolved:
    """What a Dispatch of web-01 may do, from bytes that were signed for real; raises VerificationError."""
    signed = CI.sign(fleet)
    body = manifest_value(CI.sign({**fleet_value(HOSTS, signed_at=NOW)}), "stable", CLOSURES, signed_at=NOW)
    body["fleetResolvedHash"] = signed.hash
    change_manifest(body)
    manifest = CI.sign(body)
    return resolve_dispatch(
        verify_manifest(
            manifest.raw, manifest.signature, "stable@def4567abc", TRUST, now=NOW, window=None, marks=Marks()
        ),
        verify_fleet(signed.raw, signed.signature, TRUST, now=NOW, override_window=None, marks=Marks()),
        "web-01",
        CLOSURES["web-01"],
    )


def older() -> Document:
    """With `system`, waves and everything that a fleet of the first days has."""
    return fleet_value(HOSTS, signed_at=NOW, soak_minutes=3)


def newer() -> Document:
    """With `platform`, selectors that combine others, pins, and fields that nobody here has heard of."""
    fleet = older()
    for host in fleet["hosts"].values():
        host.update(platform=host.pop("system"), pubkey=None, pin={"commit": "0" * 40, "reason": "audit"})
    selector = {"and": [{"tags": ["web"]}, {"not": {"hosts": ["web-02"]}}], "tagsAny": []}
    fleet["rolloutPolicies"]["all-at-once"]["waves"] = [{"selector": selector, "soakMinutes": 3}]
    fleet["disruptionBudgets"] = [{"selector": selector, "maxInFlight": None, "maxInFlightPct": 50}]
    fleet["edges"] = [{"before": "web-01", "after": "web-02"}]
    fleet.update(generator={"name": "mk-fleet", "version": 7}, tagPins=None)
    return fleet


def lean() -> Document:
    """All at once, and not one field more than is needed."""
    return {
        "schemaVersion": 1,
        "hosts": {host: {"channel": channel} for host, channel in HOSTS.items()},
        "channels": {name: {"rolloutPolicy": "p", "freshnessWindow": 60} for name in ("edge", "stable")},
        "rolloutPolicies": {"p": {"strategy": "all-at-once"}},
        "meta": {"signedAt": "2026-05-16T01:27:00Z"},
    }


def changed(make: Callable[[], Document], change: Callable[[Document], object]) -> Document:
    fleet = make()
    change(fleet)
    return fleet


def each_host(**fields: Any) -> Callable[[Document], object]:
    return lambda fleet: [host.update(fields) for host in fleet["hosts"].values()]


def one_wave(waves: Any, soaks: list[Document] | None) -> Callable[[Document], object]:
    def change(fleet: Document) -> None:
        fleet["waves"] = waves
        fleet["rolloutPolicies"]["all-at-once"].update(strategy="all-at-once", waves=soaks)

    return change


FORMS: dict[str, tuple[Document, int]] = {
    "older": (older(), 3),
    "newer": (newer(), 3),
    "both system and platform": (changed(older, each_host(platform="x86_64-linux")), 3),
    "neither": (changed(older, lambda fleet: [host.pop("system") for host in fleet["hosts"].values()]), 3),
    "platform is a number": (changed(older, each_host(platform=64)), 3),
    "lean": (lean(), 0),
    "all at once, no waves": (changed(newer, one_wave({}, [{"selector": {"all": True}, "soakMinutes": 5}])), 5),
    "all at once, empty waves": (changed(older, one_wave({"stable": [], "edge": []}, [])), 0),
    "all at once, null": (changed(older, one_wave(None, None)), 0),
    "nanoseconds": (changed(older, lambda f: f["meta"].update(signedAt="2026-05-16T01:26:59.123456789Z")), 3),
    "an offset": (changed(older, lambda f: f["meta"].update(signedAt="2026-05-16T01:27:00+00:00")), 3),
    "no algorithm": (changed(older, lambda f: f["meta"].pop("signatureAlgorithm")), 3),
    "no compliance": (changed(older, lambda f: [c.pop("compliance") for c in f["channels"].values()]), 3),
    "no edges or budgets": (
        changed(older, lambda f: [f.pop(name) for name in ("edges", "channelEdges", "disruptionBudgets")]),
        3,
    ),
}


class EveryForm(unittest.TestCase):
    def test_leads_to_a_rollout_on_its_signed_terms(self) -> None:
        for name, (fleet, soak) in FORMS.items():
            with self.subTest(name):
                self.assertEqual(verdict(fleet), Resolved(Policy.ROLLBACK_AND_HALT, soak, 0, timedelta(minutes=60)))


class BadInput(unittest.TestCase):
    CASES: tuple[tuple[str, Callable[[Document], object]], ...] = (
        ("schemaVersion 2", lambda f: f.update(schemaVersion=2)),
        ("schemaVersion 2", lambda f: f["meta"].update(schemaVersion=2)),
        ("ghost-01, a host of no channel", lambda f: f["waves"]["stable"][0]["hosts"].append("ghost-01")),
        ("0 waves for stable", lambda f: f["waves"].update(stable=[])),
        ("onHealthFailure of the policy of channel stable is 'reboot'", lambda f: policy(f, onHealthFailure="reboot")),
    )

    def test_is_refused_by_name(self) -> None:
        for words, change in self.CASES:
            with self.subTest(words), self.assertRaises(VerificationError) as caught:
                verdict(changed(older, change))
            self.assertIn(words, str(caught.exception))


def policy(fleet: Document, **fields: Any) -> None:
    fleet["rolloutPolicies"]["all-at-once"].update(fields)


def read_fields(heading: str, of: str) -> frozenset[str]:
    """The paths in the first column of the guide's table for ``of``."""
    text = section(DOCS / "protocol.md", heading)
    table = text[text.index(f"| field of {of} |") :].split("\n\n")[0]
    return frozenset(first_column(table.split("\n", 1)[1]))


FLEET_FIELDS = read_fields("### Fields that the agent reads", "`fleet.resolved`")
MANIFEST_FIELDS = read_fields("### Fields that the agent reads", "a rollout manifest")
#: Objects whose keys are names that somebody chose, not fields.
_MAPS = frozenset({"hosts", "channels", "rolloutPolicies", "waves"})

Path = tuple[str | int, ...]


def pattern(path: Path) -> str:
    """``hosts.*.channel`` for the path of one host's channel."""
    text = ""
    for depth, part in enumerate(path):
        if isinstance(part, int):
            text += "[]"
        elif depth == 1 and path[0] in _MAPS:
            text += ".*"
        else:
            text += f".{part}"
    return text.lstrip(".")


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    if at:
        yield at
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*at, key))


def unread(value: Any, fields: frozenset[str]) -> list[Path]:
    """Every place of ``value`` that is neither read nor holds what is."""

    def matters(shown: str) -> bool:
        return any(
            field == shown or field.startswith((shown + ".", shown + "[")) or shown.startswith(field + "[")
            for field in fields
        )

    return [path for path in paths(value) if not matters(pattern(path))]


def put(document: Document, path: Path, value: Any) -> Document:
    """A copy of ``document`` with ``value`` at ``path``."""
    document = copy.deepcopy(document)
    holder: Any = document
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return document


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("a", "mode", "hosts")), inner),
    max_leaves=5,
)
_BASES = ("older", "newer", "lean", "all at once, no waves")


class Unread(unittest.TestCase):
    def test_there_are_such_fields_in_every_part(self) -> None:
        shown = {pattern(path) for path in unread(newer(), FLEET_FIELDS)}
        self.assertLessEqual(
            {"hosts.*.platform", "hosts.*.tags", "channels.*.compliance", "rolloutPolicies.*.healthGate", "edges"},
            shown,
        )
        self.assertFalse(shown & FLEET_FIELDS)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_fields_of_a_fleet_never_change_the_verdict(self, data: st.DataObject) -> None:
        fleet, soak = FORMS[data.draw(st.sampled_from(_BASES))]
        places = unread(fleet, FLEET_FIELDS)
        holders: list[Path] = [(), ("meta",), ("hosts", "web-01"), ("channels", "stable")]
        places += [(*holder, "unheard-of") for holder in holders]
        fleet = put(fleet, data.draw(st.sampled_from(places)), data.draw(_JSON))
        self.assertEqual(verdict(fleet), Resolved(Policy.ROLLBACK_AND_HALT, soak, 0, timedelta(minutes=60)))

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_fields_of_a_manifest_never_change_the_verdict(self, data: st.DataObject) -> None:
        def change(manifest: Document) -> None:
            places = [*unread(manifest, MANIFEST_FIELDS), ("unheard-of",), ("hostSet", 0, "unheard-of")]
            manifest.update(put(manifest, data.draw(st.sampled_from(places)), data.draw(_JSON)))

        self.assertEqual(verdict(older(), change), verdict(older()))


class Read(unittest.TestCase):
    """Each field that the guide names is shown to matter: a wrong form of it is refused, or changes the terms."""

    #: Where no form is refused, one that changes the terms.
    OTHERWISE: ClassVar[dict[str, tuple[str, Any]]] = {
        "rolloutPolicies.*.strategy": ("lean", "canary"),
        "rolloutPolicies.*.waves[].soakMinutes": ("all at once, no waves", 99),
    }

    def test_of_a_fleet(self) -> None:
        for field in sorted(FLEET_FIELDS - {"meta.ciCommit"}):
            base, value = self.OTHERWISE.get(field, ("older", {"not": ["this"]}))
            fleet, _ = FORMS[base]
            path = next(p for p in paths(fleet) if pattern(p) == field)
            with self.subTest(field):
                self.assertNotEqual(self.outcome(put(fleet, path, value)), self.outcome(fleet))

    def test_of_a_manifest(self) -> None:
        for field in sorted(MANIFEST_FIELDS):

            def change(manifest: Document, field: str = field) -> None:
                path = next(p for p in paths(manifest) if pattern(p) == field)
                manifest.update(put(manifest, path, {"not": ["this"]}))

            with self.subTest(field), self.assertRaises(VerificationError):
                verdict(older(), change)

    def outcome(self, fleet: Document) -> object:
        try:
            return verdict(fleet)
        except VerificationError as error:
            return str(error)


if __name__ == "__main__":
    unittest.main()
