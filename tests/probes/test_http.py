"""The http runner against real servers that misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography import x509

from nixfleet_agent.probes.declarations import HttpDecl
from nixfleet_agent.probes.runners import RunnerOutcome, run
from tests.probes.http_case import HttpCase, probe
from tests.probes.support import RawServer, answer, context, descriptors, say, stop_when
from tests.support.tls import DAY, Authority, now


class Status(HttpCase):
    def test_the_expected_status_passes(self) -> None:
        self.assertTrue(probe(self.serve(say(answer())).url("/health")).passed)
        self.assertTrue(probe(self.serve(say(answer("204 No Content", b""))).url(), expect_status=204).passed)

    def test_any_other_status_fails_and_is_named(self) -> None:
        self.assert_fails(probe(self.serve(say(answer("503 Busy"))).url()), "status 503, expected 200")
        self.assert_fails(probe(self.serve(say(answer())).url(), expect_status=503), "status 200, expected 503")

    def test_the_request_is_a_bare_get(self) -> None:
        server = self.serve(say(answer()))
        self.assertTrue(probe(server.url("/a?b=c")).passed)
        (request,) = server.requests
        self.assertTrue(request.startswith("GET /a?b=c HTTP/1.1\r\n"), request)
        self.assertIn("User-Agent: nixfleet-agent/", request)
        self.assertIn("\r\nConnection: close\r\n", request)
        self.assertNotIn("Authorization", request)

    def test_ipv6(self) -> None:
        server = self.serve(say(answer()), family=socket.AF_INET6)
        self.assertTrue(probe(f"http://[::1]:{server.port}/").passed)

    def test_an_ipv6_address_without_a_port_is_asked_at_the_schemes_own(self) -> None:
        self.assert_fails(probe("http://[::1]/"), "can't connect to ::1 port 80: ")
        self.assert_fails(probe("https://[::1]/"), "can't connect to ::1 port 443: ")

    def test_neither_proxies_nor_netrc_of_the_environment_are_used(self) -> None:
        server = self.serve(say(answer()))
        with tempfile.TemporaryDirectory() as folder:
            netrc = Path(folder) / ".netrc"
            netrc.write_text("machine 127.0.0.1 login root password secret\n", encoding="ascii")
            netrc.chmod(0o600)
            environment = {"http_proxy": "http://127.0.0.1:9/", "ALL_PROXY": "http://127.0.0.1:9/", "NETRC": str(netrc)}
            with mock.patch.dict(os.environ, environment):
                self.assertTrue(probe(server.url()).passed)
        self.assertNotIn("Authorization", server.requests[0])


class NoAnswer(HttpCase):
    def test_connection_refused(self) -> None:
        self.assert_fails(probe("http://127.0.0.1:1/"), "can't connect to 127.0.0.1 port 1: Connection refused")

    def test_a_name_that_does_not_exist(self) -> None:
        self.assert_fails(probe("http://no-such-host.invalid/"), "can't look up no-such-host.invalid")

    def test_a_server_that_resets(self) -> None:
        def reset(connection: Any, request: str) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

        self.assert_fails(probe(self.serve(reset).url()), "reset")

    def test_garbage_instead_of_http(self) -> None:
        what_came = "no proper HTTP answer: BadStatusLine('SSH-2.0-OpenSSH_9.2"
        self.assert_fails(probe(self.serve(say(b"SSH-2.0-OpenSSH_9.2\r\n")).url()), what_came)
        self.assert_fails(probe(self.serve(say(b"<html>up</html>")).url()), "no proper HTTP answer")

    def test_a_flood_of_headers(self) -> None:
        many = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"
        self.assert_fails(probe(self.serve(say(many)).url()), "more than 100 headers")

        def endless(connection: Any, request: str) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                connection.sendall(b"y" * 65536)

        self.assert_fails(probe(self.serve(endless).url()), "more than 65536 bytes")

    def test_a_reason_names_no_credentials_of_the_url(self) -> None:
        outcome = probe("http://admin:hunter2@127.0.0.1:1/x?token=abc")
        self.assertNotIn("hunter2", outcome.failure_reason or "")
        self.assertNotIn("abc", outcome.failure_reason or "")


class WallClock(HttpCase):
    """The time limit is for all of it, whatever the server does meanwhile."""

    def assert_in_time(self, server_handler: Any, **fields: Any) -> None:
        server = self.serve(server_handler)
        began = time.monotonic()
        outcome = probe(server.url(), timeout=0.4, **fields)
        self.assert_quick(began, 1.0)
        self.assertGreaterEqual(time.monotonic() - began, 0.39)
        self.assert_fails(outcome, "no full answer within 0.4 s")

    def test_a_server_that_says_nothing(self) -> None:
        self.assert_in_time(lambda connection, request: connection.recv(1))

    def test_a_slow_drip_of_headers(self) -> None:
        self.assert_in_time(self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000))

    def test_a_slow_drip_of_the_body(self) -> None:
        drip = self.drip(b"x" * 1000)

        def handler(connection: Any, request: str) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            drip(connection, request)

        self.assert_in_time(handler, body_contains="never")

    def test_endless_interim_answers(self) -> None:
        self.assert_in_time(self.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, size=25))

    def test_each_redirect_gets_only_what_is_left(self) -> None:
        def slow_redirect(connection: Any, request: str) -> None:
            threading.Event().wait(0.15)
            connection.sendall(answer("302 Found", b"", "Location: /again"))

        self.assert_in_time(slow_redirect)

    def drip(self, raw: bytes, size: int = 1) -> Any:
        def handler(connection: Any, request: str) -> None:
            gap = threading.Event()
            for at in range(0, len(raw), size):
                connection.sendall(raw[at : at + size])
                gap.wait(0.02)

        return handler

    def test_being_stopped_ends_a_blocked_read_at_once(self) -> None:
        server = self.serve(lambda connection, request: connection.recv(1))
        ctx = context()
        thread = stop_when(lambda: bool(server.requests), ctx.cancel)
        began = time.monotonic()
        outcome = run(HttpDecl(name="p", url=server.url(), timeout=30), ctx)
        thread.join()
        self.assert_quick(began, 1.0)
        self.assert_fails(outcome, "stopped")


class Tls(HttpCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.authority = Authority()
        self.ca = self.authority.write_ca(self.folder / "ca.pem")

    def server(self, authority: Authority | None = None, **options: Any) -> Any:
        certificate, key = (authority or self.authority).write_server(self.folder, **options)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        return tls

    def probe(self, tls: Any, handler: Any = None, **fields: Any) -> RunnerOutcome:
        server = self.serve(handler or say(answer()), tls=tls)
        ctx = context(tls=lambda: ssl.create_default_context(cafile=str(self.ca)))
        return run(HttpDecl(name="p", url=server.url(), **fields), ctx)

    def test_a_good_certificate_passes(self) -> None:
        self.assertTrue(self.probe(self.server(), body_contains="ok").passed)

    def test_the_verdict_is_the_same_on_each_version_of_python(self) -> None:
        made = ssl.create_default_context

        def strict(**given: Any) -> ssl.SSLContext:
            """As Python 3.13 makes it, whatever this one is."""
            tls = made(**given)
            tls.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
            return tls

        root = self.authority
        between = Authority("intermediate", parent=root)
        extensions = [type(extension.value) for extension in between.certificate.extensions]
        self.assertNotIn(x509.AuthorityKeyIdentifier, extensions)
        with mock.patch("ssl.create_default_context", strict):
            self.assertTrue(self.probe(self.server()).passed, "OpenSSL asks for no Authority Key Identifier")
            between.write_ca(self.ca)
            self.assert_fails(self.probe(self.server(between)), "unable to get issuer certificate")

    def test_bad_certificates_fail(self) -> None:
        refused = "TLS: the server's certificate was refused"
        self.assert_fails(self.probe(self.server(Authority("another CA"))), refused)
        self.assert_fails(self.probe(self.server(names=["other.example"], addresses=[])), refused)
        expired = self.server(not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.assert_fails(self.probe(expired), refused)

    def test_the_machines_own_authorities_are_the_default(self) -> None:
        server = self.serve(say(answer()), tls=self.server())
        self.assert_fails(run(HttpDecl(name="p", url=server.url()), context()), "refused")

    def test_plain_http_behind_an_https_url_fails(self) -> None:
        server = self.serve(say(answer()))
        ctx = context(tls=lambda: ssl.create_default_context(cafile=str(self.ca)))
        url = f"https://127.0.0.1:{server.port}/"
        server_talks_first = HttpDecl(name="p", url=url, timeout=1.0)
        self.assertFalse(run(server_talks_first, ctx).passed)

    def test_a_slow_drip_over_tls_ends_in_time(self) -> None:
        def drip(connection: Any, request: str) -> None:
            gap = threading.Event()
            for _ in range(1000):
                connection.sendall(b"H")
                gap.wait(0.02)

        began = time.monotonic()
        self.assert_fails(self.probe(self.server(), drip, timeout=0.4), "no full answer within 0.4 s")
        self.assert_quick(began, 1.2)

    def test_a_handshake_that_hangs_ends_in_time_and_when_stopped(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        began = time.monotonic()
        self.assert_fails(probe(url, timeout=0.4), "no full answer within 0.4 s")
        self.assert_quick(began, 1.0)
        ctx = context()
        timer = threading.Timer(0.2, ctx.cancel.set)
        timer.start()
        began = time.monotonic()
        self.assert_fails(run(HttpDecl(name="p", url=url, timeout=30), ctx), "stopped")
        timer.join()
        self.assert_quick(began, 1.0)


class Leaks(HttpCase):
    def test_no_run_leaves_a_descriptor(self) -> None:
        """Counted when the servers are gone: their ends are closed by threads that may lag behind the probe."""
        probe("http://127.0.0.1:1/")
        before = descriptors()
        with contextlib.ExitStack() as servers:
            good, bad = RawServer(say(answer())), RawServer(say(b"garbage\r\n\r\n"))
            servers.callback(good.close)
            servers.callback(bad.close)
            for _ in range(10):
                probe(good.url(), body_contains="ok")
                probe(bad.url())
                probe("http://127.0.0.1:1/")
        self.assertEqual(descriptors(), before)


if __name__ == "__main__":
    unittest.main()
