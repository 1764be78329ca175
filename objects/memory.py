"""Packs in memory: the folder's twin for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lading.objects.backend import PackMissing, ShortRead


class MemoryBackend:
    """Keeps packs in a dictionary; forgets them with the process."""

    def __init__(self) -> None:
        self._packs: dict[str, bytes] = {}

    def publish(self, staged: Path, name: str) -> bool:
        """Take a file's bytes over."""
        data = staged.read_bytes()
        staged.unlink()
        return self._packs.setdefault(name, data) is data

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes of a pack."""
        if name not in self._packs:
            raise PackMissing(name)
        data = self._packs[name][offset : offset + size]
        if len(data) < size:
            raise ShortRead(name, offset, size, len(data))
        return data

    def size(self, name: str) -> int | None:
        """Tell a pack's bytes."""
        data = self._packs.get(name)
        return None if data is None else len(data)

    def delete(self, name: str) -> bool:
        """Forget a pack."""
        return self._packs.pop(name, None) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._packs))

    def close(self) -> None:
        """Nothing to close."""
