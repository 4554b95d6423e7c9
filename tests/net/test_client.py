"""Requests as they look on the wire, answers as they are handed back, and what is never followed."""

from __future__ import annotations

import os
import threading
import time
import unittest
from unittest import mock

from nixfleet_agent import __version__
from nixfleet_agent.errors import ConfigError, TransportError
from nixfleet_agent.net.client import OCTETS, ControlPlane, endpoint_label
from tests.net.base import NetTestCase
from tests.support.behaviours import CloseSilently, Ended, Hang, KeptRaw, Reply, Request, SayGoodbye, page


class Requests(NetTestCase):
    def test_every_request_carries_the_headers_of_the_protocol(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        server.route("POST", "/v1/y", Reply(204))
        client = self.connect(server)
        client.get("/v1/x", deadline=5, params={"wait": "60"})
        client.get("/v1/x", deadline=5, accept="application/octet-stream", etag='"abc"')
        client.post("/v1/y", {"name": "Grüße"}, deadline=5, headers={"X-Extra": "1"})
        first, second, third = server.requests
        for request in server.requests:
            self.assertEqual("1", request.headers["X-Nixfleet-Protocol"])
            self.assertEqual(__version__, request.headers["X-Nixfleet-Agent-Version"])
            self.assertEqual(f"nixfleet-agent/{__version__}", request.headers["User-Agent"])
        self.assertEqual({"wait": ["60"]}, first.query)
        self.assertEqual("application/json", first.headers["Accept"])
        self.assertEqual("application/octet-stream", second.headers["Accept"])
        self.assertEqual('"abc"', second.headers["If-None-Match"])
        self.assertEqual("application/json", third.headers["Content-Type"])
        self.assertEqual('{"name":"Grüße"}'.encode(), third.body)
        self.assertEqual("1", third.headers["X-Extra"])

    def test_ready_made_bytes_go_out_as_they_are(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204))
        raw = b'{ "odd" :  "spacing" }'
        self.assertEqual(204, self.connect(server).post_bytes("/v1/y", raw, deadline=5).status)
        self.assertEqual(raw, server.requests[0].body)

    def test_any_status_is_an_answer(self) -> None:
        server = self.serve()
        client = self.connect(server)
        for status in (200, 204, 304, 400, 401, 404, 409, 426, 429, 500, 503):
            server.route("GET", "/v1/x", Reply(status, b"", {"ETag": '"v"', "Retry-After": "7"}))
            answer = client.get("/v1/x", deadline=5)
            self.assertEqual(status, answer.status)
            self.assertEqual("7", answer.headers["retry-after"])

    def test_a_base_url_with_a_path_is_kept_before_every_path(self) -> None:
        server = self.serve()
        server.route("GET", "/fleet/v1/x", json={})
        self.assertEqual(200, self.connect(server, server.url + "/fleet/").get("/v1/x", deadline=5).status)

    def test_only_plain_https_urls_are_accepted(self) -> None:
        urls = ("http://cp", "cp:8443", "https://", "https://me:secret@cp", "https://cp?x=1", "https://cp:99999", "")
        for url in urls:
            with self.subTest(url=url), self.assertRaises(ConfigError):
                ControlPlane(url)

    def test_one_connection_serves_all_calls_of_a_thread_and_each_thread_has_its_own(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        client = self.connect(server)

        def calls() -> None:
            for _ in range(5):
                client.get("/v1/x", deadline=5)

        threads = [threading.Thread(target=calls) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(3, server.connections)
        calls()
        self.assertEqual(4, server.connections)

    def test_the_observer_sees_each_call_with_its_outcome_and_no_rollout_id(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/rollouts/stable@abc/sig", Reply(404))
        server.route("GET", "/v1/x", Hang())
        seen: list[tuple[str, str, float]] = []
        client = self.connect(server, observer=lambda *call: seen.append(call))
        client.get("/v1/rollouts/stable@abc/sig", deadline=5, accept=OCTETS)
        self.refused(client, "/v1/x", deadline=0.1)
        self.assertEqual([("/v1/rollouts/{id}/sig", "404"), ("/v1/x", "timeout")], [call[:2] for call in seen])
        self.assertGreaterEqual(seen[1][2], 0.1)

    def test_labels_cut_ids_and_nothing_else(self) -> None:
        self.assertEqual("/v1/rollouts/{id}", endpoint_label("/v1/rollouts/edge@00"))
        self.assertEqual("/v1/agent/events", endpoint_label("/v1/agent/events"))


class NeverFollowed(NetTestCase):
    def test_a_redirect_is_somebody_elses_answer_and_its_target_is_never_asked(self) -> None:
        elsewhere = self.serve()
        elsewhere.route("GET", "/v1/x", json={})
        server = self.serve()
        for status in (301, 302, 303, 307, 308):
            server.route("GET", "/v1/x", Reply(status, b"gone", {"Location": elsewhere.url + "/v1/x"}))
            error = self.refused(self.connect(server), "/v1/x")
            self.assertEqual(("foreign", f"status {status}"), (error.kind, getattr(error, "told", "").split(",")[0]))
            self.assertIn(f"Location: {elsewhere.url}", str(error))
        server.route("GET", "/v1/x", Reply(302, b"", {"Location": "https://[broken"}))
        self.assertEqual("foreign", self.refused(self.connect(server), "/v1/x").kind)
        self.assertEqual([], elsewhere.requests)

    def test_environment_proxies_are_not_used(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        proxy = "http://127.0.0.1:9"
        names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY")
        with mock.patch.dict(os.environ, dict.fromkeys(names, proxy)):
            self.assertEqual(200, self.connect(server).get("/v1/x", deadline=5).status)

    def test_netrc_is_not_read(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        netrc = self.folder / ".netrc"
        netrc.write_text("machine 127.0.0.1 login root password secret\n")
        netrc.chmod(0o600)
        with mock.patch.dict(os.environ, {"NETRC": str(netrc), "HOME": str(self.folder)}):
            self.connect(server).get("/v1/x", deadline=5)
        self.assertNotIn("Authorization", server.requests[0].headers)

    def test_cookies_are_not_kept(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Reply(200, b"{}", {"Set-Cookie": "session=1; Path=/"}))
        client = self.connect(server)
        client.get("/v1/x", deadline=5)
        client.get("/v1/x", deadline=5)
        self.assertNotIn("Cookie", server.requests[1].headers)


class KeepAlive(NetTestCase):
    def test_an_idle_connection_that_the_server_closed_is_replaced_unseen(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204))
        client = self.connect(server)
        client.post("/v1/y", {}, deadline=5)
        server.drop_connections()
        for _ in range(200):
            if not server.open_connections:
                break
            time.sleep(0.005)
        self.assertEqual(204, client.post("/v1/y", {"second": 2}, deadline=5).status)
        self.assertEqual(2, server.connections)
        self.assertEqual(2, len(server.requests))

    def test_a_connection_that_closes_on_the_second_request_is_retried_once_on_a_new_one(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204), CloseSilently(), Reply(204))
        client = self.connect(server)
        client.post("/v1/y", {"a": 1}, deadline=5)
        self.assertEqual(204, client.post("/v1/y", {"b": 2}, deadline=5).status)
        self.assertEqual([b'{"a":1}', b'{"b":2}', b'{"b":2}'], [request.body for request in server.requests])

    def test_a_proper_end_of_tls_counts_like_a_reset(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204), SayGoodbye(), Reply(204))
        client = self.connect(server)
        client.post("/v1/y", {}, deadline=5)
        self.assertEqual(204, client.post("/v1/y", {}, deadline=5).status)
        server.route("GET", "/v1/x", SayGoodbye())
        self.assertEqual("reset", self.refused(self.connect(server), "/v1/x").kind)

    def test_the_retry_is_made_once_and_never_on_a_fresh_connection(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204), CloseSilently())
        client = self.connect(server)
        client.post("/v1/y", {}, deadline=5)
        for expected in (3, 4):
            with self.assertRaises(TransportError) as caught:
                client.post("/v1/y", {}, deadline=5)
            self.assertEqual("reset", caught.exception.kind)
            self.assertEqual(expected, len(server.requests))

    def test_an_answer_that_has_begun_is_not_asked_for_again(self) -> None:
        server = self.serve()

        def half(request: Request) -> Reply:
            return Reply(200, b"x", {"Content-Length": "1000"}, close=True)

        server.route("GET", "/v1/x", Reply(204), half)
        client = self.connect(server)
        client.get("/v1/x", deadline=5)
        self.assertEqual("reset", self.refused(client, "/v1/x").kind)
        self.assertEqual(2, len(server.requests))

    def test_interim_answers_of_any_number_are_passed_over(self) -> None:
        """`http.client` passes over 100 alone: a 103 would be the answer, and the answer that of the next request."""
        server = self.serve()
        interim = b"".join(b"HTTP/1.1 %d Wait\r\nLink: </x>\r\n\r\n" % n for n in (100, 102, 103, 103, 199, 100))
        final = b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"first"'
        server.route("GET", "/v1/x", KeptRaw(interim + final), Reply(200, b'"next"'))
        client = self.connect(server)
        self.assertEqual(b'"first"', client.get("/v1/x", deadline=5).body)
        self.assertEqual(b'"next"', client.get("/v1/x", deadline=5).body)
        self.assertEqual(1, server.connections)

    def test_another_protocol_is_not_switched_to(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", KeptRaw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"))
        self.assertEqual("protocol", self.refused(self.connect(server), "/v1/x").kind)

    def test_a_second_answer_is_not_taken_for_that_to_the_next_request(self) -> None:
        server = self.serve()
        one, two = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + word for word in (b'"one"', b'"two"'))
        # One that comes later, and one that is there already: behind a buffer of 8 KiB, or of 128 since Python 3.14.
        for count, unasked in enumerate((KeptRaw(one, two), KeptRaw(one.ljust(20_000, b"x") + two)), 1):
            server.route("POST", "/v1/y", unasked, Reply(200, b'"three"'))
            client = self.connect(server)
            self.assertEqual(b'"one"', client.post("/v1/y", {}, deadline=5).body)
            time.sleep(0.2)  # until the second has come
            self.assertEqual(b'"three"', client.post("/v1/y", {}, deadline=5).body)
            self.assertEqual(2 * count, server.connections)

    def test_a_front_that_speaks_http_1_0_is_understood(self) -> None:
        server = self.serve()
        for head in (b"Content-Length: 2\r\n", b"Content-Length: 2\r\nConnection: keep-alive\r\n", b""):
            with self.subTest(head=head):
                server.route("GET", "/v1/x", Ended(b"HTTP/1.0 200 OK\r\n" + head + b"\r\n{}"))
                client = self.connect(server)
                for _ in range(3):
                    self.assertEqual(b"{}", client.get("/v1/x", deadline=5).body)


class ForeignAnswers(NetTestCase):
    def test_a_page_is_said_once_for_all_endpoints_and_so_is_its_end(self) -> None:
        server = self.serve()
        client = self.connect(server)
        for path in ("/v1/x", "/v1/y"):
            server.route("GET", path, page(200, "Maintenance"), page(200, "Maintenance"), Reply(204))
        with self.assertLogs("nixfleet_agent.net", "INFO") as logs:
            for _ in range(2):
                for path in ("/v1/x", "/v1/y"):
                    error = self.refused(client, path)
                    self.assertEqual(("foreign", 200), (error.kind, getattr(error, "status", 0)))
            self.assertEqual({"/v1/x", "/v1/y"}, set(client.foreign.current()))
            for path in ("/v1/x", "/v1/y"):
                client.get(path, deadline=5)
        self.assertEqual(2, len(logs.output), logs.output)
        self.assertIn("a page titled 'Maintenance'", logs.output[0])
        self.assertEqual({}, client.foreign.current())

    def test_an_answer_that_says_later_ends_nothing(self) -> None:
        server = self.serve()
        client = self.connect(server)
        server.route("GET", "/v1/x", page(200), page(503), Reply(401))
        self.refused(client, "/v1/x")
        self.assertIn("a page titled 'Service unavailable'", client.get("/v1/x", deadline=5).told())
        self.assertEqual(["/v1/x"], list(client.foreign.current()))
        self.assertEqual("status 401", client.get("/v1/x", deadline=5).told())
        self.assertEqual({}, client.foreign.current())


if __name__ == "__main__":
    unittest.main()
