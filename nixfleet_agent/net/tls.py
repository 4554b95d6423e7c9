"""TLS to the control plane, and the only module that imports OpenSSL.

TLS 1.3 alone, the server verified against the configured CA file alone when there is one, its name checked, and
the client certificate presented with a key that never leaves memory. ``TlsStream`` is the socket that
``http.client`` reads and writes; each of its waits obeys the call's budget.
"""

from __future__ import annotations

import io
import ipaddress
import socket
from pathlib import Path

from cryptography import x509
from OpenSSL import SSL, crypto
from urllib3.util.ssl_match_hostname import CertificateError as NameMismatch
from urllib3.util.ssl_match_hostname import match_hostname

from nixfleet_agent.errors import TransportError
from nixfleet_agent.identity.chain import UNREADABLE
from nixfleet_agent.identity.credentials import Identity
from nixfleet_agent.net.budget import CallBudget
from nixfleet_agent.net.failures import ClientCertificateRefusedError
from nixfleet_agent.text import printable

#: Plain text per send; a TLS record carries at most this much.
_RECORD = 16 * 1024
#: Messages that are no data (session tickets, key updates) before a connection is given up. OpenSSL reads them on and
#: on inside one call, where neither the deadline nor a shutdown is looked at; a server needs two or three.
_MOST_MESSAGES = 1_000
#: Errors of X.509 verification (RFC 5280) in words that say what to do; OpenSSL's numbers.
_VERIFY_REASONS = {
    9: "it is not valid yet: check this host's clock",
    10: "it has expired: renew it on the server, and check this host's clock",
    18: "it is self-signed and not in ca_cert",
    19: "its root is not in ca_cert",
    20: "its issuer is not in ca_cert",
    21: "its issuer is not in ca_cert",
    24: "its issuer is not a CA",
    26: "it is not meant for a server",
}
#: What a server's alert says when it is our certificate that it refuses (RFC 8446, section 6.2).
_CLIENT_ALERTS = (
    "certificate required",
    "bad certificate",
    "unsupported certificate",
    "certificate revoked",
    "certificate expired",
    "certificate unknown",
    "unknown ca",
    "access denied",
)


class TlsContext:
    """What every connection of one identity shares: the trusted CAs, the version floor, the client certificate."""

    def __init__(self, ca_cert: Path | None, identity: Identity | None) -> None:
        """Read the CA file and take the identity; without one, no client certificate is ever presented.

        Raises:
            TransportError: ``tls``: the CA file can't be used, or OpenSSL refuses the certificate.
        """
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_verify(SSL.VERIFY_PEER, _note_verification)
        context.set_info_callback(_note_message)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # An idle connection gives back its two buffers of 16 KiB; five of them wait most of the time.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_alpn_protos([b"http/1.1"])
        self._trust(context, ca_cert)
        if identity is not None:
            try:
                context.use_certificate(identity.certificate.leaf)
                for issuer in identity.certificate.chain:
                    context.add_extra_chain_cert(issuer)
                context.use_privatekey(identity.key.private)
                context.check_privatekey()
            except SSL.Error as error:
                raise TransportError(f"the client certificate can't be used: {_reason(error)}", "tls") from error
        self._context = context

    @staticmethod
    def _trust(context: SSL.Context, ca_cert: Path | None) -> None:
        if ca_cert is None:
            context.set_default_verify_paths()
            return
        try:
            context.load_verify_locations(str(ca_cert))
        except SSL.Error as error:
            raise TransportError(f"ca_cert {ca_cert} holds no PEM certificate that can be read", "tls") from error
        store = context.get_cert_store()
        if store is not None:
            # The operator named these certificates: an intermediate among them is as good as a root.
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)

    def handshake(self, raw: socket.socket, host: str, budget: CallBudget, timeout: float) -> TlsStream:
        """Speak TLS over a connected non-blocking socket, and check that the server is ``host``.

        Raises:
            TransportError: ``tls``, ``reset``, ``timeout`` or ``aborted``. ``raw`` is left to the caller.
        """
        connection = SSL.Connection(self._context, raw)
        connection.set_app_data(_HandshakeState())
        name = host.rstrip(".")
        if not _is_address(name):
            connection.set_tlsext_host_name(name.encode("ascii"))
        connection.set_connect_state()
        stream = TlsStream(connection, raw, budget)
        stream.handshake(timeout)
        _check_name(connection, name)
        return stream


class TlsStream:
    """One connection, used by one thread, with the socket methods that ``http.client`` and urllib3 call."""

    def __init__(self, connection: SSL.Connection, raw: socket.socket, budget: CallBudget) -> None:
        self._connection = connection
        self._raw = raw
        self._budget = budget
        self._readers = 0
        self._closing = False
        #: Bytes of application data received so far; tells whether a request got any of its answer.
        self.received = 0

    def handshake(self, timeout: float) -> None:
        """Complete the handshake within ``timeout`` seconds in all, and within the budget."""
        until = self._budget.monotonic() + timeout
        while True:
            try:
                return self._connection.do_handshake()
            except SSL.WantReadError:
                write = False
            except SSL.WantWriteError:
                write = True
            except SSL.Error as error:
                raise self._failure(error, "during the TLS handshake") from error
            left = until - self._budget.monotonic()
            if left <= 0 or not self._budget.wait(self._raw.fileno(), write=write, at_most=left):
                raise TransportError(f"the server did not finish the TLS handshake within {timeout:g} s", "timeout")

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int | None = None) -> int:
        """Read what is there, waiting within the budget; 0 only at a proper end of the TLS connection."""
        while True:
            self._budget.remaining()
            try:
                count: int = self._connection.recv_into(buffer, nbytes)
            except SSL.WantReadError:
                self._budget.wait(self._raw.fileno(), write=False)
            except SSL.WantWriteError:
                self._budget.wait(self._raw.fileno(), write=True)
            except SSL.ZeroReturnError:
                return 0
            except SSL.Error as error:
                raise self._failure(error, "while reading") from error
            else:
                self.received += count
                self._budget.received(count)
                return count

    def sendall(self, data: bytes) -> None:
        """Write all of ``data`` within the budget."""
        if self.received == 0:
            self._notice_refusal()
        view = memoryview(data)
        while view:
            self._budget.remaining()
            try:
                view = view[self._connection.send(view[:_RECORD]) :]
            except SSL.WantReadError:
                self._budget.wait(self._raw.fileno(), write=False)
            except SSL.WantWriteError:
                self._budget.wait(self._raw.fileno(), write=True)
            except SSL.Error as error:
                raise self._failure(error, "while sending") from error

    def spoke_unasked(self) -> bool:
        """Whether something lies there before a request was sent: its end, or words that would pass for an answer."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except (SSL.WantReadError, SSL.WantWriteError):
            return False
        except SSL.Error:
            return True
        return True

    def _notice_refusal(self) -> None:
        """Look for an alert before the first words: in TLS 1.3 a client certificate is refused after the handshake.

        Writing into the connection that the server has closed by then would fail as a reset, and OpenSSL reads
        nothing more after a failed write: the reason would be lost.
        """
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except (SSL.WantReadError, SSL.WantWriteError):
            return
        except SSL.ZeroReturnError as error:
            raise TransportError("the server closed the connection before the request was sent", "reset") from error
        except SSL.Error as error:
            raise self._failure(error, "before the request was sent") from error

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> io.BufferedReader:
        """The reader of one response; the connection stays open until it and the stream are both closed."""
        if mode != "rb":
            raise RuntimeError(f"a TLS stream is only read through a file, not {mode!r}")
        self._readers += 1
        return io.BufferedReader(_Reader(self))

    def fileno(self) -> int:
        return self._raw.fileno()

    def settimeout(self, _seconds: float | None) -> None:
        """The budget rules every wait; a per-read timeout has nothing to add."""

    def shutdown(self, how: int) -> None:
        self._raw.shutdown(how)

    def close(self) -> None:
        """Close, once the last reader is closed too."""
        self._closing = True
        self._close_when_unused()

    def release_reader(self) -> None:
        """A reader made by ``makefile`` is done."""
        self._readers -= 1
        self._close_when_unused()

    def _close_when_unused(self) -> None:
        if not self._closing or self._readers > 0 or self._raw.fileno() < 0:
            return
        try:
            self._connection.shutdown()
        except SSL.Error:
            # The peer is gone or mid-handshake: there is nobody to say goodbye to.
            pass
        finally:
            self._raw.close()

    def _failure(self, error: SSL.Error, when: str) -> TransportError:
        if isinstance(error, SSL.SysCallError):
            cause = "closed" if error.args[0] == -1 else f"broken ({str(error.args[-1])[:100]})"
            return TransportError(f"the connection was {cause} {when}", "reset")
        refusals = self._connection.get_app_data().refusals
        if refusals:
            code = refusals[-1]
            why = _VERIFY_REASONS.get(code, f"verification error {code}")
            return TransportError(f"the server's certificate is refused: {why}", "tls")
        reason = _reason(error)
        if "alert" in reason and any(alert in reason for alert in _CLIENT_ALERTS):
            return ClientCertificateRefusedError(f"the server refuses this host's certificate ({reason})", "tls")
        if "protocol version" in reason or "unsupported protocol" in reason:
            return TransportError(f"the server does not speak TLS 1.3 ({reason})", "tls")
        return TransportError(f"TLS failed {when} ({reason})", "tls")


class _Reader(io.RawIOBase):
    """The raw file under ``makefile``."""

    def __init__(self, stream: TlsStream) -> None:
        super().__init__()
        self._stream: TlsStream | None = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._stream is None:
            raise ValueError("read from a closed response")
        return self._stream.recv_into(buffer)

    def close(self) -> None:
        super().close()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.release_reader()


class _HandshakeState:
    """What OpenSSL told of one connection while it worked."""

    def __init__(self) -> None:
        self.refusals: list[int] = []
        self.messages = 0


def _note_verification(connection: SSL.Connection, _certificate: object, code: int, _depth: int, ok: int) -> bool:
    if not ok:
        connection.get_app_data().refusals.append(code)
    return bool(ok)


def _note_message(connection: SSL.Connection, where: int, _result: int) -> None:
    """The handshake has come to an end, or a message after it has been dealt with."""
    if where == SSL.SSL_CB_CONNECT_EXIT:
        noted = connection.get_app_data()
        noted.messages += 1
        if noted.messages > _MOST_MESSAGES:
            # As if the server had said goodbye: the read that is going on ends.
            connection.set_shutdown(SSL.RECEIVED_SHUTDOWN)


def _check_name(connection: SSL.Connection, name: str) -> None:
    """RFC 6125: the name must be among the certificate's alternative names; its common name does not count."""
    peer = connection.get_peer_certificate(as_cryptography=True)
    names: list[tuple[str, str]] = []
    if peer is not None:
        try:
            extension = peer.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, *UNREADABLE):
            names = []
        else:
            names = [("DNS", entry) for entry in extension.get_values_for_type(x509.DNSName)]
            names += [("IP Address", str(entry)) for entry in extension.get_values_for_type(x509.IPAddress)]
    try:
        match_hostname({"subjectAltName": tuple(names)}, name)
    except (NameMismatch, ValueError) as error:
        listed = ", ".join(entry for _, entry in names[:8]) or "nothing"
        raise TransportError(
            f"the server's certificate is for {printable(listed, 300)}, not for {name}: check control_plane_url", "tls"
        ) from error


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _reason(error: SSL.Error) -> str:
    """OpenSSL's own words: the last field of each entry in its error queue."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return printable("; ".join(str(entry[-1]) for entry in entries) or "no reason given", 200)
