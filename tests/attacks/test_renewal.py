"""Certificates that are not this host's: the one that works stays, in memory and on disk, until a right one comes."""

from __future__ import annotations

import datetime
import json
import unittest
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE, Life
from tests.attacks.liar import DISPATCH, FLEET, HEARTBEAT, RENEW
from tests.support.behaviours import GzipBomb, Reply, Request, page
from tests.support.tls import DAY, HOUR, Authority, new_host_key, now, pem_of

Make = Callable[[Request], Any]
_UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")


class Renewal(AttackCase):
    def setUp(self) -> None:
        super().setUp()
        # Three quarters of its life are over: the agent asks for the next one at once.
        self.authority.write_client(
            self.host.cert_path, self.host.key, MACHINE, not_before=now() - 3 * DAY, not_after=now() + DAY
        )
        self.before = self.host.cert_path.read_bytes()

    @staticmethod
    def failure(life: Life) -> object:
        return life.status().get("certificate", {}).get("failure")

    def answers(self) -> dict[str, Make]:
        own = self.host.key.private.public_key()
        other, foreign = new_host_key().private.public_key(), Authority("fleet CA")
        weak = Authority("no CA", parent=self.authority, ca=False)

        def issued(public: Any = own, name: str = MACHINE, authority: Authority = self.authority, **more: Any) -> Make:
            more.setdefault("not_after", now() + 60 * DAY)
            return lambda request: self.liar.certificate_answer(pem_of(authority.issue_client(public, name, **more)))

        def body(raw: bytes) -> Make:
            return lambda request: Reply(200, raw)

        return {
            "another key": issued(other),
            "another name": issued(name="web-02"),
            "a name that only begins like it": issued(name="web-01.evil"),
            "a name that only ends like it": issued(name="evil-web-01"),
            "an agent's name without its suffix": issued(name="agent-web-01."),
            "another agent's name": issued(name="agent-web-011.fleet"),
            "a name with a newline": issued(name="web-01\nroot"),
            "not valid yet": issued(not_before=now() + HOUR),
            "expired": issued(not_before=now() - 2 * DAY, not_after=now() - DAY),
            "no later than the present one": issued(not_after=now() + HOUR),
            "another authority of the same name": issued(authority=foreign),
            "an issuer that is no CA": issued(authority=weak),
            "a certificate that may issue others": issued(ca=True),
            "for servers alone": issued(extensions=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]),
            "a critical extension that nobody knows": issued(extensions=[(_UNKNOWN, True)]),
            "valid until the year 9999": issued(
                not_after=datetime.datetime(9999, 12, 31, tzinfo=datetime.timezone.utc)
            ),
            "extensions that can't be read": lambda request: self.liar.certificate_answer(self.unreadable()),
            "no certificate": body(json.dumps({"certPem": "hello"}).encode()),
            "nothing": body(json.dumps({"certPem": ""}).encode()),
            "a number": body(b'{"certPem": 7}'),
            "two answers": body(b'{"certPem": "a", "certPem": "b"}'),
            "a megabyte": body(json.dumps({"certPem": "x" * 900_000}).encode()),
            "a bomb": lambda request: GzipBomb(8 * 1024 * 1024),
            "a private key": lambda request: self.liar.certificate_answer("-----BEGIN PRIVATE KEY-----\nMII\n"),
            "a thousand certificates": lambda request: self.liar.certificate_answer(
                pem_of(self.authority.issue_client(own, MACHINE)) * 300
            ),
            "a redirect": lambda request: Reply(307, b"", {"Location": "https://127.0.0.1:1/"}),
        }

    def unreadable(self) -> str:
        """Signed by the fleet's own CA: basic constraints and an alternative name that no parser takes."""
        constraints = x509.ObjectIdentifier("2.5.29.19")
        names = x509.ObjectIdentifier("2.5.29.17")
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, MACHINE)]))
            .issuer_name(self.authority.name)
            .public_key(self.host.key.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - datetime.timedelta(hours=1))
            .not_valid_after(now() + 60 * DAY)
            # An EDI party name: a general name that the library knows of and refuses to read.
            .add_extension(x509.UnrecognizedExtension(names, bytes.fromhex("3006a504a1020c00")), critical=False)
            .add_extension(x509.UnrecognizedExtension(constraints, b"\x30\x03\x01\x01\xff"), critical=True)
        )
        return pem_of(builder.sign(self.authority.key, hashes.SHA256()))

    def test_renewed_certificate_for_another_key_or_name(self) -> None:
        """And every other answer that must not be installed."""
        for name, make in self.answers().items():
            with self.attempt(name):
                self.liar.lies["POST", RENEW] = make
                life = self.start()
                certificate = self.until(lambda p=life: p.status().get("certificate"), "the certificate was looked at")
                self.until(lambda p=life: p.status()["certificate"]["failure"], f"it is refused: {certificate}")
                self.assertEqual(self.host.cert_path.read_bytes(), self.before)
                self.assertFalse(list(self.host.cert_path.parent.glob("agent-cert.pem.*")))
                failure = life.status()["certificate"]["failure"]
                self.assertTrue(failure.isprintable(), failure)
                self.assertNotIn(
                    "does not take the renewed", failure, "it was installed, and only the trial took it back"
                )
                self.assert_untouched()
        life = self.start()
        self.until(lambda: self.host.cert_path.read_bytes() != self.before, "a right one is installed")
        self.until(lambda: life.status().get("certificate", {}).get("state") == "valid", "and in use")
        self.assert_only_delayed()

    def test_a_liar_that_refuses_what_it_issued_locks_nobody_out(self) -> None:
        """The certificate is sound, and whoever presents it is turned away: the pair before stays in use."""
        for answer in (Reply(403), Reply(404), Reply(500), page(200)):
            with self.attempt(answer):
                mine = x509.load_pem_x509_certificate(self.before).serial_number

                def proof(request: Request, mine: int = mine, answer: Reply = answer) -> Reply | None:
                    return answer if request.client_serial != mine else None

                self.liar.lies["GET", f"{FLEET}/sig"] = proof
                self.publish()
                life = self.start()
                self.until(
                    lambda p=life: "does not take the renewed" in str(self.failure(p)),
                    "it is given back",
                )
                self.assertEqual(self.host.cert_path.read_bytes(), self.before)
                self.assert_alive()

    def test_a_certificate_that_stopped_working_gives_way_to_the_one_before(self) -> None:
        self.publish()
        life = self.start()
        self.until(lambda: self.host.cert_path.read_bytes() != self.before, "it is renewed")
        self.until(lambda: life.status().get("certificate", {}).get("state") == "valid", "and in use")
        new = x509.load_pem_x509_certificate(self.host.cert_path.read_bytes()).serial_number

        def turned_away(request: Request) -> Reply | None:
            return Reply(401) if request.client_serial == new else None

        for method, path in (("GET", DISPATCH), ("POST", HEARTBEAT), ("GET", FLEET), ("GET", f"{FLEET}/sig")):
            self.liar.lies[method, path] = turned_away
        self.until(lambda: self.host.cert_path.read_bytes() == self.before, "the one before is back")
        beats = len(self.liar.heartbeats)
        self.until(lambda: len(self.liar.heartbeats) > beats + 1, "and the host is heard")
        self.assert_alive()


if __name__ == "__main__":
    unittest.main()
