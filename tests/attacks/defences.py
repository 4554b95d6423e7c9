"""Every check that stands between a lie and this host, as the text to take out and the tests that must notice."""

from __future__ import annotations

from tests.attacks.defence import Defence
from tests.attacks.local_defences import LOCAL

_ARTIFACTS = "tests.attacks.test_artifacts.Artifacts.test_"
_TLS = "tests.attacks.test_tls.Tls.test_"
_VERIFY, _RESOLVE, _JSON = "tests.trust.test_verify", "tests.trust.test_resolve", "tests.proto.test_strict_json"
_RENEWAL = "tests.attacks.test_renewal.Renewal.test_renewed_certificate_for_another_key_or_name"
_CERTIFICATE = "tests.identity.test_certificate"
_EVIDENCE = "tests.attacks.test_evidence.Evidence.test_evidence_signed_by_another_key_or_replayed_from_another_host"
_BODIES = "tests.attacks_slow.test_bodies."
_LENGTHS = "tests.attacks_slow.test_lengths."
_CACHE = "tests.artifacts.test_cache"


def _gone(name: str, file: str, condition: str, *tests: str, to: str = "False") -> Defence:
    """The check ``if <condition>:`` never holds."""
    return Defence(name, file, f"if {condition}:", f"if {to}:", tests)


_VERIFIER = (
    Defence(
        "signature: nobody's is enough",
        "trust/verify.py",
        "    if signer is None:\n        names",
        "    signer = signer or keys[0]\n    if signer is None:\n        names",
        (_ARTIFACTS + "wrongly_signed", _ARTIFACTS + "unsigned"),
    ),
    _gone(
        "signature: any number of unsigned bytes is canonicalised",
        "trust/verify.py",
        "signer is None and len(raw) * CANONICAL_SHARE > limit",
        _VERIFY,
    ),
    _gone("signature: its length is not limited", "trust/verify.py", "len(signature) > SIGNATURE_LIMIT", _VERIFY),
    Defence(
        "signature: the key's own verdict is not asked",
        "trust/roots.py",
        "        except InvalidSignature:\n            return False\n        return True",
        "        except InvalidSignature:\n            return True\n        return True",
        (_ARTIFACTS + "wrongly_signed",),
    ),
    _gone(
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
    _gone(
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
    _gone(
        "rejectBefore is not looked at",
        "trust/verify.py",
        "slots.reject_before is not None and signed_at < slots.reject_before",
        _ARTIFACTS + "signed_by_a_rejected_key",
    ),
    _gone(
        "age is not looked at",
        "trust/verify.py",
        "window is not None and now - signed_at > window + CLOCK_SKEW",
        _ARTIFACTS + "stale",
    ),
    _gone(
        "the future is not looked at",
        "trust/verify.py",
        "signed_at - now > CLOCK_SKEW and not behind",
        _ARTIFACTS + "future_dated",
    ),
    _gone(
        "older than accepted is accepted",
        "trust/verify.py",
        "mark is not None and signed_at < mark",
        _ARTIFACTS + "older_than_the_last_accepted",
    ),
    _gone(
        "a clock that is behind is believed",
        "trust/verify.py",
        "newest is not None and behind",
        _ARTIFACTS + "a_clock_that_was_set_back",
    ),
    _gone("a manifest without a signing time", "trust/verify.py", "meta.signed_at is None", _VERIFY),
    _gone("another schema version", "trust/verify.py", "found != SCHEMA_VERSION", _VERIFY),
    _gone(
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
    _gone("a host that the manifest does not name", "trust/resolve.py", "not entries", _RESOLVE),
    _gone(
        "a host that is named twice", "trust/resolve.py", "len(entries) > 1", _ARTIFACTS + "manifest_for_another_host"
    ),
    _gone(
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
    _gone(
        "an older fleet serves a newer manifest",
        "trust/resolve.py",
        "fleet.signed_at <= manifest.signed_at",
        _ARTIFACTS + "manifest_pinned_to_another_fleet",
    ),
    _gone(
        "a fleet without this host serves",
        "trust/resolve.py",
        "host is None or host.channel != channel",
        _ARTIFACTS + "manifest_pinned_to_another_fleet",
    ),
    _gone(
        "an unknown policy",
        "trust/resolve.py",
        "signed_policy not in (Policy.HALT, Policy.ROLLBACK_AND_HALT)",
        _ARTIFACTS + "terms_that_the_fleet_does_not_have",
    ),
    _gone(
        "a wave that the fleet does not have",
        "trust/resolve.py",
        "index >= len(waves)",
        _ARTIFACTS + "terms_that_the_fleet_does_not_have",
    ),
    _gone(
        "a channel that the fleet does not have",
        "trust/resolve.py",
        "channel is None",
        _ARTIFACTS + "terms_that_the_fleet_does_not_have",
    ),
    _gone(
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
        (_CACHE,),
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
        (_CACHE,),
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
_READERS = (
    _gone("JSON: size", "proto/strict_json.py", "len(raw) > limit", _JSON),
    _gone(
        "JSON: values that fill memory",
        "proto/strict_json.py",
        "values * _BYTES_PER_VALUE + len(raw) * _copies(raw) > 4 * limit",
        _JSON,
    ),
    Defence(
        "JSON: wide texts that fill memory", "proto/strict_json.py", "return 10 if wide else 5", "return 3", (_JSON,)
    ),
    _gone(
        "JSON: strings that are missing say nothing",
        "proto/strict_json.py",
        "_strings_kept(value) != _strings_written(raw)",
        _JSON + ".DuplicateKeys",
        to="_strings_kept(value) < 0",
    ),
    _gone(
        "JSON: duplicate keys",
        "proto/strict_json.py",
        "len(members) != len(pairs)",
        _BODIES + "Json.test_an_order_that_is_no_strict_json",
    ),
    _gone(
        "JSON: huge integers",
        "proto/strict_json.py",
        "not -_SAFE_INTEGER <= value <= _SAFE_INTEGER",
        _BODIES + "Json.test_an_order_that_is_no_strict_json",
    ),
    _gone(
        "JSON: numbers beyond a double",
        "proto/strict_json.py",
        "math.isinf(value)",
        _BODIES + "Json.test_an_order_that_is_no_strict_json",
    ),
    Defence(
        "JSON: NaN and infinities",
        "proto/strict_json.py",
        '"parse_float": _fraction, "parse_constant": _constant',
        '"parse_float": _fraction',
        (_BODIES + "Json.test_an_order_that_is_no_strict_json",),
    ),
    _gone(
        "JSON: depth",
        "proto/strict_json.py",
        "_is_deeper(raw, depth)",
        _BODIES + "Json.test_an_order_that_is_no_strict_json",
    ),
    Defence(
        "JSON: half a surrogate pair",
        "proto/strict_json.py",
        "        _check_surrogates(value, what)\n",
        "        pass\n",
        (_BODIES + "Json.test_an_order_that_is_no_strict_json",),
    ),
    Defence(
        "JSON: bytes that are not UTF-8",
        "proto/strict_json.py",
        'text = raw.decode("utf-8")',
        'text = raw.decode("utf-8", "replace")',
        (_BODIES + "Json.test_an_order_that_is_no_strict_json",),
    ),
    Defence(
        "names: a pattern need not match whole",
        "proto/ids.py",
        "if isinstance(value, str) and pattern.fullmatch(value):",
        "if isinstance(value, str) and pattern.match(value):",
        (_BODIES + "Names.test_path_traversal_in_ids_and_closures",),
    ),
    Defence(
        "names: a rollout id may hold a path",
        "proto/ids.py",
        "@(?P<ref>[0-9a-f]{1,64})",
        "@(?P<ref>[0-9a-f./]{1,64})",
        (_BODIES + "Names.test_path_traversal_in_ids_and_closures",),
    ),
    _gone(
        "bodies: an announced length over the limit",
        "net/body.py",
        "announced.isdecimal() and len(announced) < 20 and int(announced) > limit",
        "tests.net.test_limits.Sizes.test_an_announced_length_over_the_limit_is_not_even_read",
    ),
    _gone(
        "bodies: decompressed size",
        "net/body.py",
        "self.body.tell() > self._limit",
        _LENGTHS + "Sizes.test_decompression_bombs",
    ),
    Defence(
        "bodies: plain size",
        "net/body.py",
        "        if body.tell() > limit:\n            raise _too_large(limit)\n",
        "",
        ("tests.net.test_limits.Sizes.test_an_endless_body_ends_at_the_limit",),
    ),
    _gone("bodies: negative chunks", "net/pool.py", "size < 0", _LENGTHS + "Sizes.test_broken_answers"),
    Defence(
        "soak: as long as the control plane says",
        "runtime/dispatch/decision.py",
        "received_at + longest if soak_due_at - received_at > longest else soak_due_at",
        "soak_due_at",
        ("tests.runtime.workers.test_longpoll.Accepting",),
    ),
    _gone(
        "verified once, acted on whenever the reducer comes to it",
        "runtime/rollout/reducer.py",
        "self.clock.monotonic() > item.until",
        "tests.runtime.rollout.test_reducer.ADispatchThatWaited",
    ),
    _gone(
        "a repeat takes the place of what is kept",
        "runtime/workers/longpoll.py",
        "self._check.ran_here(dispatch)",
        "tests.runtime.workers.test_longpoll.Accepting",
    ),
    _gone("bodies: what comes around them", "net/budget.py", "self._bytes_left < 0", "tests.net.test_limits"),
    _gone("TLS: messages without end", "net/tls.py", "noted.messages > _MOST_MESSAGES", "tests.net.test_limits"),
    Defence(
        "bodies: the deadline of a call",
        "net/budget.py",
        "        if left <= 0:\n            raise self._expired()\n        return left",
        "        return self._seconds",
        (_LENGTHS + "Sizes.test_slow_bodies",),
    ),
    Defence(
        "headers: Retry-After that overflows",
        "net/answers.py",
        "except (ValueError, OverflowError):",
        "except ValueError:",
        ("tests.attacks_slow.test_lengths.Headers.test_retry_after_that_is_no_time",),
    ),
)
_IDENTITY = (
    _gone("certificate: another key", "identity/certificate.py", "not new.belongs_to(public_raw)", _CERTIFICATE),
    _gone(
        "certificate: another name",
        "identity/certificate.py",
        "not name_is_ours(new.common_name, machine_id)",
        _RENEWAL,
    ),
    _gone(
        "certificate: not valid now",
        "identity/certificate.py",
        "not new.not_before <= judged_at <= new.not_after",
        _CERTIFICATE,
    ),
    _gone(
        "certificate: no later than the present one",
        "identity/certificate.py",
        "current is not None and new.not_after <= current.not_after",
        _RENEWAL,
    ),
    _gone("certificate: no chain is asked for", "identity/certificate.py", "anchors", _RENEWAL),
    Defence(
        "certificate: any suffix of a name",
        "identity/certificate.py",
        "return _SUFFIX.fullmatch(common_name[len(prefix) :]) is not None",
        "return True",
        (_CERTIFICATE, _RENEWAL),
    ),
    Defence(
        "certificate: whatever came along is installed",
        "identity/certificate.py",
        "installed = AgentCertificate(new.leaf, path)",
        "installed = new",
        (_CERTIFICATE,),
    ),
    _gone(
        "certificate: of any size",
        "identity/certificate.py",
        "len(installed.pem()) > _INSTALLED_LIMIT",
        _CERTIFICATE,
    ),
    _gone(
        "certificate: valid for ever",
        "identity/certificate.py",
        "new.not_after - new.not_before > _LONGEST_LIFE",
        _RENEWAL,
    ),
    Defence(
        "certificate: usage is not looked at",
        "identity/certificate.py",
        "    check_leaf(new.leaf)\n",
        "",
        (_RENEWAL,),
    ),
    _gone("chain: unknown critical extensions", "identity/chain.py", "strange", _RENEWAL),
    Defence(
        "certificate: any answer proves it",
        "certificates/renewal.py",
        "return None if answer.ok else answer.told()",
        "return None if answer.status not in _NOT_WELCOME else answer.told()",
        (
            "tests.certificates.test_renewal.RenewOnce.test_no_status_but_the_2xx_that_the_old_one_gets_proves_a_certificate",
        ),
    ),
    _gone(
        "certificate: as many a day as somebody likes",
        "certificates/renewal.py",
        "first is not None and self._clock.monotonic() - first < _DAY",
        "tests.certificates.test_renewal.RenewOnce",
    ),
    Defence(
        "certificate: the pair before is not tried",
        "certificates/renewal.py",
        "if old is None or self._failure(old) is not None:\n            return False",
        "if True:\n            return False",
        ("tests.attacks.test_renewal.Renewal.test_a_certificate_that_stopped_working_gives_way_to_the_one_before",),
    ),
    Defence(
        "certificate: the pair before is dropped at once",
        "identity/install.py",
        "    if previous_path(path).exists():\n        durable.write(_beside",
        "    durable.remove(previous_path(path))\n    if previous_path(path).exists():\n        durable.write(_beside",
        ("tests.certificates.test_renewal",),
    ),
    Defence(
        "certificate: a link is replaced",
        "identity/install.py",
        "        return path.resolve()\n",
        "        return path\n",
        (_CERTIFICATE,),
    ),
    _gone(
        "certificate: a mount point is never renewed",
        "identity/install.py",
        "error.errno != errno.EBUSY",
        _CERTIFICATE,
        to="True",
    ),
    Defence(
        "enrollment: a certificate of an unknown issuer is thrown away",
        "certificates/enrollment.py",
        "place = install.keep_unverified(self._config.client_cert, pem)",
        "place = self._config.client_cert",
        ("tests.certificates.test_enrollment.EnrollOnce",),
    ),
    _gone(
        "enrollment: what was kept is believed",
        "certificates/enrollment.py",
        "pem is None",
        "tests.certificates.test_enrollment.EnrollOnce",
        to="pem is not None",
    ),
    Defence(
        "certificate: extensions are read later",
        "identity/certificate.py",
        "certificate.subject, certificate.issuer, certificate.extensions",
        "certificate.subject, certificate.issuer",
        (_RENEWAL,),
    ),
    _gone(
        "chain: a leaf that may issue others",
        "identity/chain.py",
        "constraints is not None and constraints.ca",
        _RENEWAL,
    ),
    _gone(
        "chain: an issuer that is no CA", "identity/chain.py", "constraints is None or not constraints.ca", _CERTIFICATE
    ),
    _gone("chain: an issuer that has expired", "identity/chain.py", "not _within(issuer, now)", _CERTIFICATE),
    _gone(
        "chain: a path too long",
        "identity/chain.py",
        "constraints.path_length is not None and below > constraints.path_length",
        _CERTIFICATE,
    ),
    Defence(
        "chain: any issuer counts as an anchor",
        "identity/chain.py",
        "elif issuer in anchors:",
        "elif True:",
        (_CERTIFICATE,),
    ),
    Defence(
        "chain: a signature that does not verify",
        "identity/chain.py",
        "        return False\n    return True\n\n\ndef _issuer_refusal",
        "        return child.issuer == issuer.subject\n    return True\n\n\ndef _issuer_refusal",
        (_RENEWAL,),
    ),
    _gone(
        "evidence: another host's",
        "probes/runners/evidence_file.py",
        'not names_host(value.get("hostname"), names)',
        _EVIDENCE,
    ),
    Defence(
        "evidence: another key's",
        "probes/runners/evidence_file.py",
        "        key.verify(signature, signed)\n",
        "        pass\n",
        (_EVIDENCE,),
    ),
    Defence(
        "evidence: a signed part that does not hold all that is read",
        "probes/runners/evidence_file.py",
        'for name in ("schemaVersion", "hostname", "collectedAt") if name in value',
        'for name in ("schemaVersion", "hostname") if name in value',
        ("tests.probes.test_evidence", "tests.probes.test_evidence_selection"),
    ),
    Defence(
        "evidence: of a host whose name begins like this one's",
        "probes/runners/evidence_file.py",
        'found.startswith(f"{known}.")',
        "found.startswith(known)",
        ("tests.probes.test_evidence", "tests.probes.test_evidence_selection"),
    ),
    Defence(
        "evidence: what was seen once is good for ever",
        "probes/runners/evidence_file.py",
        "if known.evidence is None or known.identities != identities:",
        "if known.evidence is None:",
        ("tests.probes.test_evidence", "tests.probes.test_evidence_selection"),
    ),
    Defence(
        "TLS: 1.2 is enough",
        "net/tls.py",
        "context.set_min_proto_version(SSL.TLS1_3_VERSION)",
        "context.set_min_proto_version(SSL.TLS1_2_VERSION)",
        (_TLS + "tls_below_1_3",),
    ),
    Defence(
        "TLS: any CA",
        "net/tls.py",
        "    return bool(ok)",
        "    connection.get_app_data().clear()\n    return True",
        (_TLS + "wrong_ca", _TLS + "expired_server_certificate"),
    ),
    Defence(
        "TLS: any name",
        "net/tls.py",
        "        _check_name(connection, name)\n",
        "",
        (_TLS + "wrong_hostname",),
    ),
    Defence(
        "TLS: the system's CAs beside the fleet's",
        "net/tls.py",
        "        if ca_cert is None:\n            context.set_default_verify_paths()\n            return",
        "        context.set_default_verify_paths()\n        if ca_cert is None:\n            return",
        (
            "tests.net.test_tls.ServerVerification.test_the_ca_file_alone_decides_even_where_the_system_would_trust_the_server",
        ),
    ),
)
_HINTS = (
    Defence(
        "snapshots: what does not run here costs requests",
        "runtime/workers/heartbeat.py",
        "or snapshot.target_closure != self._read_current():",
        "or False:",
        ("tests.attacks_slow.test_hints.Hints.test_malformed_snapshots",),
    ),
    Defence(
        "snapshots: another closure than the one that runs",
        "runtime/rollout/decisions.py",
        "or current != acceptance.target_closure",
        "or False",
        (
            "tests.runtime.rollout.test_reducer.Hints.test_it_is_not_adopted_where_something_else_runs_or_it_is_over_or_one_was_accepted",
        ),
    ),
    _gone(
        "snapshots: of another host",
        "runtime/workers/heartbeat.py",
        "snapshot.hostname != self._journal.hostname",
        "tests.runtime.workers.test_heartbeat.WhatItTakes.test_snapshots_of_another_host_and_broken_ones_are_ignored",
    ),
    Defence(
        "snapshots: any seq begins a log",
        "runtime/rollout/decisions.py",
        "or snapshot.last_event_seq > ADOPTED_SEQ_LIMIT",
        "or False",
        ("tests.attacks_slow.test_hints.Hints.test_huge_negative_and_overflowing_seqs",),
    ),
    Defence(
        "snapshots: any seq raises an open log's",
        "runtime/rollout/decisions.py",
        "raised = min(snapshot.last_event_seq, durable + SEQ_RAISE_LIMIT)",
        "raised = snapshot.last_event_seq",
        ("tests.attacks_slow.test_hints.Hints.test_seqs_of_an_open_rollout_rise_by_little",),
    ),
    Defence(
        "replay: the record of acceptance goes out too",
        "journal/journal.py",
        "if name.seq >= max(1, from_seq) and",
        "if name.seq >= from_seq and",
        ("tests.attacks_slow.test_hints.Hints.test_replay_from",),
    ),
    Defence(
        "replay: as often as it is asked for",
        "runtime/rollout/replays.py",
        "if rollout_id in self._last:",
        "if False:",
        ("tests.attacks_slow.test_hints.Hints.test_replay_from",),
    ),
    Defence(
        "events are signed by another key than the one they are checked with",
        "runtime/assembly.py",
        "EventSigner(config.ssh_host_key_file)",
        "EventSigner(config.client_key)",
        ("tests.identity.test_event_signer.TwoKeys",),
    ),
    Defence(
        "an event that can't be signed ends the thread",
        "runtime/workers/outbound.py",
        "except (ProtoError, TrustError) as error:",
        "except ProtoError as error:",
        ("tests.attacks.test_audit.Audit.test_an_event_that_can_not_be_signed_holds_up_no_other",),
    ),
    Defence(
        "words: control characters reach the terminal",
        "text.py",
        'c if c.isprintable() else c.encode("unicode_escape").decode("ascii")',
        "c",
        ("tests.attacks.test_words.Words.test_terminal_escapes_and_newlines_in_a_text_log",),
    ),
    Defence(
        "words: the JSON log is not ASCII",
        "telemetry/logs.py",
        "json_ensure_ascii=True",
        "json_ensure_ascii=False",
        ("tests.attacks.test_words.Words.test_terminal_escapes_and_newlines", "tests.telemetry.test_logs"),
    ),
    Defence(
        "times: local time that overflows",
        "commands/times.py",
        "except OverflowError:",
        "except KeyError:",
        ("tests.commands.test_times",),
    ),
)
_LIVENESS = (
    *LOCAL,
    Defence(
        "signs of life: a dripping fleet",
        "runtime/workers/manifest_poll.py",
        "LONGEST_FETCH = 350.0",
        "LONGEST_FETCH = 200.0",
        ("tests.attacks.test_liveness",),
    ),
    Defence(
        "signs of life: a dripping hint",
        "runtime/workers/heartbeat.py",
        "LONGEST_TURN = 500.0",
        "LONGEST_TURN = 120.0",
        ("tests.attacks.test_liveness",),
    ),
    Defence(
        "files: nesting that ends a recursive parser",
        "operator/quarantine.py",
        "loads_strict(read_regular(self.path, BODY_LIMIT))",
        "json.loads(read_regular(self.path, BODY_LIMIT))",
        ("tests.attacks.test_fuzz.Fuzz.test_files_that_end_a_recursive_parser",),
    ),
)
_FRONT = "tests.attacks.test_fronts.Fronts.test_"
_OUTBOUND = "tests.runtime.workers.test_outbound.InPlaceOfTheControlPlane.test_"
_CONNECTION = "tests.net.test_client."
_FRONTS = (
    Defence(
        "fronts: any 2xx acknowledges",
        "net/verdict.py",
        "return Verdict.ANSWER if fits else Verdict.FOREIGN",
        "return Verdict.ANSWER",
        (_OUTBOUND + "no_page_or_redirect_acknowledges_or_refuses_an_event",),
    ),
    _gone(
        "fronts: JSON of another type acknowledges",
        "net/verdict.py",
        "kind in _HTML or (body.strip() and kind and not _is_json_type(kind))",
        "tests.net.test_verdict",
    ),
    Defence(
        "fronts: any 4xx is the control plane's verdict",
        "net/verdict.py",
        "return Verdict.ERROR if _is_json_error(headers, body) else Verdict.UNCLEAR",
        "return Verdict.ERROR",
        (_OUTBOUND + "no_page_or_redirect_acknowledges_or_refuses_an_event",),
    ),
    Defence(
        "fronts: a page reaches whoever asked",
        "net/client.py",
        "is not Verdict.FOREIGN:",
        "is not None:",
        (_FRONT + "no_front_is_taken_for_a_dispatch_or_raises_the_alarm_of_a_forged_one",),
    ),
    _gone(
        "fronts: who refuses is not asked",
        "journal/delivery.py",
        "not own_error",
        _OUTBOUND + "no_page_or_redirect_acknowledges_or_refuses_an_event",
    ),
    Defence(
        "fronts: an event is given up whether others pass or not",
        "runtime/workers/outbound.py",
        "blocked_for >= BLOCKED_LIMIT and self._look_behind(rollout_id, lane, block)",
        "blocked_for >= BLOCKED_LIMIT and (self._look_behind(rollout_id, lane, block)"
        " or self._set_aside(rollout_id, block, self.clock.now()) is None)",
        (_OUTBOUND + "a_door_that_is_shut_to_all_costs_no_event",),
    ),
    Defence(
        "fronts: one event holds up its rollout for ever",
        "runtime/workers/outbound.py",
        "blocked_for >= BLOCKED_LIMIT and self._look_behind(rollout_id, lane, block)",
        "False",
        (_OUTBOUND + "one_event_that_is_refused_alone_goes_out_of_the_way_after_ten_minutes",),
    ),
    _gone(
        "connections: an interim answer is the answer",
        "net/pool.py",
        "not _CONTINUE < status < 200",
        _CONNECTION + "KeepAlive.test_interim_answers_of_any_number_are_passed_over",
        to="True",
    ),
    Defence(
        "connections: a forgotten one is polled as long as ever",
        "runtime/dispatch/window.py",
        "if cut is not None:\n            return self._narrowed(cut, now)",
        "if cut is not None:\n            return replace(self, suspect=None)",
        ("tests.runtime.dispatch.test_window",),
    ),
    Defence(
        "connections: a hung control plane is asked ever more often",
        "runtime/dispatch/window.py",
        "return replace(self, suspect=None)  # nobody is there, quiet or not",
        "return replace(self, wait=max(1.0, self.wait / 2))",
        ("tests.runtime.dispatch.test_window",),
    ),
    Defence(
        "connections: their death is left to chance",
        "net/sockets.py",
        "        _notice_death(raw)\n",
        "",
        ("tests.net.test_proxy.DeadConnections",),
    ),
    Defence(
        "proxy: TLS is with the proxy's word for the name",
        "net/session.py",
        "handshake(raw, where.host, self._budget",
        "handshake(raw, host, self._budget",
        ("tests.net.test_proxy.Tunnel",),
    ),
    Defence(
        "connections: a second answer is the next one's",
        "net/session.py",
        "if stream is not None and stream.spoke_unasked():",
        "if False:",
        (_CONNECTION + "KeepAlive.test_a_second_answer_is_not_taken_for_that_to_the_next_request",),
    ),
)
_LOCK = "tests.activation.test_host.LocksTest.test_"
_INHIBITORS = "tests.activation.test_inhibitors.InhibitorsTest.test_"
_ROLLBACK = "tests.activation_slow.test_rollback.RollbackTest.test_"
_GUARD = "tests.activation_slow.test_guard.GuardTest.test_"
#: Other users of the host, and what a release brings, against a switch and the way back.
_HOST = (
    Defence(
        "lock: a holder of any user counts",
        "activation/locks.py",
        "if _users(pid, proc) <= trusted and _has_open",
        "if _has_open",
        (_LOCK + "a_holder_that_is_not_root_is_none_and_the_claimed_file_is_closed_to_it",),
    ),
    _gone(
        "lock: its file stays open to all",
        "activation/locks.py",
        'not status.st_mode & _OTHERS or not sys.platform.startswith("linux")',
        _ROLLBACK + "a_lock_that_another_user_holds_turns_no_rollback_away",
        to="True",
    ),
    Defence(
        "inhibitors: a file of any size is read",
        "activation/inhibitors.py",
        "_MAX_BYTES = 64 * 1024",
        "_MAX_BYTES = 1 << 40",
        (_INHIBITORS + "a_broken_file_of_the_release_fails_before_anything_is_changed",),
    ),
    Defence(
        "switch: the agent's environment overrides the checks of a release",
        "activation/context.py",
        '_OF_AN_OPERATOR = ("NIXOS_NO_CHECK", ',
        "_OF_AN_OPERATOR = (",
        (_INHIBITORS + "the_agents_own_word_is_not_an_operators",),
    ),
    Defence(
        "rollback: the prior's own checks stop it",
        "activation/switches.py",
        "[*UNCHECKED, *command] if job.unchecked else command",
        "command",
        (_ROLLBACK + "all_other_inhibitors_and_checks_of_the_prior_are_overridden",),
    ),
    Defence(
        "guard: the prior's own checks stop it",
        "activation/scripts/guard.sh",
        "NIXOS_NO_CHECK=1\n",
        "NIXOS_NO_CHECK=0\n",
        (_GUARD + "the_priors_own_pre_switch_check_does_not_stop_it",),
    ),
    _gone(
        "rollback: D-Bus is replaced under a running host",
        "activation/rollback.py",
        "found is None",
        _ROLLBACK + "a_bus_that_can_not_be_replaced_live_is_gone_back_to_by_a_reboot",
        to="True",
    ),
    Defence(
        "rollback: a full /boot keeps the release running",
        "activation/rollback.py",
        '            self._switch("test")\n',
        "",
        (_ROLLBACK + "a_full_boot_partition_does_not_keep_the_release_running",),
    ),
    Defence(
        "rollback: a failed attempt leaves the release's boot entry",
        "activation/rollback.py",
        "            self._salvage(failure)\n",
        "",
        (_ROLLBACK + "a_live_switch_that_fails_leaves_a_good_boot_entry",),
    ),
    Defence(
        "forward: a refused release keeps the profile",
        "activation/forward.py",
        "            self._restore_profile(before)\n",
        "",
        (_INHIBITORS + "a_bootloader_that_fails_leaves_the_profile_where_the_boot_entry_is",),
    ),
    Defence(
        "containers: the wrapper's boot id decides",
        "activation/backends/setsid.py",
        "return host.same_boot(record.intent.boot, host.read_boot_id())",
        'return f"boot={host.read_boot_id()}" in (record.path / "started").read_text()',
        (
            "tests.activation.test_forward.ForwardTest.test_a_wrapper_that_sees_another_boot_id_than_the_agent_is_followed_to_its_end",
        ),
    ),
)
DEFENCES = (*_HOST, *_FRONTS, *_VERIFIER, *_ENTRIES, *_READERS, *_IDENTITY, *_HINTS, *_LIVENESS)
