"""Who gets a certificate from the local control plane, and who loses it."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import unittest
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import from_private
from nixfleet_agent.local_cp.catalogue import NONCES_FILE
from nixfleet_agent.local_cp.server import Peer
from nixfleet_agent.local_cp.service import PUBLISHED
from tests.local_cp.scripted import ControlPlaneCase, ScriptedAgent
from tests.runtime.harness import until
from tests.support.clock import PATIENCE

ONE = ("web-01",)


class Enrollment(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.publish("aaa1", ONE)

    def refusal(self, agent: ScriptedAgent, token: bytes, csr_pem: str | None = None) -> tuple[int, str]:
        body = {"token": json.loads(token), "csrPem": csr_pem or make_csr(agent.key, agent.hostname)}
        reply = agent.call("POST", "/v1/enroll", body)
        self.assertNotEqual(reply.status, 200)
        return reply.status, reply.json()["error"]

    def test_the_certificate_binds_the_name_to_the_host_key(self) -> None:
        agent = self.agent("web-01")
        certificate = x509.load_pem_x509_certificate(agent.certificate_file.read_bytes())
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        self.assertEqual(name.value, "web-01")
        self.assertEqual(certificate.public_key().public_bytes_raw(), agent.key.public_raw)  # type: ignore[union-attr]
        certificate.verify_directly_issued_by(self.cp.authority.certificate)

    def test_a_token_works_once(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        token = self.token(agent)
        self.assertEqual(agent.enroll(token).status, 200)
        self.assertEqual(self.refusal(agent, token)[0], 409)

    def test_a_refused_request_does_not_use_up_the_token(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        token = self.token(agent)
        self.assertEqual(self.refusal(agent, token, csr_pem="nonsense")[0], 400)
        self.assertEqual(agent.enroll(token).status, 200)

    def test_a_token_outside_its_time_is_refused(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        self.assertEqual(self.refusal(agent, self.token(agent, lifetime=timedelta(0)))[0], 401)
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        early = self.ci.token("web-01", agent.key.fingerprint, later, timedelta(hours=1))
        self.list_nonces(later)
        self.assertEqual(self.refusal(agent, early)[0], 401)

    def test_a_token_that_the_org_root_did_not_sign_is_refused(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        token = json.loads(self.token(agent))
        token["claims"]["hostname"] = "web-02"
        for name, bad in (
            ("changed claims", token),
            ("no base64", {**token, "signature": "%"}),
            ("another signature", {**token, "signature": base64.b64encode(bytes(64)).decode()}),
            ("version", {**token, "version": 2}),
            ("no claims", {**token, "claims": None}),
            ("no token", 7),
        ):
            with self.subTest(name):
                self.assertEqual(self.refusal(agent, json.dumps(bad).encode())[0], 401)

    def test_a_token_that_ci_does_not_list_is_refused_until_it_does(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        moment = datetime.now(timezone.utc)
        token = self.ci.token("web-01", agent.key.fingerprint, moment, timedelta(hours=1))
        status, error = self.refusal(agent, token)
        self.assertEqual((status, error), (401, "the token is not on the list that CI published"))
        self.publish("bbb2", ONE)  # a release brings the list out too
        self.assertEqual(agent.enroll(token).status, 200)

    def test_a_cancelled_token_is_refused_also_by_a_control_plane_that_lost_its_database(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        token = self.token(agent)
        self.assertEqual(agent.enroll(token).status, 200)
        self.ci.cancel(token)
        self.list_nonces(datetime.now(timezone.utc))
        self.cp.control.wipe()
        self.assertEqual(self.refusal(agent, token)[0], 401)

    def test_the_list_names_the_host_and_leaves_out_what_is_over(self) -> None:
        moment = datetime.now(timezone.utc)
        agent = self.agent("web-01", enrolled=False)
        self.ci.token("web-02", agent.key.fingerprint, moment - timedelta(hours=2), timedelta(hours=1))
        token = json.loads(self.token(agent))
        (entry,) = json.loads((self.cp.folder / PUBLISHED / NONCES_FILE).read_bytes())["nonces"]
        self.assertEqual((entry["nonce"], entry["hostname"]), (token["claims"]["nonce"], "web-01"))

    def test_a_list_that_the_org_root_did_not_sign_lets_nobody_in_and_uses_up_no_token(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        token = self.token(agent)
        published = self.cp.folder / PUBLISHED / NONCES_FILE
        good = published.read_bytes()
        published.write_bytes(good.replace(b"web-01", b"web-02"))
        self.cp.control.reload()
        self.assertEqual(agent.enroll(token).status, 503)
        published.unlink()
        self.cp.control.reload()
        self.assertEqual((agent.enroll(token).status, agent.enroll(token).body), (503, b"control plane not ready"))
        published.write_bytes(good)
        self.cp.control.reload()
        self.assertEqual(agent.enroll(token).status, 200)

    def test_the_list_is_served_to_nobody(self) -> None:
        web = self.agent("web-01")
        for path in ("/v1/bootstrap-nonces", "/v1/rollouts/../bootstrap-nonces"):
            self.assertEqual(web.call("GET", path).status, 404)

    def test_a_csr_for_another_key_or_name_is_refused(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        other = from_private(Ed25519PrivateKey.generate())
        self.assertEqual(self.refusal(agent, self.token(agent), make_csr(other, "web-01"))[0], 401)
        self.assertEqual(self.refusal(agent, self.token(agent), make_csr(agent.key, "web-02"))[0], 403)

    def test_a_csr_with_another_kind_of_key_is_refused(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web-01")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        csr = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        self.assertEqual(self.refusal(agent, self.token(agent), csr)[0], 400)


class Renewal(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.publish("aaa1", ONE)
        self.web = self.agent("web-01")

    def renew(self, csr_pem: str) -> int:
        return self.web.call("POST", "/v1/agent/renew", {"csrPem": csr_pem}).status

    def test_a_renewed_certificate_works_and_is_another(self) -> None:
        reply = self.web.call("POST", "/v1/agent/renew", {"csrPem": make_csr(self.web.key, "web-01")})
        self.assertEqual(reply.status, 200)
        self.assertNotEqual(reply.json()["certPem"], self.web.certificate_file.read_text())
        self.web.install(reply.json()["certPem"])
        self.assertEqual(self.web.beat().status, 200)

    def test_only_the_own_name_and_key_are_renewed(self) -> None:
        other = from_private(Ed25519PrivateKey.generate())
        self.assertEqual(self.renew(make_csr(other, "web-01")), 403)
        self.assertEqual(self.renew(make_csr(self.web.key, "web-02")), 403)

    def test_a_certificate_outside_its_time_opens_no_connection(self) -> None:
        now = datetime.now(timezone.utc)
        csr = make_csr(self.web.key, "web-01")
        for name, begin in (("over", now - timedelta(hours=2)), ("to come", now + timedelta(hours=1))):
            with self.subTest(name):
                self.web.install(self.cp.authority.issue(csr, "web-01", begin, timedelta(hours=1)).pem)
                with self.assertRaises((OSError, http.client.HTTPException)):
                    self.web.beat()

    def test_the_open_poll_of_a_host_that_is_revoked_ends_at_once_and_as_refused(self) -> None:
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(self.web.call("GET", "/v1/agent/dispatch?wait=60").status)
        )
        thread.start()
        until(lambda: len(self.cp.control.waiters) == 1, "an open poll")
        self.cp.registrar.revoke("web-01")
        thread.join(PATIENCE / 2)
        self.assertEqual(answers, [403])

    def test_a_revoked_certificate_opens_no_door_and_a_newer_one_does(self) -> None:
        self.cp.registrar.revoke("web-01")
        self.assertEqual(self.web.beat().status, 403)
        self.assertEqual(self.renew(make_csr(self.web.key, "web-01")), 403)
        not_before = self.cp.control.store.revocations()["web-01"]
        older, newer = not_before - timedelta(seconds=1), not_before
        self.assertTrue(self.cp.registrar.revoked(Peer("web-01", self.web.key.public_raw, older)))
        self.assertFalse(self.cp.registrar.revoked(Peer("web-01", self.web.key.public_raw, newer)))
        self.assertFalse(self.cp.registrar.revoked(Peer("web-02", self.web.key.public_raw, older)))


if __name__ == "__main__":
    unittest.main()
