"""What stands between a forged, old or foreign artifact and this host."""

from __future__ import annotations

from tests.attacks.defence import Defence, gone

_ARTIFACTS = "tests.attacks.test_artifacts.Artifacts.test_"

_VERIFY, _RESOLVE, _JSON = "tests.trust.test_verify", "tests.trust.test_resolve", "tests.proto.test_strict_json"

_CACHES = ("tests.artifacts.test_cache", "tests.artifacts.test_cache_on_disk")

_VERIFIER = (
    Defence(
        "signature: nobody's is enough",
        "trust/verify.py",
        "    if signer is None:\n        names",
        "    signer = signer or keys[0]\n    if signer is None:\n        names",
        (_ARTIFACTS + "wrongly_signed", _ARTIFACTS + "unsigned"),
    ),
    gone(
        "signature: any number of unsigned bytes is canonicalised",
        "trust/verify.py",
        "signer is None and len(raw) * CANONICAL_SHARE > limit",
        _VERIFY,
    ),
    gone("signature: its length is not limited", "trust/verify.py", "len(signature) > SIGNATURE_LIMIT", _VERIFY),
    Defence(
        "signature: the key's own verdict is not asked",
        "trust/roots.py",
        "        except InvalidSignature:\n            return False\n        return True",
        "        except InvalidSignature:\n            return True\n        return True",
        (_ARTIFACTS + "wrongly_signed",),
    ),
    gone(
        "signature: any length goes to the library",
        "trust/roots.py",
        "len(signature) != _SIGNATURE_BYTES",
        "tests.attacks.test_keys",
    ),
    Defence(
        "keys: a successor is never retired",
        "trust/roots.py",
        "self.retire_at is not None and now < self.retire_at",
        "self.successor is not None",
        (_ARTIFACTS + "signed_by_a_retired_key",),
    ),
    gone(
        "keys: one that was taken out still counts",
        "trust/verify.py",
        "all(key != verified.key for _, key in slots.active(now))",
        _VERIFY,
    ),
    Defence(
        "keys: the trust file is read once",
        "artifacts/trust_store.py",
        "if self._roots is None or stamp != self._stamp:",
        "if self._roots is None:",
        (_ARTIFACTS + "signed_by_a_retired_key",),
    ),
    Defence(
        "keys: a trust file that became invalid is forgiven",
        "artifacts/trust_store.py",
        "                self._roots = None\n                self._roots = parse_trust",
        "                self._roots = self._roots or parse_trust",
        ("tests.artifacts.test_trust_store",),
    ),
    gone(
        "rejectBefore is not looked at",
        "trust/verify.py",
        "slots.reject_before is not None and signed_at < slots.reject_before",
        _ARTIFACTS + "signed_by_a_rejected_key",
    ),
    gone(
        "age is not looked at",
        "trust/verify.py",
        "window is not None and now - signed_at > window + CLOCK_SKEW",
        _ARTIFACTS + "stale",
    ),
    gone(
        "the future is not looked at",
        "trust/verify.py",
        "signed_at - now > CLOCK_SKEW and not behind",
        _ARTIFACTS + "future_dated",
    ),
    gone(
        "older than accepted is accepted",
        "trust/verify.py",
        "mark is not None and signed_at < mark",
        _ARTIFACTS + "older_than_the_last_accepted",
    ),
    gone(
        "a clock that is behind is believed",
        "trust/verify.py",
        "newest is not None and behind",
        _ARTIFACTS + "a_clock_that_was_set_back",
    ),
    gone("a manifest without a signing time", "trust/verify.py", "meta.signed_at is None", _VERIFY),
    gone("another schema version", "trust/verify.py", "found != SCHEMA_VERSION", _VERIFY),
    gone(
        "a manifest of another rollout",
        "trust/verify.py",
        "manifest.rollout_id != rollout_id",
        _ARTIFACTS + "manifest_for_another_rollout_id",
        _ARTIFACTS + "manifest_for_another_channel",
    ),
    Defence(
        "the fleet's schema is not checked",
        "proto/fleet.py",
        '        schemas.check("fleet", _outer(value), what)\n',
        "",
        ("tests.proto.test_fleet",),
    ),
    Defence(
        "the manifest's schema is not checked",
        "proto/manifest.py",
        '        schemas.check("manifest", outer, what)\n',
        "",
        ("tests.proto.test_manifest",),
    ),
    Defence(
        "the manifest's own id is not checked",
        "proto/manifest.py",
        "ids.require(ids.ROLLOUT_ID, f\"{value['channel']}@{value['channelRef']}\", f\"{what}: its own rollout id\")",
        "pass",
        ("tests.proto.test_manifest",),
    ),
)

_ENTRIES = (
    gone("a host that the manifest does not name", "trust/resolve.py", "not entries", _RESOLVE),
    gone(
        "a host that is named twice", "trust/resolve.py", "len(entries) > 1", _ARTIFACTS + "manifest_for_another_host"
    ),
    gone(
        "a closure that is not in the manifest",
        "trust/resolve.py",
        "entries[0].target_closure != target_closure",
        _ARTIFACTS + "closure_not_in_the_manifest",
    ),
    Defence(
        "any fleet serves any manifest",
        "trust/resolve.py",
        "    if fleet.hash == pinned:\n        return\n",
        "    return\n",
        (_ARTIFACTS + "manifest_pinned_to_another_fleet",),
    ),
    gone(
        "an older fleet serves a newer manifest",
        "trust/resolve.py",
        "fleet.signed_at <= manifest.signed_at",
        _ARTIFACTS + "manifest_pinned_to_another_fleet",
    ),
    gone(
        "a fleet without this host serves",
        "trust/resolve.py",
        "host is None or host.channel != channel",
        _ARTIFACTS + "manifest_pinned_to_another_fleet",
    ),
    gone(
        "an unknown policy",
        "trust/resolve.py",
        "signed_policy not in (Policy.HALT, Policy.ROLLBACK_AND_HALT)",
        _ARTIFACTS + "terms_that_the_fleet_does_not_have",
    ),
    gone(
        "a wave that the fleet does not have",
        "trust/resolve.py",
        "index >= len(waves)",
        _ARTIFACTS + "terms_that_the_fleet_does_not_have",
    ),
    gone(
        "a channel that the fleet does not have",
        "trust/resolve.py",
        "channel is None",
        _ARTIFACTS + "terms_that_the_fleet_does_not_have",
    ),
    gone(
        "an order for another host",
        "runtime/dispatch/decision.py",
        "dispatch.hostname == machine_id",
        _ARTIFACTS + "manifest_for_another_host",
        to="True",
    ),
    Defence(
        "final refusals are tried again",
        "runtime/dispatch/decision.py",
        "return Refuse(error.reason, str(error)) if error.final else Retry(error.reason, str(error))",
        "return Retry(error.reason, str(error))",
        (_ARTIFACTS + "closure_not_in_the_manifest",),
    ),
    Defence(
        "freshness is not judged again when an order is taken",
        "artifacts/cache.py",
        "        check_fresh_manifest(terms.manifest, trust, now=now, window=terms.window, marks=marks)\n",
        "",
        (_ARTIFACTS + "stale",),
    ),
    Defence(
        "the fleet's freshness is not judged again",
        "artifacts/cache.py",
        "        check_fresh_fleet(terms.fleet, trust, now=now, override_window=self._override, marks=marks)\n",
        "",
        ("tests.attacks.test_moment",),
    ),
    Defence(
        "marks are not kept on disk",
        "artifacts/trust_store.py",
        '            durable.write(self._marks_path, text.encode("utf-8") + b"\\n")\n',
        "",
        ("tests.artifacts.test_trust_store",),
    ),
    Defence(
        "an older manifest of another channel counts",
        "trust/resolve.py",
        "    if manifest.signed_at < newest.at:\n",
        "    if False:\n",
        (_RESOLVE,),
    ),
    Defence(
        "another manifest of the same instant counts",
        "trust/resolve.py",
        'if newest.hash not in ("", manifest.hash):',
        "if False:",
        (_RESOLVE,),
    ),
    Defence(
        "no order between the manifests of a Dispatch",
        "artifacts/cache.py",
        "        check_order(terms.manifest, marks)\n",
        "",
        _CACHES,
    ),
    Defence(
        "before a turn: what is remembered is not judged again",
        "runtime/workers/prefetch.py",
        "refusal=self._refusal(job),",
        "refusal=None,",
        ("tests.runtime.workers.test_prefetch_limits.LeftAloneTest.test_what_ci_did_not_sign_or_what_is_too_old",),
    ),
    Defence(
        "before a turn: any manifest that is served is fetched",
        "runtime/workers/manifest_poll.py",
        "manifest = self._cache.fetch_pinned(rollout_id, fleet)",
        "manifest = self._cache.fetch_manifest(rollout_id, window=None)",
        ("tests.attacks.test_prefetch", "tests.runtime.workers.test_manifest_poll"),
    ),
    Defence(
        "before a turn: any manifest of this channel is of this host",
        "runtime/release.py",
        "entries = manifest.entries(hostname)",
        'entries = manifest.entries(manifest.host_set[0]["hostname"])',
        ("tests.runtime.test_release",),
    ),
    Defence(
        "before a turn: a cache sends without end",
        "prefetch/oversight.py",
        "        self._room.check_flood(progress.bytes)\n",
        "",
        ("tests.runtime.workers.test_prefetch_limits.BadInputTest.test_a_cache_with_endless_bytes",),
    ),
    Defence(
        "before a turn: the disk is filled",
        "prefetch/oversight.py",
        "            self._room.check()\n",
        "            pass\n",
        ("tests.runtime.workers.test_prefetch_limits.BadInputTest.test_a_disk_that_fills_under_it",),
    ),
    Defence(
        "a wave's number counts in a fleet that was not pinned",
        "trust/resolve.py",
        "index = entry.wave_index if pinned else",
        "index = entry.wave_index if True else",
        (_RESOLVE,),
    ),
    Defence(
        "marks are not rebuilt from caches",
        "artifacts/cache.py",
        "            self._store.raise_marks(fleet=fleet, manifest=self._shelf.newest_of(self._machine_id))\n",
        "",
        _CACHES,
    ),
    Defence(
        "same bytes under another signature count as seen",
        "trust/seen.py",
        "    if last is not None and raw == last.raw and signature == last.signature:\n        check_fresh_fleet",
        "    if last is not None and raw == last.raw:\n        check_fresh_fleet",
        ("tests.trust.test_seen",),
    ),
    Defence(
        "bytes seen under another rollout id count as seen",
        "trust/seen.py",
        "if last is not None and same and last.verified.manifest.rollout_id == rollout_id:",
        "if last is not None and same:",
        ("tests.trust.test_seen",),
    ),
    Defence(
        "304 to who asked without a tag counts",
        "artifacts/fetch.py",
        "if answer.status == 304 and tag is not None:",
        "if answer.status == 304:",
        (_ARTIFACTS + "unsigned",),
    ),
)


DEFENCES = (*_VERIFIER, *_ENTRIES)
