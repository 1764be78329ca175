"""Where the files of a docker archive lie: read by the parser of layer tars, so the same bounds hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

from lading.errors import InvalidInput
from lading.objects.tar import ingest_tar
from lading.objects.tarbase import TarError, TarLimits
from lading.values import Inode, printable

#: Names in one archive: three files a layer at most, and some documents.
ENTRIES_MAX = 100_000

#: Links that are followed from a name to a file.
_HOPS_MAX = 8

_PLACE = Struct("<Q")


class _Places:
    """Takes an archive apart; a content's "digest" tells where it lies."""

    def __init__(self) -> None:
        self._position = 0

    def literal(self, data: bytes) -> None:
        self._position += len(data)

    def put(self, data: bytes) -> bytes:
        place = _PLACE.pack(self._position)
        self._position += len(data)
        return place

    def stream(self, chunks: Iterator[bytes], size: int) -> bytes:
        place = _PLACE.pack(self._position)
        for chunk in chunks:
            self._position += len(chunk)
        return place


def members(path: Path) -> dict[str, tuple[int, int]]:
    """Find the files of an archive, which must be an uncompressed tar.

    Returns:
        Offset and size by name. A link stands for the file of the archive that it leads to.

    Raises:
        InvalidInput: it cannot be read, or is no such archive.
    """
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            found = ingest_tar(file.read, _Places(), TarLimits(entries_max=ENTRIES_MAX)).entries
    except OSError as error:
        raise InvalidInput(f"open {shown}: {(error.strerror or 'cannot be read').lower()}") from error
    except TarError as error:
        raise InvalidInput(f"{shown} is no docker archive: {error}") from error
    inodes = {os.fsdecode(entry.path): entry.inode for entry in found if entry.inode is not None}
    result = {}
    for name in inodes:
        inode = _followed(inodes, name)
        if inode is not None and inode.type == "f" and not inode.sparse:
            result[name] = (_PLACE.unpack(inode.digest)[0] if inode.digest else 0, inode.size)
    return result


def _followed(inodes: dict[str, Inode], name: str) -> Inode | None:
    """What a name stands for, its links followed within the archive."""
    for _ in range(_HOPS_MAX):
        inode = inodes.get(name)
        if inode is None or inode.type != "l":
            return inode
        name = os.path.normpath(os.path.join("/", os.path.dirname(name), os.fsdecode(inode.target))).lstrip("/")
    return None
