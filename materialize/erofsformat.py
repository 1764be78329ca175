"""The on-disk format of EROFS, as far as uncompressed images need it; pure.

A block is 4096 bytes. Metadata is addressed by *slots* of 32 bytes: an inode's number (nid) is its slot, counted
from the metadata's first block. All numbers are little-endian.

Source: ``fs/erofs/erofs_fs.h`` and ``Documentation/filesystems/erofs.rst`` of the Linux kernel.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import Final

from lading.errors import Corrupt

BLOCK: Final = 4096
BLOCK_BITS: Final = 12
SLOT: Final = 32
SLOTS: Final = BLOCK // SLOT

#: Where the superblock lies in its block, and what it begins with.
SUPERBLOCK_OFFSET: Final = 1024
MAGIC: Final = 0xE0F5E1E2

_CHECKSUMMED: Final = 0x1  # compatible feature
CHUNKED_FILE: Final = 0x4  # incompatible features
DEVICE_TABLE: Final = 0x8

#: How an inode's data lies, as bits 1 to 3 of its format.
FLAT_PLAIN: Final = 0  #: whole blocks
FLAT_INLINE: Final = 2  #: whole blocks, and the rest behind the inode, within its block
CHUNK_BASED: Final = 4  #: a table of chunks behind the inode

#: A chunk that is a hole.
NO_BLOCK: Final = 0xFFFFFFFF
#: Bits of a chunk's size that the format can say, on top of the block's.
CHUNK_BITS_MAX: Final = 31

COMPACT_SIZE: Final = 32
EXTENDED_SIZE: Final = 64
_COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
_EXTENDED: Final = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT: Final = struct.Struct("<QHBB")
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_XATTR_HEADER: Final = struct.Struct("<IB7x")
_XATTR_ENTRY: Final = struct.Struct("<BBH")

#: Limits of one inode's attributes.
XATTR_VALUE_MAX: Final = 0xFFFF
XATTR_AREA_MAX: Final = _XATTR_HEADER.size + 4 * 0xFFFE
XATTR_SHARED_MAX: Final = 0xFF

_KINDS: Final = {
    "f": (stat.S_IFREG, 1), "d": (stat.S_IFDIR, 2), "c": (stat.S_IFCHR, 3), "b": (stat.S_IFBLK, 4),
    "p": (stat.S_IFIFO, 5), "s": (stat.S_IFSOCK, 6), "l": (stat.S_IFLNK, 7),
}  # fmt: skip

_ACCESS_ACL: Final = b"system.posix_acl_access"
_DEFAULT_ACL: Final = b"system.posix_acl_default"
_PREFIXES: Final = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))

_I64_MAX: Final = (1 << 63) - 1
_U64: Final = (1 << 64) - 1
_NS: Final = 1_000_000_000


def blocks_of(size: int) -> int:
    """Blocks that some bytes take."""
    return (size + BLOCK - 1) >> BLOCK_BITS


def file_type(kind: str) -> int:
    """A type's number in a directory."""
    return _KINDS[kind][1]


def mode_of(kind: str, mode: int) -> int:
    """Type and permission bits as ``stat`` has them."""
    return _KINDS[kind][0] | mode


def device_number(rdev: int) -> int:
    """A device as the kernel writes it into an inode."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xFFF00) << 12)


def clamp(mtime_ns: int) -> tuple[int, int]:
    """A time as seconds and nanoseconds, as near as 64 bits of seconds come."""
    seconds, nanoseconds = divmod(mtime_ns, _NS)
    if seconds > _I64_MAX:
        return _I64_MAX, _NS - 1
    if seconds < -_I64_MAX:
        return -_I64_MAX, 0
    return seconds, nanoseconds


def compact_inode(
    layout: int, xattrs: int, mode: int, nlink: int, size: int, data: int, ino: int, uid: int, gid: int
) -> bytes:
    """An inode of 32 bytes, whose time is the superblock's.

    Args:
        layout: FLAT_PLAIN, FLAT_INLINE or CHUNK_BASED.
        xattrs: bytes of the attributes behind it.
        mode: type and permission bits.
        nlink: number of names, below 2**16.
        size: bytes, below 2**32.
        data: first block, device number or chunk format.
        ino: a number for programs that know only 32 bits of it.
        uid, gid: owners below 2**16.
    """
    return _COMPACT.pack(layout << 1, xattr_count(xattrs), mode, nlink, size, 0, data, ino, uid, gid, 0)


def extended_inode(
    layout: int, xattrs: int, mode: int, nlink: int, size: int, data: int, ino: int, uid: int, gid: int, mtime_ns: int
) -> bytes:
    """An inode of 64 bytes, with a time of its own; see :func:`compact_inode`."""
    seconds, nanoseconds = clamp(mtime_ns)
    return _EXTENDED.pack(
        layout << 1 | 1, xattr_count(xattrs), mode, 0, size, data, ino, uid, gid, seconds & _U64, nanoseconds, nlink
    )


def xattr_count(size: int) -> int:
    """How an inode says the size of its attributes."""
    return (size - _XATTR_HEADER.size) // 4 + 1 if size else 0


def xattr_entry(name: bytes, value: bytes) -> bytes | None:
    """One attribute as it is stored; None when the format has no place for it."""
    index, rest = 0, name
    if name == _ACCESS_ACL:
        index, rest = 2, b""
    elif name == _DEFAULT_ACL:
        index, rest = 3, b""
    else:
        for prefix, number in _PREFIXES:
            if name.startswith(prefix):
                index, rest = number, name[len(prefix) :]
    if not index or (not rest and index in (1, 4, 6)) or len(rest) > 0xFF or len(value) > XATTR_VALUE_MAX:
        return None
    data = _XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return data + bytes(-len(data) % 4)


def xattr_area(shared: Sequence[int], inline: Sequence[bytes]) -> bytes:
    """What lies behind an inode that has attributes.

    Args:
        shared: places of attributes in the shared area, in units of 4 bytes.
        inline: entries of its own.
    """
    if not shared and not inline:
        return b""
    return b"".join((_XATTR_HEADER.pack(0, len(shared)), struct.pack(f"<{len(shared)}I", *shared), *inline))


def with_dots(names: Sequence[bytes]) -> list[bytes]:
    """A directory's sorted names together with its own two, which are sorted like all others."""
    found = list(names)
    for dots in (b".", b".."):
        found.insert(bisect(found, dots), dots)
    return found


def directory_size(names: Sequence[bytes]) -> int:
    """Bytes of a directory.

    Args:
        names: sorted, the dots among them.
    """
    full = used = 0
    for name in names:
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            full += BLOCK
            used = 0
        used += need
    return full + used


def directory(items: Sequence[tuple[bytes, int, int]]) -> bytes:
    """A directory's data; its last block may be short.

    Args:
        items: name, nid and type's number, sorted by name.
    """
    blocks: list[bytes] = []
    group: list[tuple[bytes, int, int]] = []
    used = 0
    for item in items:
        need = _DIRENT.size + len(item[0])
        if used + need > BLOCK:
            blocks.append(_directory_block(group).ljust(BLOCK, b"\0"))
            group, used = [], 0
        group.append(item)
        used += need
    blocks.append(_directory_block(group))
    return b"".join(blocks)


def _directory_block(items: Sequence[tuple[bytes, int, int]]) -> bytes:
    offset = _DIRENT.size * len(items)
    heads = []
    for name, nid, kind in items:
        heads.append(_DIRENT.pack(nid, offset, kind, 0))
        offset += len(name)
    heads += [name for name, _, _ in items]
    return b"".join(heads)


def chunk_bits(size: int, entries_max: int) -> int:
    """Bits by which a chunk is larger than a block, so that a file has no more chunks than a table may have."""
    bits = 0
    while size > (entries_max << (BLOCK_BITS + bits)) and bits < CHUNK_BITS_MAX:
        bits += 1
    return bits


def superblock(
    *, root: int, inodes: int, time_ns: int, blocks: int, meta_block: int, xattr_block: int, incompatible: int
) -> bytes:
    """The first block of an image.

    Args:
        root: nid of the root, below 2**16.
        inodes: how many there are.
        time_ns: the time of compact inodes.
        blocks: of the whole image.
        meta_block: first block of the metadata.
        xattr_block: first block of the shared attributes.
        incompatible: features a reader has to know.
    """
    seconds, nanoseconds = clamp(time_ns)
    fields = [
        MAGIC, 0, _CHECKSUMMED, BLOCK_BITS, 0, root, inodes, seconds & _U64, nanoseconds, blocks, meta_block,
        xattr_block, bytes(16), bytes(16), incompatible, 0, 0, 0, 0, 0, 0, 0, 0,
    ]  # fmt: skip
    rest = BLOCK - SUPERBLOCK_OFFSET
    fields[1] = _crc32c(_SUPERBLOCK.pack(*fields).ljust(rest, b"\0"))
    return bytes(SUPERBLOCK_OFFSET) + _SUPERBLOCK.pack(*fields).ljust(rest, b"\0")


def root_of(meta: bytes) -> int:
    """The root's nid, as an image's first block tells.

    Raises:
        Corrupt: it is no image, or one whose metadata is addressed otherwise than ours.
    """
    fields = _SUPERBLOCK.unpack_from(meta, SUPERBLOCK_OFFSET)
    if fields[0] != MAGIC or fields[3] != BLOCK_BITS or fields[10]:
        raise Corrupt("not an EROFS image of ours")
    return int(fields[5])


def read_inode(meta: bytes, position: int) -> tuple[int, int, int, int, int]:
    """Read an inode.

    Args:
        meta: an image's metadata, from its begin.
        position: where the inode lies.

    Returns:
        Layout, mode with type, bytes of data, first block or chunk format, bytes of inode and attributes.
    """
    (word,) = struct.unpack_from("<H", meta, position)
    if word & 1:
        _, xattrs, mode, _, size, data, *_ = _EXTENDED.unpack_from(meta, position)
        head = EXTENDED_SIZE
    else:
        _, xattrs, mode, _, size, _, data, *_ = _COMPACT.unpack_from(meta, position)
        head = COMPACT_SIZE
    return word >> 1 & 7, mode, size, data, head + (_XATTR_HEADER.size + 4 * (xattrs - 1) if xattrs else 0)


def listed(data: bytes) -> Iterator[tuple[int, int]]:
    """Nid and type's number of everything that a directory's data lists."""
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        _, first, _, _ = _DIRENT.unpack_from(block)
        for position in range(0, min(first, len(block)), _DIRENT.size):
            nid, _, kind, _ = _DIRENT.unpack_from(block, position)
            yield nid, kind


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _crc32c(data: bytes) -> int:
    """CRC-32C without a final inversion, as the kernel computes it."""
    table = _crc_table()
    state = 0xFFFFFFFF
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state
