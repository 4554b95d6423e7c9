"""Which proxy the control plane is reached through: the one that is configured, and none that the environment names.

A variable in somebody's shell, or one that all services of a machine share, must not lead this agent's traffic
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from nixfleet_agent.errors import ConfigError

#: Variables that other programs obey.
_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where an HTTP proxy listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"proxy {self.host} port {self.port}"


def parse_proxy(url: str) -> Proxy:
    """The proxy of ``http://HOST:PORT``.

    Raises:
        ConfigError: anything else; a password has no place in a file that others may read.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"is not a URL ({error}): write http://HOST:PORT") from error
    if "@" in parts.netloc:
        raise ConfigError("must not contain a user or password: let the proxy know this host by its address")
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"must be http://HOST:PORT, is {url!r}")
    if not port or any(character.isspace() for character in url):
        raise ConfigError(f"names no port: {url!r}: write http://HOST:PORT")
    return Proxy(host, port)


def proxy_problem(url: str) -> str | None:
    """Why ``url`` is no proxy; None where it is one."""
    try:
        parse_proxy(url)
    except ConfigError as error:
        return str(error)
    return None


def ignored_variables(environ: Mapping[str, str]) -> list[str]:
    """The names of set variables that other programs would take their proxy from."""
    return [name for name in _VARIABLES if environ.get(name)]
