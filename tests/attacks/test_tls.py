"""Servers that are not the control plane: nothing is asked of them and nothing is believed that they say."""

from __future__ import annotations

import ssl
import unittest
from typing import Any

from tests.attacks.case import AttackCase
from tests.support.tls import DAY, HOUR, Authority, now


class Tls(AttackCase):
    def context(self, authority: Authority | None = None, **certificate: Any) -> ssl.SSLContext:
        """What a server needs: a certificate of ``authority`` (the right one where none is given)."""
        folder = self.folder / "other"
        folder.mkdir(exist_ok=True)
        paths = (authority or self.authority).write_server(folder, **certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*paths)
        context.load_verify_locations(self.folder / "ca.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def refused(self, name: str, context: ssl.SSLContext, words: str) -> None:
        """An agent that starts in front of this server sends it nothing, and says why."""
        with self.attempt(name):
            self.server.context = context
            self.server.requests.clear()
            life = self.start()
            self.until(lambda: life.said(words), f"the log says {words!r}")
            self.until(lambda: life.counted("requests", outcome="tls") > 3, "it goes on trying")
            self.assertEqual(self.server.requests, [])
            self.assert_untouched()

    def after_all(self) -> None:
        """The very same process talks to the right server once it is there again."""
        self.server.context = self.right
        self.assert_only_delayed()

    def setUp(self) -> None:
        super().setUp()
        self.right = self.server.context
        self.publish()
        self.liar.dispatch(self.rollout_id, self.closure)

    def test_tls_below_1_3(self) -> None:
        context = self.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.refused("1.2", context, "does not speak TLS 1.3")
        context = self.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM")
        self.refused("1.2 with the best of its ciphers", context, "does not speak TLS 1.3")
        self.liar.next_offer(0)
        self.after_all()

    def test_wrong_ca(self) -> None:
        self.refused("another fleet's", self.context(Authority("fleet CA")), "certificate is refused")
        self.refused("one of an unknown name", self.context(Authority("somebody")), "certificate is refused")
        sub = Authority("an issuer that is no CA", parent=self.authority, ca=False)
        self.refused("issued by what is no CA", self.context(sub), "certificate is refused")
        self.liar.next_offer(0)
        self.after_all()

    def test_wrong_hostname(self) -> None:
        certificates: dict[str, dict[str, Any]] = {
            "another name": {"names": ["cp.example.org"], "addresses": []},
            "the address as a name": {"names": ["127.0.0.1"], "addresses": []},
            "only in the common name": {"names": [], "addresses": [], "common_name": "127.0.0.1"},
            "another address": {"names": ["localhost"], "addresses": ["127.0.0.2"]},
            "every name there is": {"names": ["*"], "addresses": []},
        }
        for name, certificate in certificates.items():
            self.refused(name, self.context(**certificate), "check control_plane_url")
        self.liar.next_offer(0)
        self.after_all()

    def test_expired_server_certificate(self) -> None:
        old = self.context(not_before=now() - 3 * DAY, not_after=now() - HOUR)
        self.refused("expired", old, "it has expired")
        self.refused("of the future", self.context(not_before=now() + HOUR), "not valid yet")
        self.liar.next_offer(0)
        self.after_all()

    def test_a_client_certificate_that_passes_for_a_server(self) -> None:
        """Another host of the fleet, with its own agent certificate, between this host and the control plane."""
        from cryptography.hazmat.primitives import serialization

        from tests.support.tls import new_host_key

        key = new_host_key()
        certificate = self.folder / "other-agent.pem"
        self.authority.write_client(certificate, key, "127.0.0.1")
        private = key.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / "other-agent.key").write_bytes(private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, self.folder / "other-agent.key")
        self.refused("another agent's", context, "check control_plane_url")
        self.liar.next_offer(0)
        self.after_all()


if __name__ == "__main__":
    unittest.main()
