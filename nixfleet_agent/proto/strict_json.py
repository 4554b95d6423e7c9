"""JSON from outside, read in one way only: what two parsers could understand differently is refused.

The scanner is the C one of ``json``; what it lets through beyond RFC 8259 and I-JSON (RFC 7493) is refused here:
duplicate keys, NaN and Infinity, lone surrogates, numbers that a double does not hold, and nesting past a limit.

Nesting is judged before the scanner sees the text. It calls itself for each level, and since Python 3.13 no limit of
the interpreter's stops it before the stack of a small thread ends: 10 KB of ``[`` ended the process with SIGSEGV.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import re
from typing import Any, NoReturn

from nixfleet_agent.errors import ProtoError

#: Containers inside containers, the outermost counted.
DEPTH_LIMIT = 64
#: Bodies that have no limit of their own.
BODY_LIMIT = 1024 * 1024

#: Up to this many bytes a look at each object costs less than one at the whole.
SMALL = 4096

#: Doubles hold every integer up to here (RFC 7493, section 2.2); beyond it two readers may see two numbers.
_SAFE_INTEGER = 2**53 - 1
#: Longest literal of a number: the longest that a JCS writer makes has 25 characters.
_LITERAL_LIMIT = 64
#: Measured worst case of CPython 3.11 for one byte of JSON, ``[[[[]]]]``: an empty list costs 56 bytes and its place 8
#: to 32, so a body made to fill memory needs about 48 times its own size; 4 more where one emoji makes the text wide.
_WORST_BYTES_PER_BYTE = 52
#: One value with its place in a container, taken generously over the mixes that real documents have.
_BYTES_PER_VALUE = 96
#: No body that becomes less than this is worth a refusal, however small its limit.
_HARMLESS = 1024 * 1024
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class TooLargeError(ProtoError):
    """More bytes, or more values, than the limit for this document allows."""


class NotUtf8Error(ProtoError):
    """The bytes are not UTF-8."""


class NotJsonError(ProtoError):
    """The text is not JSON."""


class DuplicateKeyError(ProtoError):
    """An object has the same key twice."""


class BadNumberError(ProtoError):
    """NaN, an infinity, or a number that a double does not hold exactly enough."""


class LoneSurrogateError(ProtoError):
    """A string has half a UTF-16 pair and is no text."""


class TooDeepError(ProtoError):
    """Containers are nested deeper than the limit."""


def loads_strict(raw: bytes, *, limit: int = BODY_LIMIT, depth: int = DEPTH_LIMIT, what: str = "the body") -> Any:
    """The JSON value in ``raw``.

    ``limit`` is in bytes, and what is built from them stays within four times as many; ``what`` names the document
    in messages.

    Raises:
        TooLargeError, NotUtf8Error, NotJsonError, DuplicateKeyError, BadNumberError, LoneSurrogateError,
        TooDeepError: all ProtoError, with ``what`` in the message.
    """
    _check_size(raw, limit, what)
    if raw.startswith(codecs.BOM_UTF8):
        raise NotJsonError(f"{what} is not JSON: it begins with a byte order mark: save it as UTF-8 without one")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{what} is not UTF-8: byte {error.start} is wrong") from error
    if _is_deeper(raw, depth):
        raise TooDeepError(f"{what} is nested deeper than {depth} levels")
    try:
        value = _PAIRS_DECODER.decode(text) if len(raw) <= SMALL else _read_large(text, raw)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"{what} is not JSON: {error.msg} at character {error.pos}") from error
    except ProtoError as error:
        raise type(error)(f"{what}: {error}") from error
    if b"\\" in raw and _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value, what)
    return value


def _check_size(raw: bytes, limit: int, what: str) -> None:
    if len(raw) > limit:
        raise TooLargeError(f"{what} has {len(raw)} bytes, and the limit is {limit}")
    if len(raw) * _WORST_BYTES_PER_BYTE <= max(4 * limit, _HARMLESS):
        return
    # Escapes count as values: a string with escapes is put together from as many pieces.
    values = sum(raw.count(mark) for mark in (b",", b":", b"[", b"{", b"\\"))
    if values * _BYTES_PER_VALUE + len(raw) * _copies(raw) > 4 * limit:
        raise TooLargeError(f"{what} has about {values} values in {len(raw)} bytes: more than its limit allows")


def _copies(raw: bytes) -> int:
    """How many times its own size a document takes that is one string: the bytes, the text and the string.

    A text has 1, 2 or 4 bytes for each character, as the widest of them needs: one emoji makes four of a megabyte.
    An escape can hide one, and its string is encoded once more to look for half a pair.
    """
    if raw.isascii() and b"\\u" not in raw:
        return 3
    wide = b"\\u" in raw or any(bytes((lead,)) in raw for lead in range(0xF0, 0xF5))
    return 10 if wide else 5


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        # A set's ``add`` says nothing, so the first key that is in it already is the one that stands twice.
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKeyError(f"the key {twice[:64]!r} stands twice in one object")
    return members


def _integer(literal: str) -> int:
    # Length first: turning a million digits into an integer costs seconds.
    value = int(literal) if len(literal) <= _LITERAL_LIMIT else _SAFE_INTEGER + 1
    if not -_SAFE_INTEGER <= value <= _SAFE_INTEGER:
        raise BadNumberError(f"the number {_shown(literal)} is beyond what a double holds exactly")
    return value


def _fraction(literal: str) -> float:
    value = float(literal) if len(literal) <= _LITERAL_LIMIT else math.inf
    if math.isinf(value):
        raise BadNumberError(f"the number {_shown(literal)} is too large or too long")
    return value


def _constant(literal: str) -> NoReturn:
    raise BadNumberError(f"{literal} is not a JSON number")


def _shown(literal: str) -> str:
    return literal if len(literal) <= 32 else literal[:32] + "..."


def _is_deeper(raw: bytes, depth: int) -> bool:
    """Whether any part of the text that a scanner may reach has containers inside more than ``depth`` - 1 others."""
    # Fewer brackets than levels can't be nested too deep; nearly every document passes here.
    if raw.count(b"[") + raw.count(b"{") <= depth:
        return False
    marks = _without_escaped_quotes(raw).translate(_AS_LISTS, _NO_MARKS).replace(b'""', b"")
    if b'"' in marks:  # brackets inside strings
        marks = b"".join(marks.split(b'"')[::2])
    left = marks
    for _ in range(depth):
        left = left.replace(b"[]", b"")  # one level less
    # What is left has too many levels, or brackets that don't match: up to the first of those the scanner would go.
    return bool(left) and max(itertools.accumulate(1 if mark == _OPENS else -1 for mark in marks)) > depth


def _without_escaped_quotes(raw: bytes) -> bytes:
    """Backslashes escape from left to right. Without those that escape one another, each left escapes what follows."""
    return raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw


def _read_large(text: str, raw: bytes) -> Any:
    """Without a call for each object: a fleet of 10,000 hosts takes two thirds of the time."""
    value = _DECODER.decode(text)
    if _strings_kept(value) != _strings_written(raw):
        # A key stands twice somewhere, and this names it. Two values at once would be twice the memory.
        del value
        value = _PAIRS_DECODER.decode(text)
    return value


def _strings_written(raw: bytes) -> int:
    """How many strings, keys too, stand in the text of a JSON document: half of its quotes that are not escaped."""
    return _without_escaped_quotes(raw).count(b'"') // 2


def _strings_kept(value: Any) -> int:
    """How many strings, keys too, the built value has: fewer than were written only if an object had a key twice."""
    strings, inside = 0, [value]
    while inside:
        others = [item for item in inside if item.__class__ is not str]
        strings += len(inside) - len(others)
        inside = []
        for container in others:
            if container.__class__ is dict:
                strings += len(container)
                inside += container.values()
            elif container.__class__ is list:
                inside += container
    return strings


def _check_surrogates(value: Any, what: str) -> None:
    """Escaped pairs have become one character each by now; a half that is left has no UTF-8 form."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if item.__class__ is dict:
            waiting += item
            waiting += item.values()
        elif item.__class__ is list:
            waiting += item
        elif item.__class__ is str:
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise LoneSurrogateError(f"{what} has half a surrogate pair in a string") from error


_OPENS = ord("[")
#: Objects nest as lists do.
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
#: All bytes but those that nesting can be told from.
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_NUMBERS: dict[str, Any] = {"parse_int": _integer, "parse_float": _fraction, "parse_constant": _constant}
_DECODER = json.JSONDecoder(**_NUMBERS)
_PAIRS_DECODER = json.JSONDecoder(object_pairs_hook=_object, **_NUMBERS)
