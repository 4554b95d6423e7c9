"""The one door to the control plane: every request of the agent goes through ``ControlPlane``.

It owns the headers, the URL, one session per thread, the shared TLS context and the end of all calls at shutdown.
What something else answers in the control plane's place never gets past it (``ForeignAnswerError``); it decides nothing
about what the control plane's own answers mean.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import requests
from requests.structures import CaseInsensitiveDict

from nixfleet_agent import __version__
from nixfleet_agent.errors import ConfigError, TransportError
from nixfleet_agent.identity.credentials import Credentials, Identity
from nixfleet_agent.net.answers import Answer
from nixfleet_agent.net.budget import CallBudget
from nixfleet_agent.net.failures import ClientCertificateRefusedError, ForeignAnswerError
from nixfleet_agent.net.foreign import ForeignAnswers
from nixfleet_agent.net.resolver import Resolver
from nixfleet_agent.net.session import Session
from nixfleet_agent.net.sockets import Endpoint, Route
from nixfleet_agent.net.tls import TlsContext
from nixfleet_agent.net.verdict import Verdict, classify, describe
from nixfleet_agent.net.welcome import Welcome
from nixfleet_agent.proto.strict_json import BODY_LIMIT
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import Clock, SystemClock

PROTOCOL_MAJOR = "1"

JSON = "application/json"
OCTETS = "application/octet-stream"

#: Called after each call with the endpoint (ids cut out), the status or failure kind, and the seconds it took.
Observer = Callable[[str, str, float], None]

_DIRECT = Route()
_ROLLOUT_PATH = re.compile(r"^(/v1/rollouts/)[^/]+")


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request: what is sent, and within how many seconds and bytes the answer must come."""

    method: str
    path: str
    headers: Mapping[str, str]
    deadline: float
    limit: int
    body: bytes | None = None
    params: Mapping[str, str] | None = None
    signed: bool = False


class Connection(Protocol):
    """One thread's way to the control plane, one call at a time; as ``Session``."""

    generation: int

    def exchange(self, request: requests.PreparedRequest, deadline: float, limit: int) -> Answer: ...
    def close(self) -> None: ...


Connect = Callable[[Endpoint, CallBudget, Identity | None], Connection]


class ControlPlane:
    """HTTPS calls to one control plane, from any thread."""

    def __init__(
        self,
        base_url: str,
        *,
        ca_cert: Path | None = None,
        credentials: Credentials | None = None,
        clock: Clock | None = None,
        observer: Observer | None = None,
        route: Route = _DIRECT,
        connect: Connect = Session,
    ) -> None:
        """Nothing is read or connected yet.

        Args:
            base_url: ``https://host[:port][/prefix]``.
            ca_cert: PEM file that alone decides which servers are trusted; None for the system's CAs.
            credentials: the client certificate and key for calls that present one.
            route: the proxy to go through, if any.
            connect: makes a thread's connection to the endpoint, which presents an identity or none.

        Raises:
            ConfigError: ``base_url`` is not a plain https URL.
        """
        self._base_url, self._host, self._port = _plain_https(base_url)
        self._contexts = _Contexts(ca_cert)
        self._credentials = credentials
        self._clock = clock or SystemClock()
        self._observer = observer
        self._route = route
        self._connect = connect
        self._headers = {
            "X-Nixfleet-Protocol": PROTOCOL_MAJOR,
            "X-Nixfleet-Agent-Version": __version__,
            "User-Agent": f"nixfleet-agent/{__version__}",
            "Accept-Encoding": "gzip",
        }
        self.foreign = ForeignAnswers()
        self.welcome = Welcome()
        self._switch = CancelToken()
        self._resolver = Resolver()
        self._lock = threading.Lock()
        self._sessions: dict[threading.Thread, Connection] = {}

    def get(
        self,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        deadline: float,
        limit: int = BODY_LIMIT,
        accept: str = JSON,
        etag: str | None = None,
        signed: bool = False,
    ) -> Answer:
        """Fetch ``path`` (beginning with ``/``); with ``etag``, 304 says that it is unchanged.

        ``signed``: what is asked for is verified by its signature, and need not be JSON.

        Raises:
            TransportError: no usable answer within ``deadline`` seconds in all (ForeignAnswerError: another's).
        """
        headers = {"Accept": accept}
        if etag is not None:
            headers["If-None-Match"] = etag
        return self._call(_Ask("GET", path, headers, deadline, limit, params=params, signed=signed))

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        deadline: float,
        limit: int = BODY_LIMIT,
        client_certificate: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send ``body`` as JSON; without ``client_certificate`` over a connection of its own that presents none.

        Raises:
            TransportError: no usable answer within ``deadline`` seconds in all.
        """
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
        return self.post_bytes(
            path, raw, deadline=deadline, limit=limit, client_certificate=client_certificate, headers=headers
        )

    def post_bytes(
        self,
        path: str,
        raw: bytes,
        *,
        deadline: float,
        limit: int = BODY_LIMIT,
        client_certificate: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send JSON bytes that are ready, so that a repeat is the same bytes.

        Raises:
            TransportError: no usable answer within ``deadline`` seconds in all.
        """
        sent = {"Accept": JSON, "Content-Type": JSON, **(headers or {})}
        return self._call(_Ask("POST", path, sent, deadline, limit, body=raw), client_certificate=client_certificate)

    def try_identity(self, identity: Identity, path: str, *, deadline: float, limit: int = BODY_LIMIT) -> Answer:
        """GET ``path`` over a new connection that presents ``identity``, whatever the other calls present.

        Raises:
            TransportError: no usable answer within ``deadline`` seconds in all.
        """
        return self._call(_Ask("GET", path, {"Accept": OCTETS}, deadline, limit, signed=True), trial=identity)

    def abort(self) -> None:
        """End every call in progress, of all threads, at once; later calls fail as ``aborted``."""
        self._switch.set()

    def close(self) -> None:
        """Abort, and close all connections; only when no thread makes calls any more."""
        self._switch.set()
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()
        self._switch.close()

    def _call(self, ask: _Ask, *, client_certificate: bool = True, trial: Identity | None = None) -> Answer:
        endpoint, where = endpoint_label(ask.path), f"{ask.method} {self._base_url}{ask.path}"
        request = self._prepared(ask)
        began = self._clock.monotonic()
        outcome = "aborted"
        identity = trial
        try:
            if trial is None and client_certificate:
                identity = self._present()
            answer = self._exchange(request, ask, identity, shared=trial is None)
            outcome = str(answer.status)
            verdict = classify(answer.status, answer.headers, answer.body, signed=ask.signed)
            if trial is None and identity is not None:
                self.welcome.answered(identity.generation, answer.status, verdict, answer.told())
            if verdict is not Verdict.FOREIGN:
                if verdict is not Verdict.LATER:
                    self.foreign.heard(endpoint)
                return answer
        except TransportError as error:
            outcome = error.kind
            if isinstance(error, ClientCertificateRefusedError) and trial is None and identity is not None:
                self.welcome.refused(identity.generation, str(error))
            raise type(error)(f"{where}: {error}", error.kind) from error
        else:
            outcome = "foreign"
            told = describe(answer.status, answer.headers, answer.body)
            self.foreign.met(endpoint, told)
            message = f"{where}: something answers in place of the control plane ({told})"
            raise ForeignAnswerError(message, answer.status, told)
        finally:
            if self._observer is not None:
                self._observer(endpoint, outcome, self._clock.monotonic() - began)

    def _prepared(self, ask: _Ask) -> requests.PreparedRequest:
        """What ``Request.prepare`` makes, less what was done for the base URL once and for all."""
        request = requests.PreparedRequest()
        request.method = ask.method
        query = f"?{urlencode(ask.params)}" if ask.params else ""
        request.url = self._base_url + ask.path + query
        request.headers = CaseInsensitiveDict({**self._headers, **ask.headers})
        request.prepare_body(ask.body, None)
        return request

    def _present(self) -> Identity | None:
        """What calls present now; None for a control plane that is asked without credentials at all."""
        if self._credentials is None:
            return None
        identity = self._credentials.current()
        if identity is None:
            raise TransportError(f"there is no client certificate at {self._credentials.certificate_path} yet", "tls")
        return identity

    def _exchange(
        self, request: requests.PreparedRequest, ask: _Ask, identity: Identity | None, *, shared: bool
    ) -> Answer:
        if shared and identity is not None:
            return self._own_session(identity).exchange(request, ask.deadline, ask.limit)
        session = self._new_session(identity)
        try:
            return session.exchange(request, ask.deadline, ask.limit)
        finally:
            session.close()

    def _own_session(self, identity: Identity) -> Connection:
        """This thread's session, made anew when the credentials have been replaced."""
        thread = threading.current_thread()
        with self._lock:
            session = self._sessions.get(thread)
            if session is not None and session.generation == identity.generation:
                return session
            ended = [other for other in self._sessions if other is thread or not other.is_alive()]
            stale = [self._sessions.pop(other) for other in ended]
        for old in stale:
            old.close()
        session = self._new_session(identity)
        with self._lock:
            self._sessions[thread] = session
        return session

    def _new_session(self, identity: Identity | None) -> Connection:
        endpoint = Endpoint(self._host, self._port, lambda: self._contexts.get(identity), self._route, self._resolver)
        budget = CallBudget(self._clock, self._switch)
        return self._connect(endpoint, budget, identity)


class _Contexts:
    """The shared TLS context: one per identity, made anew when the CA file was replaced on disk."""

    def __init__(self, ca_cert: Path | None) -> None:
        self._ca_cert = ca_cert
        self._lock = threading.Lock()
        self._key: tuple[object, ...] | None = None
        self._context: TlsContext | None = None

    def get(self, identity: Identity | None) -> TlsContext:
        key = (identity, self._stamp())
        with self._lock:
            if self._context is None or self._key != key:
                context = TlsContext(self._ca_cert, identity)
                if identity is None:
                    return context
                self._context, self._key = context, key
            return self._context

    def _stamp(self) -> tuple[int, int, int] | None:
        if self._ca_cert is None:
            return None
        try:
            status = self._ca_cert.stat()
        except OSError as error:
            raise TransportError(f"can't read ca_cert {self._ca_cert}: {error.strerror}", "tls") from error
        return status.st_mtime_ns, status.st_size, status.st_ino


def endpoint_label(path: str) -> str:
    """``path`` with the rollout id cut out, so that a metric keeps a bounded set of labels."""
    return _ROLLOUT_PATH.sub(r"\1{id}", path)


def _plain_https(base_url: str) -> tuple[str, str, int]:
    """The URL without a trailing slash, its host in ASCII, and its port."""
    try:
        url = requests.Request("GET", base_url).prepare().url or ""
        parts = urlsplit(url)
        port = parts.port or 443
    except (requests.RequestException, ValueError) as error:
        raise ConfigError(f"control_plane_url {base_url!r} is not a URL: {error}") from error
    if parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"control_plane_url {base_url!r} must be https://host[:port], without user name or query")
    return url.rstrip("/"), parts.hostname, port
