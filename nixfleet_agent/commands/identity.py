"""What the one-shot commands need to speak with the control plane as this host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509

from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.certificates.enrollment import Enrollment
from nixfleet_agent.certificates.renewal import Renewal
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import TransportError
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.net.sockets import Route
from nixfleet_agent.threads.clock import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class Host:
    """This host's side of the conversation."""

    credentials: Credentials
    control_plane: ControlPlane
    enrollment: Enrollment
    renewal: Renewal
    clock: Clock


@contextmanager
def host_of(config: Config) -> Iterator[Host]:
    """Nothing is read or connected before it is used.

    Raises:
        TransportError: the control plane could not be reached; the message names the command that looks for the cause.
    """
    clock = SystemClock()
    credentials = Credentials(config.client_cert, config.client_key)
    control_plane = ControlPlane(
        config.control_plane_url, ca_cert=config.ca_cert, credentials=credentials, clock=clock, route=Route.of(config)
    )
    trust = TrustStore(config)

    def anchors() -> Sequence[x509.Certificate]:
        return load_anchors(trust.trust().issuance_ca_pems, config.ca_cert)

    try:
        yield Host(
            credentials,
            control_plane,
            Enrollment(config, control_plane, credentials, clock, anchors),
            Renewal(config, control_plane, credentials, clock, anchors),
            clock,
        )
    except TransportError as error:
        raise TransportError(f"{error}: `nixfleet-agent check` looks for the cause", error.kind) from error
    finally:
        control_plane.close()
