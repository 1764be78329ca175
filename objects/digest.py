"""Names of byte strings: BLAKE3, 32 raw bytes."""

from __future__ import annotations

from blake3 import blake3


def blake3_digest(data: bytes | memoryview) -> bytes:
    """Name a byte string.

    Returns:
        32 bytes; 64 hex digits when printed.
    """
    return blake3(data).digest()
