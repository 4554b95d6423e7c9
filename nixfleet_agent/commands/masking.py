"""Hides what has the shape of a secret in text that leaves the host: a script may print anything."""

from __future__ import annotations

import re

_MASK = "<masked>"
#: (what it looks like, what stays of it)
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), _MASK),
    (re.compile(r"(?i)\b(authorization\s*[:=]\s*)(?:(?:basic|bearer)\s+)?\S+"), rf"\1{_MASK}"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{_MASK}"),
    (
        re.compile(
            r"(?i)([\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key|credential)[\w-]*"
            r"[\"']?\s*[:=]\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&]+)"
        ),
        rf"\1{_MASK}",
    ),
    (re.compile(r"(?i)(?<!\S)(--?(?:password|passphrase|token|secret)[= ])\S+"), rf"\1{_MASK}"),
    (re.compile(r"(\b[a-zA-Z][\w+.-]*://[^\s/:@]*:)[^\s/@]+(@)"), rf"\1{_MASK}\2"),
    (re.compile(r"(?i)(\bmachine\s+\S+\s+login\s+\S+\s+password\s+)\S+"), rf"\1{_MASK}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), _MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _MASK),
    (re.compile(r"\b(?:gh[opsur]_|github_pat_|glpat-|xox[abprs]-|sk-)[\w-]{16,}"), _MASK),
    (re.compile(r"\bAGE-SECRET-KEY-1[A-Z0-9]+"), _MASK),
    (re.compile(r"(\$(?:1|2[aby]|5|6|7|y|gy|argon2\w*)\$)[\w./$=,+-]{16,}"), rf"\1{_MASK}"),
    (re.compile(r"(?m)\b([\w.-]+:)[A-Za-z0-9+/]{86}=="), rf"\1{_MASK}"),
)


def mask_secrets(text: str) -> str:
    """``text`` without passwords, tokens and private keys, as far as their shape or their label tells them."""
    for shape, kept in _SHAPES:
        text = shape.sub(kept, text)
    return text
