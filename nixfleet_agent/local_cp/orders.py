"""Orders from whoever started the control plane's process: one JSON object a line, each answered with one line.

A demo or a test drives its control plane through these; nothing on the network reaches them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nixfleet_agent.errors import AgentError
from nixfleet_agent.local_cp.service import LocalControlPlane


def carry_out(plane: LocalControlPlane, line: str) -> dict[str, Any]:
    """The answer to one line: ``{"done": <the order's id>}``, with ``error`` where it could not be done."""
    try:
        order = json.loads(line)
        name, id_ = order.pop("order"), order.pop("id")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return {"done": None, "error": f"not an order: {type(error).__name__}: {error}"}
    if name not in ORDERS:
        return {"done": id_, "error": f"no order {name!r}, only {', '.join(ORDERS)}"}
    try:
        ORDERS[name](plane, order)
    except (AgentError, ValueError, KeyError, OSError) as error:
        return {"done": id_, "error": str(error)}
    return {"done": id_}


def _reload(plane: LocalControlPlane, order: Mapping[str, Any]) -> None:
    """CI has written to the folder ``published``."""
    plane.control.reload()


def _fault(plane: LocalControlPlane, order: Mapping[str, Any]) -> None:
    """``name`` and ``value`` of one knob of ``Faults``."""
    if order["name"] == "partition":
        plane.partition(bool(order["value"]))
    else:
        plane.faults.set(order["name"], order["value"])


def _revoke(plane: LocalControlPlane, order: Mapping[str, Any]) -> None:
    """Refuse the certificates that ``hostname`` has now."""
    plane.registrar.revoke(str(order["hostname"]))


ORDERS: dict[str, Callable[[LocalControlPlane, Mapping[str, Any]], None]] = {
    "reload": _reload,
    "fault": _fault,
    "revoke": _revoke,
}
