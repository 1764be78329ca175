"""Where packs rest: the protocol that folders, memory and object storage implement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lading.errors import Corrupt


class PackMissing(Corrupt):
    """The backend has no pack of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"pack {name} is missing")
        self.name = name


class ShortRead(Corrupt):
    """A pack ends before the bytes asked for."""

    def __init__(self, name: str, offset: int, wanted: int, got: int) -> None:
        super().__init__(f"pack {name} has {got} bytes at {offset} where {wanted} should be")
        self.name = name


class PackUnreadable(Corrupt):
    """The disk, or what lies in the pack's place, gives no bytes."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"pack {name} cannot be read: {why}")
        self.name = name


class PackBackend(Protocol):
    """Keeps packs. Every call may be repeated; none knows what a pack holds.

    Concurrency: calls may come from several threads at once.
    """

    def publish(self, staged: Path, name: str) -> bool:
        """Take a synced file over as a pack, durable and visible at once.

        Returns:
            False when the pack was there already; the staged file is gone either way.
        """
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes.

        Raises:
            PackMissing: there is no such pack.
            ShortRead: the pack ends before.
            PackUnreadable: its bytes are lost. What else the operating system refuses is an ``OSError``, and says
                nothing about the bytes.
        """
        ...

    def size(self, name: str) -> int | None:
        """Tell a pack's bytes; None when it is not there, which is no error.

        Raises:
            PackUnreadable: its bytes are lost, as for :meth:`read`.
        """
        ...

    def delete(self, name: str) -> bool:
        """Remove a pack; False when it was not there, which is no error either."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Names of all packs, ascending."""
        ...
