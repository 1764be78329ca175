"""Bytes of a path to catalog text and back.

Valid UTF-8 stands as it is, but for the backslash, which is doubled; any byte that is no part of valid
UTF-8 is written ``\\xHH``. Every byte string has exactly one text, and every such text one byte string.
"""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile(r"\\(\\|x[0-9a-f]{2})")


def path_to_text(path: bytes) -> str:
    """Encode a path for the catalog."""
    if b"\\" not in path:
        try:
            return path.decode()
        except UnicodeDecodeError:
            pass
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def text_to_path(text: str) -> bytes:
    """Decode a path from the catalog."""
    if "\\" not in text:
        return text.encode()
    parts: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[end : match.start()].encode())
        parts.append(b"\\" if match[1] == "\\" else bytes([int(match[1][1:], 16)]))
        end = match.end()
    parts.append(text[end:].encode())
    return b"".join(parts)
