"""Whose answer it is: the control plane's own, or that of something between. Pure, from status, headers and body.

A captive portal, a maintenance page and a firewall all answer in the control plane's place, and none of them may cross
off an event, refuse a Dispatch or decide anything else. The control plane of the field answers 2xx with an empty body
or JSON, errors with JSON or with nothing at all; what is sent with nothing at all could be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.text import printable

#: An error or a short answer is read whole to judge it, up to this many bytes; of a page so much is searched.
_JUDGED = 16 * 1024
#: Statuses that say "later", whoever says so (RFC 9110, RFC 6585); with them all of 500 to 599.
_LATER = frozenset({408, 425, 429})
_HTML = ("text/html", "application/xhtml+xml")
_MARKUP = re.compile(rb"<(?:!doctype|html|head|\?xml)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]{0,200}>([^<]{1,400})", re.IGNORECASE)
#: Headers by which what stands between makes itself known.
_TELLING = ("Location", "Server", "Via")


class Verdict(Enum):
    """What an answer counts as."""

    ANSWER = "the control plane's answer"
    ERROR = "the control plane's own refusal"
    UNCLEAR = "a refusal that may be anybody's"
    LATER = "no answer now, whoever says so"
    FOREIGN = "the answer of something in place of the control plane"


def classify(status: int, headers: Mapping[str, str], body: bytes, *, signed: bool = False) -> Verdict:
    """The verdict on one complete answer.

    ``headers`` ignore case. ``signed`` says that a signed artifact, or its signature, was asked for: its bytes are
    verified on their own, so that only what is plainly a page counts as foreign.
    """
    if 200 <= status < 300:
        fits = not _is_page(headers, body, signed=signed) if signed else _is_json_or_empty(headers, body)
        return Verdict.ANSWER if fits else Verdict.FOREIGN
    if status == 304:
        return Verdict.ANSWER
    if status in _LATER or 500 <= status < 600:
        return Verdict.LATER
    if not 400 <= status < 500:
        return Verdict.FOREIGN
    if _is_page(headers, body, signed=False):
        return Verdict.FOREIGN
    return Verdict.ERROR if _is_json_error(headers, body) else Verdict.UNCLEAR


def describe(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """What answered, for people: status, kind and title of a page, and the headers that tell; cut and escaped."""
    parts = [f"status {status}"]
    kind = _media_type(headers)
    if title := _TITLE.search(body[:_JUDGED]):
        words = " ".join(title[1].decode("utf-8", "replace").split())
        parts.append(f"a page titled '{printable(words, 120)}'")
    elif _is_page(headers, body, signed=False):
        parts.append("a page without a title")
    else:
        parts += [f"content type {printable(kind, 80)}"] if kind else []
        parts += [f"beginning '{printable(body[:80].decode('utf-8', 'replace'), 80)}'"] if body else []
    told = ((name, headers.get(name)) for name in _TELLING)
    parts += [f"{name}: {printable(value, 120)}" for name, value in told if value]
    return ", ".join(parts)


def _is_json_or_empty(headers: Mapping[str, str], body: bytes) -> bool:
    """An acknowledgement's body. Longer JSON is judged by its beginning alone: its reader parses it strictly."""
    kind = _media_type(headers)
    if kind in _HTML or (body.strip() and kind and not _is_json_type(kind)):
        return False
    start = body[:_JUDGED].lstrip()
    if not start:
        return not body.strip()
    return start[:1] in b'{["' or _parses(body)


def _is_page(headers: Mapping[str, str], body: bytes, *, signed: bool) -> bool:
    """HTML by its type, or by how it begins; the bytes of a signature may begin with a ``<`` by chance."""
    if _media_type(headers) in _HTML:
        return True
    start = body[:_JUDGED].lstrip()
    return _MARKUP.match(start) is not None if signed else start.startswith(b"<")


def _is_json_error(headers: Mapping[str, str], body: bytes) -> bool:
    """``{"error": "<words>"}``, other members beside it."""
    kind = _media_type(headers)
    if (kind and not _is_json_type(kind)) or len(body) > _JUDGED:
        return False
    try:
        value = loads_strict(body, limit=_JUDGED, what="an error")
    except ProtoError:
        return False
    return isinstance(value, Mapping) and isinstance(value.get("error"), str)


def _parses(body: bytes) -> bool:
    try:
        loads_strict(body, limit=_JUDGED, what="an answer")
    except ProtoError:
        return False
    return True


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _is_json_type(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
