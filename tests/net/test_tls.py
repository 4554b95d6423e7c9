"""Who the client talks to, with which version, and what it presents: against a real TLS server."""

from __future__ import annotations

import os
import ssl
import sys
import unittest
from unittest import mock

from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.net.failures import ClientCertificateRefusedError
from tests.net.base import NetTestCase
from tests.support.https_server import HttpsServer
from tests.support.tls import DAY, HOUR, Authority, new_host_key, now, pem_of, pkcs8_pem, write_host_key


class ServerVerification(NetTestCase):
    def test_a_proper_server_is_talked_to_over_tls_13(self) -> None:
        server = self.serve(minimum=ssl.TLSVersion.TLSv1_3)
        server.route("GET", "/v1/x", json={"fine": True})
        self.assertEqual(b'{"fine": true}', self.connect(server).get("/v1/x", deadline=5).body)

    def test_a_server_that_speaks_only_tls_12_is_refused(self) -> None:
        server = self.serve(maximum=ssl.TLSVersion.TLSv1_2)
        server.route("GET", "/v1/x", json={})
        error = self.refused(self.connect(server), "/v1/x")
        self.assertEqual("tls", error.kind)
        self.assertIn("TLS 1.3", str(error))
        self.assertEqual([], server.requests)

    def test_a_server_of_another_ca_is_refused(self) -> None:
        server = self.serve(authority=Authority("somebody else"))
        error = self.refused(self.connect(server), "/v1/x")
        self.assertEqual("tls", error.kind)
        self.assertIn("ca_cert", str(error))
        self.assertEqual([], server.requests)

    def test_the_ca_file_alone_decides_even_where_the_system_would_trust_the_server(self) -> None:
        other = Authority("trusted by the system")
        system = other.write_ca(self.folder / "system.pem")
        server = self.serve(authority=other)
        server.route("GET", "/v1/x", json={})
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(system), "REQUESTS_CA_BUNDLE": str(system)}):
            self.assertEqual("tls", self.refused(self.connect(server), "/v1/x").kind)

    def test_without_a_ca_file_the_systems_cas_decide(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(self.ca)}):
            self.assertEqual(200, self.connect(server, ca_cert=None).get("/v1/x", deadline=5).status)
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": os.devnull}):
            self.assertEqual("tls", self.refused(self.connect(server, ca_cert=None), "/v1/x").kind)

    def test_a_certificate_for_another_name_is_refused_and_both_names_are_told(self) -> None:
        server = self.serve(cert={"names": ["other.example"], "addresses": []})
        error = self.refused(self.connect(server), "/v1/x")
        self.assertEqual("tls", error.kind)
        self.assertIn("other.example", str(error))
        self.assertIn("127.0.0.1", str(error))
        self.assertEqual([], server.requests)

    def test_a_name_in_the_common_name_alone_does_not_count(self) -> None:
        server = self.serve(cert={"names": [], "addresses": [], "common_name": "localhost"})
        self.assertEqual("tls", self.refused(self.connect(server, f"https://localhost:{server.port}"), "/v1/x").kind)

    def test_an_address_is_checked_against_the_addresses_of_the_certificate(self) -> None:
        server = self.serve(cert={"names": [], "addresses": ["127.0.0.1"]})
        server.route("GET", "/v1/x", json={})
        self.assertEqual(200, self.connect(server).get("/v1/x", deadline=5).status)
        by_name = self.connect(server, f"https://localhost:{server.port}")
        self.assertEqual("tls", self.refused(by_name, "/v1/x").kind)

    def test_a_host_name_is_looked_up_and_checked(self) -> None:
        server = self.serve(cert={"names": ["localhost"], "addresses": []})
        server.route("GET", "/v1/x", json={})
        url = f"https://localhost:{server.port}/"
        self.assertEqual(200, self.connect(server, url).get("/v1/x", deadline=5).status)

    def test_an_expired_server_certificate_is_refused_with_a_word_about_the_clock(self) -> None:
        server = self.serve(cert={"not_before": now() - 2 * DAY, "not_after": now() - DAY})
        error = self.refused(self.connect(server), "/v1/x")
        self.assertEqual("tls", error.kind)
        self.assertIn("expired", str(error))
        self.assertIn("clock", str(error))

    def test_a_server_certificate_of_the_future_is_refused(self) -> None:
        server = self.serve(cert={"not_before": now() + HOUR, "not_after": now() + DAY})
        self.assertIn("not valid yet", str(self.refused(self.connect(server), "/v1/x")))

    def test_a_hosts_client_certificate_does_not_pass_for_the_server(self) -> None:
        """Every enrolled host holds one from the same CA, with the name of a host in its common name."""
        self.fleet.write_client(self.folder / "host.pem", self.key, "localhost")
        (self.folder / "host.pk8").write_bytes(pkcs8_pem(self.key))
        server = HttpsServer(self.folder / "host.pem", self.folder / "host.pk8")
        self.addCleanup(server.close)
        self.assertEqual("tls", self.refused(self.connect(server, f"https://localhost:{server.port}"), "/v1/x").kind)
        self.assertEqual([], server.requests)

    def test_a_ca_file_that_was_replaced_counts_from_the_next_connection_on(self) -> None:
        other = Authority("the next CA")
        server = self.serve(authority=other)
        server.route("GET", "/v1/x", json={})
        client = self.connect(server)
        self.assertEqual("tls", self.refused(client, "/v1/x").kind)
        self.ca.write_bytes(other.pem + b"\n")
        self.assertEqual(200, client.get("/v1/x", deadline=5).status)

    def test_a_missing_or_senseless_ca_file_fails_each_call_and_heals(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        path = self.folder / "later.pem"
        client = self.connect(server, ca_cert=path)
        self.assertIn("later.pem", str(self.refused(client, "/v1/x")))
        path.write_text("nonsense")
        self.assertEqual("tls", self.refused(client, "/v1/x").kind)
        path.write_bytes(self.fleet.pem)
        self.assertEqual(200, client.get("/v1/x", deadline=5).status)


class ClientCertificate(NetTestCase):
    def test_the_server_sees_the_hosts_certificate(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        self.connect(server).get("/v1/x", deadline=5)
        self.assertEqual(self.certificate.serial_number, server.requests[0].client_serial)
        self.assertEqual("web-01", server.requests[0].client_name)

    def test_no_certificate_is_presented_where_the_call_says_so(self) -> None:
        server = self.serve(client_optional=True)
        server.route("POST", "/v1/x", json={})
        self.connect(server).post("/v1/x", {}, deadline=5, client_certificate=False)
        self.assertIsNone(server.requests[0].client_serial)

    def test_new_credentials_are_presented_from_the_next_request_on(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        client = self.connect(server)
        client.get("/v1/x", deadline=5)
        renewed = self.fleet.write_client(self.cert_path, self.key, "web-01", not_after=now() + 60 * DAY)
        self.assertEqual(2, self.credentials.reload().generation)
        client.get("/v1/x", deadline=5)
        seen = [request.client_serial for request in server.requests]
        self.assertEqual([self.certificate.serial_number, renewed.serial_number], seen)

    def test_unchanged_credentials_keep_the_connection(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        client = self.connect(server)
        for _ in range(3):
            client.get("/v1/x", deadline=5)
            self.credentials.reload()
        self.assertEqual(1, server.connections)

    def test_the_private_key_is_never_written_to_disk(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        before = {path: path.read_bytes() for path in self.folder.rglob("*")}
        written: list[str] = []

        def watch(event: str, args: tuple[object, ...]) -> None:
            # Audit events see every open of Python code, whoever makes it; OpenSSL is given the key in memory.
            flags = args[2] if event == "open" and len(args) > 2 else 0
            if watching and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                written.append(str(args[0]))

        watching = True
        sys.addaudithook(watch)
        try:
            self.connect(server).get("/v1/x", deadline=5)
        finally:
            watching = False
        self.assertEqual([], written)
        self.assertEqual(before, {path: path.read_bytes() for path in self.folder.rglob("*")})

    def test_a_server_that_refuses_the_certificate_is_told_from_other_tls_failures(self) -> None:
        stranger = Authority("not the fleet")
        path = self.folder / "stranger.pem"
        stranger.write_client(path, self.key, "web-01")
        credentials = Credentials(path, self.folder / "key")
        credentials.reload()
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        client = self.connect(server, credentials=credentials)
        # The server's reset can overtake its alert while the request is being sent: then it is only a reset.
        errors = [self.refused(client, "/v1/x") for _ in range(8)]
        self.assertLessEqual({error.kind for error in errors}, {"tls", "reset"})
        self.assertTrue(any(isinstance(error, ClientCertificateRefusedError) for error in errors))
        self.assertEqual([], server.requests)

    def test_calls_before_enrollment_fail_without_a_connection(self) -> None:
        server = self.serve()
        credentials = Credentials(self.folder / "none.pem", self.folder / "key")
        error = self.refused(self.connect(server, credentials=credentials), "/v1/x")
        self.assertEqual("tls", error.kind)
        self.assertIn("none.pem", str(error))
        self.assertEqual(0, server.connections)

    def test_a_certificate_for_another_key_is_never_put_in_use(self) -> None:
        other = write_host_key(self.folder / "other", new_host_key())
        self.fleet.write_client(self.cert_path, other, "web-01")
        with self.assertRaisesRegex(Exception, "another key"):
            self.credentials.reload()
        current = self.credentials.current()
        assert current is not None
        self.assertEqual(self.certificate, current.certificate.leaf)
        self.assertNotIn("Ed25519PrivateKey", repr(current))

    def test_a_chain_in_the_certificate_file_is_presented_whole(self) -> None:
        middle = Authority("issuing CA", parent=self.fleet)
        leaf = middle.issue_client(self.key.private.public_key(), "web-01")
        self.cert_path.write_text(pem_of(leaf) + middle.pem.decode("ascii"))
        self.credentials.reload()
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        self.connect(server).get("/v1/x", deadline=5)
        self.assertEqual(leaf.serial_number, server.requests[0].client_serial)


if __name__ == "__main__":
    unittest.main()
