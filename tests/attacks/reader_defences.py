"""How bytes from outside are read, and who is believed to have sent them."""

from __future__ import annotations

from tests.attacks.defence import Defence, gone

_TLS = "tests.attacks.test_tls.Tls.test_"

_VERIFY, _RESOLVE, _JSON = "tests.trust.test_verify", "tests.trust.test_resolve", "tests.proto.test_strict_json"

_RENEWAL = "tests.attacks.test_renewal.Renewal.test_renewed_certificate_for_another_key_or_name"

_CERTIFICATES = ("tests.identity.test_certificate", "tests.identity.test_certificate_files")

_EVIDENCE = "tests.attacks.test_evidence.Evidence.test_evidence_signed_by_another_key_or_replayed_from_another_host"

_BODIES = "tests.attacks_slow.test_bodies."

_LENGTHS = "tests.attacks_slow.test_lengths."

_READERS = (
    gone("JSON: size", "proto/strict_json.py", "len(raw) > limit", _JSON),
    gone(
        "JSON: values that fill memory",
        "proto/strict_json.py",
        "values * _BYTES_PER_VALUE + len(raw) * _copies(raw) > 4 * limit",
        _JSON,
    ),
    Defence(
        "JSON: wide texts that fill memory", "proto/strict_json.py", "return 10 if wide else 5", "return 3", (_JSON,)
    ),
    gone(
        "JSON: strings that are missing say nothing",
        "proto/strict_json.py",
        "_strings_kept(value) != _strings_written(raw)",
        _JSON + ".DuplicateKeys",
        to="_strings_kept(value) < 0",
    ),
    gone(
        "JSON: duplicate keys",
        "proto/strict_json.py",
        "len(members) != len(pairs)",
        _BODIES + "Json.test_an_order_that_is_no_strict_json",
    ),
    gone(
        "JSON: huge integers",
        "proto/strict_json.py",
        "not -_SAFE_INTEGER <= value <= _SAFE_INTEGER",
        _BODIES + "Json.test_an_order_that_is_no_strict_json",
    ),
    gone(
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
    gone(
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
    gone(
        "bodies: an announced length over the limit",
        "net/body.py",
        "announced.isdecimal() and len(announced) < 20 and int(announced) > limit",
        "tests.net.test_limits.Sizes.test_an_announced_length_over_the_limit_is_not_even_read",
    ),
    gone(
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
    gone("bodies: negative chunks", "net/pool.py", "size < 0", _LENGTHS + "Sizes.test_broken_answers"),
    Defence(
        "soak: as long as the control plane says",
        "runtime/dispatch/decision.py",
        "received_at + longest if soak_due_at - received_at > longest else soak_due_at",
        "soak_due_at",
        ("tests.runtime.workers.test_longpoll.Accepting",),
    ),
    gone(
        "verified once, acted on whenever the reducer comes to it",
        "runtime/rollout/reducer.py",
        "self.clock.monotonic() > item.until",
        "tests.runtime.rollout.test_reducer.ADispatchThatWaited",
    ),
    gone(
        "a repeat takes the place of what is kept",
        "runtime/workers/longpoll.py",
        "self._check.ran_here(dispatch)",
        "tests.runtime.workers.test_longpoll.Accepting",
    ),
    gone("bodies: what comes around them", "net/budget.py", "self._bytes_left < 0", "tests.net.test_limits"),
    gone("TLS: messages without end", "net/tls.py", "noted.messages > _MOST_MESSAGES", "tests.net.test_limits"),
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
    gone("certificate: another key", "identity/certificate.py", "not new.belongs_to(public_raw)", *_CERTIFICATES),
    gone(
        "certificate: another name",
        "identity/certificate.py",
        "not name_is_ours(new.common_name, machine_id)",
        _RENEWAL,
    ),
    gone(
        "certificate: not valid now",
        "identity/certificate.py",
        "not new.not_before <= judged_at <= new.not_after",
        *_CERTIFICATES,
    ),
    gone(
        "certificate: no later than the present one",
        "identity/certificate.py",
        "current is not None and new.not_after <= current.not_after",
        _RENEWAL,
    ),
    gone("certificate: no chain is asked for", "identity/certificate.py", "anchors", _RENEWAL),
    Defence(
        "certificate: any suffix of a name",
        "identity/certificate.py",
        "return _SUFFIX.fullmatch(common_name[len(prefix) :]) is not None",
        "return True",
        (*_CERTIFICATES, _RENEWAL),
    ),
    Defence(
        "certificate: whatever came along is installed",
        "identity/certificate.py",
        "installed = AgentCertificate(new.leaf, path)",
        "installed = new",
        _CERTIFICATES,
    ),
    gone(
        "certificate: of any size",
        "identity/certificate.py",
        "len(installed.pem()) > _INSTALLED_LIMIT",
        *_CERTIFICATES,
    ),
    gone(
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
    gone("chain: unknown critical extensions", "identity/chain.py", "strange", _RENEWAL),
    Defence(
        "certificate: any answer proves it",
        "certificates/renewal.py",
        "return None if answer.ok else answer.told()",
        "return None if answer.status not in _NOT_WELCOME else answer.told()",
        (
            "tests.certificates.test_renewal.RenewOnce.test_no_status_but_the_2xx_that_the_old_one_gets_proves_a_certificate",
        ),
    ),
    gone(
        "certificate: as many a day as somebody likes",
        "certificates/renewal.py",
        "first is not None and self._clock.monotonic() - first < _DAY",
        "tests.certificates.test_renewal.RenewOnce",
    ),
    Defence(
        "certificate: the token waits for its end though it is refused",
        "runtime/workers/cert_renewal.py",
        "if current is None or refused is not None or current.certificate.expired(self.clock.now()):",
        "if current is None or current.certificate.expired(self.clock.now()):",
        (
            "tests.runtime.workers.test_enrolling.Enrolling.test_a_certificate_that_is_refused_is_replaced_with_the_token",
        ),
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
        _CERTIFICATES,
    ),
    gone(
        "certificate: a mount point is never renewed",
        "identity/install.py",
        "error.errno != errno.EBUSY",
        *_CERTIFICATES,
        to="True",
    ),
    Defence(
        "enrollment: a certificate of an unknown issuer is thrown away",
        "certificates/enrollment.py",
        "place = install.keep_unverified(self._config.client_cert, pem)",
        "place = self._config.client_cert",
        ("tests.certificates.test_enrollment.EnrollOnce",),
    ),
    gone(
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
    gone(
        "chain: a leaf that may issue others",
        "identity/chain.py",
        "constraints is not None and constraints.ca",
        _RENEWAL,
    ),
    gone(
        "chain: an issuer that is no CA",
        "identity/chain.py",
        "constraints is None or not constraints.ca",
        *_CERTIFICATES,
    ),
    gone("chain: an issuer that has expired", "identity/chain.py", "not _within(issuer, now)", *_CERTIFICATES),
    gone(
        "chain: a path too long",
        "identity/chain.py",
        "constraints.path_length is not None and below > constraints.path_length",
        *_CERTIFICATES,
    ),
    Defence(
        "chain: any issuer counts as an anchor",
        "identity/chain.py",
        "elif issuer in anchors:",
        "elif True:",
        _CERTIFICATES,
    ),
    Defence(
        "chain: a signature that does not verify",
        "identity/chain.py",
        "        return False\n    return True\n\n\ndef _issuer_refusal",
        "        return child.issuer == issuer.subject\n    return True\n\n\ndef _issuer_refusal",
        (_RENEWAL,),
    ),
    gone(
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


DEFENCES = (*_READERS, *_IDENTITY)
