"""The error tree: every expected failure of the agent, and the exit code a command ends with for it.

A message is one line that says what is wrong, where, and what to do. Layers above subclass these;
programming errors stay ``RuntimeError`` and are never caught outside the worker base.
"""

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 69
EXIT_INTERNAL = 70
EXIT_STATE_DIR_BUSY = 75
EXIT_ENROLLMENT_REFUSED = 77
EXIT_CONFIG = 78


class AgentError(Exception):
    """An expected failure; ``exit_code`` is what a one-shot command exits with."""

    exit_code = EXIT_CHECK_FAILED


class ConfigError(AgentError):
    """The configuration, the trust file or a key can't be used as it is."""

    exit_code = EXIT_CONFIG


class StorageError(AgentError):
    """A durable write failed; ``errno`` is the system's, or None."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StateDirBusyError(AgentError):
    """Another process owns the state directory."""

    exit_code = EXIT_STATE_DIR_BUSY


class ProtoError(AgentError):
    """Bytes from outside do not have the form that the protocol gives them."""


class TransportError(AgentError):
    """A request got no usable answer; ``kind`` is a short label for metrics (``timeout``, ``tls``, ...)."""

    exit_code = EXIT_UNREACHABLE

    def __init__(self, message: str, kind: str = "network") -> None:
        super().__init__(message)
        self.kind = kind


class TrustError(AgentError):
    """A signed artifact was refused; each reason is a subclass in ``nixfleet_agent.trust.errors``."""


class IdentityError(AgentError):
    """The host key, the certificate or a certificate answer was refused."""


class EnrollmentRefusedError(AgentError):
    """The control plane, or a local check, refused to enroll this host for good."""

    exit_code = EXIT_ENROLLMENT_REFUSED
