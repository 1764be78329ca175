"""Reading file data back out of EROFS images of ours, without mounting them.

Only what our own writer makes is understood. The metadata is walked as a tree, every number checked before it is used;
what is found there is a *candidate*: whoever asks compares its digest.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from lading.errors import Corrupt
from lading.materialize import erofsformat as form

#: Bytes read at a time.
READ_SIZE: Final = 1 << 20

#: Offset and length of each run of stored bytes within a file; empty when all of it is stored.
Regions = tuple[tuple[int, int], ...]


class _Inode(NamedTuple):
    kind: int
    layout: int
    size: int
    data: int  #: first block, or the format of the table of chunks
    behind: int  #: where in the image its attributes end


def candidates(
    descriptor: int, meta_size: int, wanted: Mapping[int, Collection[Regions]]
) -> Iterator[list[tuple[int, int]]]:
    """Find files of certain sizes.

    Args:
        descriptor: of an image whose metadata has its recorded digest.
        meta_size: bytes of its metadata.
        wanted: sizes, and for each which runs of the file are asked for.

    Yields:
        Where in the image such a file's stored bytes lie: offset and length of each run, in order.

    Raises:
        Corrupt: it is no image of ours.
    """
    meta = _read_all(descriptor, meta_size)
    try:
        yield from _walk(meta, wanted)
    except (struct.error, IndexError) as error:
        raise Corrupt("an image's metadata leads nowhere") from error


def read(descriptor: int, extents: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Read runs of an image one after the other; less where it is cut."""
    for offset, length in extents:
        position, end = offset, offset + length
        while position < end and (chunk := os.pread(descriptor, min(READ_SIZE, end - position), position)):
            yield chunk
            position += len(chunk)


def _read_all(descriptor: int, size: int) -> bytes:
    return b"".join(read(descriptor, [(0, size)]))


def _walk(meta: bytes, wanted: Mapping[int, Collection[Regions]]) -> Iterator[list[tuple[int, int]]]:
    root = form.root_of(meta)
    seen = {root}
    pending = [root]
    while pending:
        inode = _inode(meta, pending.pop())
        if stat.S_ISREG(inode.kind):
            for regions in wanted.get(inode.size, ()):
                found = _extents(meta, inode, regions)
                if found is not None:
                    yield found
        elif stat.S_ISDIR(inode.kind):
            data = b"".join(meta[offset : offset + length] for offset, length in _flat(inode))
            for nid, kind in form.listed(data):
                if nid not in seen and kind in (form.file_type("f"), form.file_type("d")):
                    seen.add(nid)
                    pending.append(nid)


def _inode(meta: bytes, nid: int) -> _Inode:
    layout, kind, size, data, head = form.read_inode(meta, nid * form.SLOT)
    return _Inode(kind, layout, size, data, nid * form.SLOT + head)


def _flat(inode: _Inode) -> list[tuple[int, int]]:
    """Where the data of an inode without chunks lies."""
    first = inode.data * form.BLOCK
    if inode.layout == form.FLAT_PLAIN:
        return [(first, inode.size)]
    tail = inode.size % form.BLOCK
    return [(first, inode.size - tail), (inode.behind, tail)]


def _extents(meta: bytes, inode: _Inode, regions: Regions) -> list[tuple[int, int]] | None:
    """Where the wanted runs of a file lie; None when one of them is a hole."""
    if inode.layout != form.CHUNK_BASED:
        return None if regions else _flat(inode)
    bits = inode.data & form.CHUNK_BITS_MAX
    size = form.BLOCK << bits
    count = -(-inode.size // size)
    table = struct.unpack_from(f"<{count}I", meta, inode.behind)
    found = []
    for offset, length in regions or ((0, inode.size),):
        while length:
            chunk, inside = divmod(offset, size)
            if table[chunk] == form.NO_BLOCK:
                return None
            part = min(length, size - inside)
            found.append((table[chunk] * form.BLOCK + inside, part))
            offset, length = offset + part, length - part
    return found
