"""What the tests of materialized trees share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from lading.errors import Corrupt


class MemorySource:
    """Contents by digest, from a dictionary; remembers what it was asked for."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []

    def add(self, data: bytes) -> bytes:
        """Keep some bytes; returns their digest, empty for no bytes."""
        digest = blake3(data).digest() if data else b""
        self.blobs[digest] = data
        return digest

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        """Hand out contents in order, in chunks of at most 64 KiB."""
        for digest in digests:
            self.asked.append(digest)
            if digest not in self.blobs:
                raise Corrupt(f"object {digest.hex()} is not there")
            data = self.blobs[digest]
            yield iter([data[start : start + 65536] for start in range(0, len(data), 65536)])
