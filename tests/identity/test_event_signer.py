"""Events are signed by the key of ``ssh_host_key_file``, whatever key the client certificate is for."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path

from cryptography.exceptions import InvalidSignature

from nixfleet_agent.identity.event_signer import EventSigner
from nixfleet_agent.trust.canonical import canonical
from nixfleet_agent.trust.errors import VerificationError
from tests.attacks.case import AttackCase
from tests.support.tls import write_host_key

EVENT: dict[str, object] = {"kind": "Converged", "seq": 3}


class TwoKeys(AttackCase):
    def test_what_the_agent_sends_verifies_with_the_ssh_host_key_and_not_with_the_clients(self) -> None:
        ssh_key = write_host_key(self.folder / "ssh_host_ed25519_key")
        self.start(ssh_host_key_file=self.folder / "ssh_host_ed25519_key")
        self.assert_honest_order_is_taken()
        self.until(lambda: self.liar.events, "the acknowledgement")
        (sent, *_) = self.liar.events
        self.assertEqual(sent["event"]["kind"], "DispatchAck")
        signature, signed = bytes.fromhex(sent["signature"]), canonical(sent["event"])
        ssh_key.private.public_key().verify(signature, signed)
        with self.assertRaises(InvalidSignature):
            self.host.key.private.public_key().verify(signature, signed)

    def test_history_calls_what_the_agent_sent_good(self) -> None:
        write_host_key(self.folder / "ssh_host_ed25519_key")
        self.start(ssh_host_key_file=self.folder / "ssh_host_ed25519_key")
        self.assert_honest_order_is_taken()
        self.until(lambda: self.liar.events, "the acknowledgement")
        exported = self.folder / "exported.json"
        exported.write_text(json.dumps(list(self.liar.events)))
        code, said = self.host.command("history", "--verify", str(exported))
        self.assertEqual(code, 0, said)
        self.assertIn("good", said)


class TheKeysFile(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_a_key_that_is_replaced_signs_from_the_next_event_on(self) -> None:
        path = self.folder / "key"
        first = write_host_key(path)
        signer = EventSigner(path)
        first.private.public_key().verify(self.signature(signer), canonical(EVENT))
        path.unlink()
        second = write_host_key(path)
        second.private.public_key().verify(self.signature(signer), canonical(EVENT))

    def test_a_key_that_cant_be_used_is_said_once_and_events_go_unsigned_until_it_is_back(self) -> None:
        path = self.folder / "key"
        signer = EventSigner(path)
        with self.assertLogs("nixfleet_agent.event_signer", "WARNING") as logs:
            self.assertIsNone(signer.sign(EVENT))
            self.assertIsNone(signer.sign(EVENT))
        self.assertEqual(len(logs.records), 1)
        self.assertIn(str(path), logs.records[0].getMessage())
        write_host_key(path).private.public_key().verify(self.signature(signer), canonical(EVENT))

    def test_an_event_without_a_canonical_form_is_an_error_and_not_an_unsigned_event(self) -> None:
        write_host_key(self.folder / "key")
        with self.assertRaises(VerificationError):
            EventSigner(self.folder / "key").sign({"seq": 1 << 60})

    def signature(self, signer: EventSigner) -> bytes:
        signature = signer.sign(EVENT)
        assert signature is not None
        return bytes.fromhex(signature)


if __name__ == "__main__":
    unittest.main()
