"""Durations as scripts write them: ``90m``, ``1h30m``, ``1.5s``, ``0``."""

from __future__ import annotations

import re
from typing import Final

from lading.errors import InvalidInput

_UNITS: Final = {
    "ns": 1, "us": 10**3, "\N{MICRO SIGN}s": 10**3, "\N{GREEK SMALL LETTER MU}s": 10**3, "ms": 10**6, "s": 10**9,
    "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip

_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")


def nanoseconds(text: str) -> int:
    """Read a duration.

    Raises:
        InvalidInput: it is none.
    """
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    parts = list(_PART.finditer(rest))
    if not parts or "".join(part[0] for part in parts) != rest:
        raise InvalidInput(f'time: invalid duration "{text}"')
    total = 0
    for part in parts:
        whole, _, fraction = part[1].partition(".")
        total += int(whole or 0) * _UNITS[part[2]] + int(fraction.ljust(18, "0")[:18] or 0) * _UNITS[part[2]] // 10**18
    return sign * total
