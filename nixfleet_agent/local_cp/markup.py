"""The HTML that the status pages share: every string came over the wire at some time, and is escaped here."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from urllib.parse import urlencode

from nixfleet_agent.text import printable

#: A host that has missed three heartbeats of a minute each.
LATE_SECS = 180
#: Columns whose cells do not say what they are.
NAMED = ("runs", "last heard of", "waits for", "arrived")


@functools.cache
def frame() -> str:
    """The page around what changes."""
    return (resources.files("nixfleet_agent") / "local_cp" / "page.html").read_text(encoding="utf-8")


@functools.cache
def headers() -> Mapping[str, str]:
    """Only the page's own style and script run, so that no string of an agent's can become one."""
    style, script = (_digest(tag) for tag in ("style", "script"))
    policy = f"default-src 'none'; img-src data:; connect-src 'self'; style-src '{style}'; script-src '{script}'"
    return {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def page(title: str, now: str, parts: Iterable[str]) -> str:
    """A whole page; ``now`` and ``parts`` are HTML already, and empty parts are left out."""
    fleet = "\n".join(filter(None, parts))
    return Template(frame()).substitute(title=text(title), now=now, fleet=fleet)


def text(value: object) -> str:
    """Anything as the text of an element or of an attribute."""
    return escape(printable(value))


def state(value: str | None) -> str:
    """A state as a word with its sign and colour; a host without one waits for its turn."""
    return f'<span class="state {text(value)}">{text(value)}</span>' if value else "<span class=note>waits</span>"


def count(number: int, what: str) -> str:
    """``1 host``, ``1,000 hosts``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def link(path: str, label: str, **params: object) -> str:
    """A link with a query; ``label`` is HTML already."""
    query = f"?{urlencode(params)}" if params else ""
    return f'<a href="{escape(path + query)}">{label}</a>'


def host(name: str) -> str:
    """A host's name, which leads to its timeline."""
    return link("/host", text(name), name=name)


def closure(name: str | None) -> str:
    """A store path's name is told by people, its hash by programs: the name, and all of it to who asks."""
    if name is None:
        return "<span class=note>switching, or not known</span>"
    return f'<span title="{text(name)}"><span class=note>{text(name[:7])}…</span>{text(name[32:])}</span>'


def seen(seconds: int) -> str:
    """How long ago, in the largest unit that says enough."""
    if seconds < 120:
        shown = f"{seconds} s ago"
    else:
        shown = f"{seconds // 60} min ago" if seconds < 7200 else f"{seconds // 3600} h ago"
    return shown if seconds < LATE_SECS else f"<span class=late>{shown}</span>"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, note: str = "") -> str:
    """Cells are HTML already. On a phone each row is a card, where what does not speak for itself is named."""
    heads = "".join(f"<th scope=col>{name}</th>" for name in head)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>"
        + "".join(
            f'<td data-label="{name}"{" class=named" if name in NAMED else ""}>{cell}</td>'
            for name, cell in zip(head[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    name = re.sub("[^a-z0-9]+", "-", title.lower())
    return (
        f"<section><h2 id={name}>{text(title)}</h2>{note}<table aria-labelledby={name}>"
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></section>"
    )


def lines(title: str, told: Sequence[str]) -> str:
    """A section of plain lines; none where there is nothing to tell."""
    if not told:
        return ""
    return f"<section><h2>{title}</h2>" + "".join(f"<p>{text(line)}</p>" for line in told) + "</section>"


def _digest(tag: str) -> str:
    inside = re.search(f"<{tag}>(.*?)</{tag}>", frame(), re.DOTALL)
    if inside is None:
        raise RuntimeError(f"page.html has no <{tag}>")
    return "sha256-" + base64.b64encode(hashlib.sha256(inside.group(1).encode()).digest()).decode("ascii")
