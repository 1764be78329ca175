"""The canonical listing: entries as bytes, exactly, so that a digest can name them and they can be read back.

Source: docs/format-listing.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from lading.errors import Corrupt
from lading.values import Entry, Inode

MAGIC: Final = b"LADLIST\x01"

#: kind, opaque, has inode, has link, bytes of path, bytes of link
_ENTRY: Final = struct.Struct("<BBBBII")
#: type, mode, uid, gid, mtime (high, low), size, rdev, bytes of digest and target, attributes, regions
_INODE: Final = struct.Struct("<BHIIqQQQIIII")
_PAIR: Final = struct.Struct("<II")
_REGION: Final = struct.Struct("<QQ")
_U64: Final = (1 << 64) - 1

#: Bytes gathered before they are handed on.
_CHUNK: Final = 1 << 20


def listing(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Write entries.

    Args:
        entries: sorted by ``values.component_key``.

    Yields:
        The listing in pieces. Equal entries give equal bytes.
    """
    parts = [MAGIC]
    size = 0
    for entry in entries:
        link = entry.link or b""
        part = _ENTRY.pack(
            entry.kind, entry.opaque, entry.inode is not None, entry.link is not None, len(entry.path), len(link)
        )
        parts += (part, entry.path, link)
        if entry.inode is not None:
            parts += _inode(entry.inode)
        size += len(entry.path) + 128
        if size >= _CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def _inode(inode: Inode) -> list[bytes]:
    parts = [
        _INODE.pack(
            ord(inode.type), inode.mode, inode.uid, inode.gid, inode.mtime_ns >> 64, inode.mtime_ns & _U64, inode.size,
            inode.rdev, len(inode.digest), len(inode.target), len(inode.xattrs), len(inode.sparse),
        ),
        inode.digest,
        inode.target,
    ]  # fmt: skip
    for name, value in inode.xattrs:
        parts += (_PAIR.pack(len(name), len(value)), name, value)
    parts += [_REGION.pack(offset, length) for offset, length in inode.sparse]
    return parts


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        found = self.data[self.position : self.position + size]
        if len(found) < size:
            raise Corrupt("listing is cut")
        self.position += size
        return found

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))


def read_listing(chunks: Iterable[bytes]) -> Iterator[Entry]:
    """Read a listing back.

    Raises:
        Corrupt: it is none, or cut.
    """
    cursor = _Cursor(b"".join(chunks))
    if cursor.take(len(MAGIC)) != MAGIC:
        raise Corrupt("listing does not begin like one")
    while cursor.position < len(cursor.data):
        kind, opaque, has_inode, has_link, path_size, link_size = cursor.unpack(_ENTRY)
        path, link = cursor.take(path_size), cursor.take(link_size)
        inode = _read_inode(cursor) if has_inode else None
        yield Entry(path, kind, inode, bool(opaque), link if has_link else None)


def _read_inode(cursor: _Cursor) -> Inode:
    kind, mode, uid, gid, high, low, size, rdev, digest, target, attributes, regions = cursor.unpack(_INODE)
    digest_bytes, target_bytes = cursor.take(digest), cursor.take(target)
    xattrs = []
    for _ in range(attributes):
        name, value = cursor.unpack(_PAIR)
        xattrs.append((cursor.take(name), cursor.take(value)))
    sparse = []
    for _ in range(regions):
        offset, length = cursor.unpack(_REGION)
        sparse.append((offset, length))
    return Inode(
        chr(kind),
        mode,
        uid,
        gid,
        (high << 64) | low,
        size,
        digest_bytes,
        target_bytes,
        rdev,
        tuple(xattrs),
        tuple(sparse),
    )
