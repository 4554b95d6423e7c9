"""The documentation as tests read it: pages, fenced blocks, links, inline code, tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "packaging" / "docs"
PAGES = (TOP / "README.md", *sorted(DOCS.glob("*.md")))

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the words after the fence, its text."""

    page: Path
    info: str
    text: str


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def blocks(info: str) -> list[Block]:
    """The fenced blocks of all pages with these words after the fence."""
    return [
        Block(page, found[1].strip(), found[2])
        for page in PAGES
        for found in _FENCE.finditer(read(page))
        if found[1].strip() == info
    ]


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def section(page: Path, heading: str) -> str:
    """The text under a heading, up to the next one of its level."""
    level = "#" * heading.index(" ")
    _, _, rest = read(page).partition(f"\n{heading}\n")
    return re.split(rf"^{level} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """The inline code in the first cells of all tables in ``text``."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
