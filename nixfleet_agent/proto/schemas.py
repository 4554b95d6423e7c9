"""The JSON Schemas that ship with the package: loaded once, and asked about a value.

`jsonschema` takes longer to import than the agent's whole command line, so it is imported when a value is first
checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.text import printable

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError


class SchemaError(ProtoError):
    """A JSON document does not have the form that its schema gives it; the message names the place."""


def check(schema: str, value: Any, what: str) -> None:
    """Whether ``value`` fits ``conf/schemas/<schema>.schema.json``; ``what`` names the document in the message.

    Raises:
        SchemaError: the most telling of its faults.
    """
    fault = worst(schema, value)
    if fault is not None:
        raise SchemaError(
            f"{what} does not fit its schema: {place(fault.absolute_path)}: {printable(fault.message, 300)}"
        )


def worst(schema: str, value: Any) -> ValidationError | None:
    """The most telling fault of ``value``, or None where it fits; for callers with messages of their own."""
    validator = _validator(schema)
    if validator.is_valid(value):
        return None
    from jsonschema.exceptions import best_match

    return best_match(validator.iter_errors(value))


def place(path: Iterable[str | int]) -> str:
    """A path inside a document as people write it: ``channels.stable.freshnessWindow``, ``waves.edge[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{printable(part, 80)}"
    return text.lstrip(".") or "the top"


@lru_cache(maxsize=16)
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator

    source = files("nixfleet_agent").joinpath("conf", "schemas", f"{schema}.schema.json")
    return Draft202012Validator(json.loads(source.read_bytes()))
