"""What the network tests share: a folder, a fleet CA, a host identity, a server, a client."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

from nixfleet_agent.errors import TransportError
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.net.client import ControlPlane
from tests.support.https_server import HttpsServer
from tests.support.tls import Authority, write_host_key


class NetTestCase(unittest.TestCase):
    """``self.serve()`` and ``self.connect(server)`` clean up after themselves."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.fleet = Authority("fleet CA")
        self.ca = self.fleet.write_ca(self.folder / "ca.pem")
        self.key = write_host_key(self.folder / "key")
        self.cert_path = self.folder / "agent-cert.pem"
        self.certificate = self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.credentials = Credentials(self.cert_path, self.folder / "key")
        self.credentials.reload()

    def serve(
        self, *, authority: Authority | None = None, cert: dict[str, Any] | None = None, **options: Any
    ) -> HttpsServer:
        certificate, key = (authority or self.fleet).write_server(self.folder, **(cert or {}))
        options.setdefault("client_ca", self.ca)
        server = HttpsServer(certificate, key, **options)
        self.addCleanup(server.close)
        return server

    def connect(self, server: HttpsServer | None, url: str | None = None, **options: Any) -> ControlPlane:
        options.setdefault("ca_cert", self.ca)
        options.setdefault("credentials", self.credentials)
        control_plane = ControlPlane(url or (server.url if server else ""), **options)
        self.addCleanup(control_plane.close)
        return control_plane

    def refused(self, control_plane: ControlPlane, path: str, **options: Any) -> TransportError:
        """The TransportError that a GET ends with."""
        options.setdefault("deadline", 30.0)
        with self.assertRaises(TransportError) as caught:
            control_plane.get(path, **options)
        self.assertNotIn("\n", str(caught.exception))
        return caught.exception
