"""Text of somebody else on this terminal: what a message holds must not move its cursor, change
its title or turn its lines around."""

from __future__ import annotations

import re
import sys
import unicodedata

UNSAFE = {"Cc", "Cs", "Cn", "Co", "Zl", "Zp"}  # controls, surrogates, unassigned, separators
TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
LONGEST = 4000  # characters of a body
BYTES = 64  # of a body that is not text
# The first look is cheap: only what is not plain ASCII or Latin is examined one by one.
SUSPICIOUS = re.compile("[^ -~\xa1-\u02ff]")


def safe(text: str, keep: str = "") -> str:
    """With everything that a terminal could act on as \\x1b or \\u202e; `keep` stays as it is."""
    return SUSPICIOUS.sub(lambda match: _shown(match[0], keep, json=False), text)


def safe_json(text: str) -> str:
    """The same of text that is JSON already, and stays JSON with the same meaning."""
    return SUSPICIOUS.sub(lambda match: _shown(match[0], "", json=True), text)


def body(data: bytes) -> str:
    """As text where it is some, with the length of what is left out; else the first bytes."""
    text = as_text(data)
    if text is None:
        rest = f" ... {len(data) - BYTES:,} more bytes" if len(data) > BYTES else ""
        return f"{len(data):,} bytes, not text: {data[:BYTES].hex(' ')}{rest}"
    rest = f"\n... {len(text) - LONGEST:,} more characters" if len(text) > LONGEST else ""
    return safe(text[:LONGEST], keep="\n\t") + rest


def as_text(data: bytes) -> str | None:
    """None for what is not UTF-8, or has a NUL, which text has not."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def write(line: str) -> None:
    """One line to standard output, at once: whoever reads from a pipe sees it now."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _shown(char: str, keep: str, *, json: bool) -> str:
    if char in keep or not (unicodedata.category(char) in UNSAFE or char in TURNING):
        return char
    code = ord(char)
    if json and code > 0xFFFF:  # as JSON writes it: two halves
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    if json or 0xFF < code <= 0xFFFF:
        return f"\\u{code:04x}"
    return f"\\x{code:02x}" if code <= 0xFF else f"\\U{code:08x}"
