"""A small reader of EROFS images, written from the format alone, that shares nothing with the writer.

Source: ``fs/erofs/erofs_fs.h`` of the Linux kernel.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from typing import NamedTuple

from lading.values import IMPLIED, WHITEOUT, Entry, Inode
from tests.materialize.conftest import MemorySource

#: Bytes of a file up to which its content is compared whole, holes included.
WHOLE_MAX = 1 << 20


class Facts(NamedTuple):
    """What an image says of one name."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    size: int
    device: int
    content: bytes | tuple[tuple[int, bytes], ...]
    xattrs: tuple[tuple[bytes, bytes], ...]


class Image:
    """An image behind a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        block = os.pread(descriptor, 128, 1024)
        magic, _, _, bits, _, self._root, self.inodes, seconds, nanoseconds, blocks, meta, xattr = struct.unpack_from(
            "<IIIBBHQqIIII", block
        )
        assert (magic, bits) == (0xE0F5E1E2, 12)
        assert blocks * 4096 == os.fstat(descriptor).st_size
        self._time = seconds * 1_000_000_000 + nanoseconds
        self._meta, self._xattr = meta * 4096, xattr * 4096

    def _at(self, position: int, size: int) -> bytes:
        data = os.pread(self._fd, size, position)
        assert len(data) == size, (position, size)
        return data

    def tree(self) -> dict[bytes, tuple[int, Facts]]:
        """Every path with the number of its inode's group and what it is; groups count in order of first sight."""
        found: dict[bytes, tuple[int, Facts]] = {}
        groups: dict[int, int] = {}
        pending = [(b"", self._root)]
        while pending:
            path, nid = pending.pop()
            facts, names = self._inode(nid)
            found[path] = (nid, facts)
            for name, child, kind in names:
                if name not in (b".", b".."):
                    pending.append((path + b"/" + name if path else name, child))
                    assert kind == _file_type(self._mode(child))
        for path in sorted(found):
            groups.setdefault(found[path][0], len(groups))
        return {path: (groups[nid], facts) for path, (nid, facts) in sorted(found.items())}

    def _mode(self, nid: int) -> int:
        return int(struct.unpack("<H", self._at(self._meta + nid * 32 + 4, 2))[0])

    def _inode(self, nid: int) -> tuple[Facts, list[tuple[bytes, int, int]]]:
        at = self._meta + nid * 32
        (form,) = struct.unpack("<H", self._at(at, 2))
        layout = form >> 1 & 7
        if form & 1:
            _, count, mode, _, size, place, _, uid, gid, seconds, nanoseconds, nlink = struct.unpack(
                "<HHHHQIIIIqII", self._at(at, 48)
            )
            mtime, head = seconds * 1_000_000_000 + nanoseconds, 64
        else:
            _, count, mode, nlink, size, _, place, _, uid, gid = struct.unpack("<HHHHIIIIHH", self._at(at, 28))
            mtime, head = self._time, 32
        area = 12 + 4 * (count - 1) if count else 0
        xattrs = self._attributes(at + head, area)
        kind = stat.S_IFMT(mode)
        device, content, names = 0, b"", []
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            device = os.makedev(place >> 8 & 0xFFF, place & 0xFF | place >> 12 & 0xFFF00)
        elif kind == stat.S_IFREG and layout == 4:
            facts = Facts(mode, uid, gid, mtime, nlink, size, 0, self._chunked(at + head + area, place, size), xattrs)
            return facts, []
        elif kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
            content = self._flat(layout, at + head + area, place, size)
            if kind == stat.S_IFDIR:
                names = _names(content)
                size, content = 0, b""
        return Facts(mode, uid, gid, mtime, nlink, size, device, content, xattrs), names

    def _flat(self, layout: int, behind: int, block: int, size: int) -> bytes:
        if layout == 0:
            return self._at(block * 4096, size) if size else b""
        assert layout == 2
        tail = size % 4096
        assert behind // 4096 == (behind + tail - 1) // 4096
        return (self._at(block * 4096, size - tail) if size > tail else b"") + self._at(behind, tail)

    def _chunked(self, behind: int, form: int, size: int) -> bytes | tuple[tuple[int, bytes], ...]:
        """The content with its holes; for large files the chunks that are there, without zeros around them."""
        chunk = 4096 << (form & 31)
        behind = -(-behind // 4) * 4
        count = -(-size // chunk)
        table = struct.unpack(f"<{count}I", self._at(behind, 4 * count))
        parts: list[tuple[int, bytes]] = []
        for number, block in enumerate(table):
            if block == 0xFFFFFFFF:
                continue
            start = number * chunk
            parts += _solid(start, self._read(block * 4096, min(chunk, size - start)))
        if size > WHOLE_MAX:
            return tuple(parts)
        whole = bytearray(size)
        for start, data in parts:
            whole[start : start + len(data)] = data
        return bytes(whole)

    def _read(self, position: int, size: int) -> list[tuple[int, bytes]]:
        """The data extents of a range of the image."""
        found, end = [], position + size
        while position < end:
            try:
                position = os.lseek(self._fd, position, os.SEEK_DATA)
            except OSError:
                break
            if position >= end:
                break
            until = min(end, os.lseek(self._fd, position, os.SEEK_HOLE))
            found.append((position - (end - size), self._at(position, until - position)))
            position = until
        return found

    def _attributes(self, at: int, area: int) -> tuple[tuple[bytes, bytes], ...]:
        if not area:
            return ()
        shared = self._at(at, 12)[4]
        places = struct.unpack(f"<{shared}I", self._at(at + 12, 4 * shared))
        found = [self._attribute(self._xattr + 4 * place)[0] for place in places]
        position, end = at + 12 + 4 * shared, at + area
        while position < end:
            pair, used = self._attribute(position)
            found.append(pair)
            position += used
        assert position == end
        return tuple(sorted(found))

    def _attribute(self, at: int) -> tuple[tuple[bytes, bytes], int]:
        length, index, size = struct.unpack("<BBH", self._at(at, 4))
        prefix = {
            1: b"user.",
            2: b"system.posix_acl_access",
            3: b"system.posix_acl_default",
            4: b"trusted.",
            6: b"security.",
        }
        name = prefix[index] + self._at(at + 4, length)
        return (name, self._at(at + 4 + length, size)), -(-(4 + length + size) // 4) * 4


def _names(data: bytes) -> list[tuple[bytes, int, int]]:
    """A directory's names, whose order is checked: a reader looks them up by halving."""
    found = []
    for start in range(0, len(data), 4096):
        block = data[start : start + 4096]
        count = struct.unpack_from("<H", block, 8)[0] // 12
        heads = [struct.unpack_from("<QHB", block, 12 * number) for number in range(count)]
        for number, (nid, offset, kind) in enumerate(heads):
            end = heads[number + 1][1] if number + 1 < count else len(block)
            found.append((block[offset:end].rstrip(b"\0"), nid, kind))
    assert [name for name, _, _ in found] == sorted(name for name, _, _ in found)
    return found


def _solid(base: int, extents: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Runs of bytes that are not zero, by blocks."""
    found: list[tuple[int, bytes]] = []
    for offset, data in extents:
        for start in range(0, len(data), 4096):
            block = data[start : start + 4096]
            stripped = block.strip(b"\0")
            if stripped:
                found.append((base + offset + start + block.index(stripped), stripped))
    return found


def _file_type(mode: int) -> int:
    kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK)
    return kinds.index(stat.S_IFMT(mode)) + 1


_KINDS = {
    "f": stat.S_IFREG, "d": stat.S_IFDIR, "c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK,
    "l": stat.S_IFLNK,
}  # fmt: skip


def expected_tree(entries: Sequence[Entry], source: MemorySource) -> dict[bytes, tuple[int, Facts]]:
    """What an image of some entries must say, in the form of ``Image.tree``."""
    hiding = {entry.path.rpartition(b"/")[0] for entry in entries if entry.kind == WHITEOUT}
    names: dict[bytes, int] = {}
    folders: dict[bytes, int] = {}
    for entry in entries:
        first = entry.link or entry.path
        names[first] = names.get(first, 0) + 1
        if entry.path and _is_folder(entry):
            parent = entry.path.rpartition(b"/")[0]
            folders[parent] = folders.get(parent, 0) + 1
    groups: dict[bytes, int] = {}
    found = {}
    for entry in sorted(entries, key=lambda entry: entry.path):
        first = entry.link or entry.path
        group = groups.setdefault(first, len(groups))
        nlink = 2 + folders.get(entry.path, 0) if _is_folder(entry) else names[first]
        facts = _facts(entry, nlink, source)
        if entry.path in hiding:
            facts = facts._replace(xattrs=tuple(sorted((*facts.xattrs, (b"trusted.overlay.origin", b"")))))
        found[entry.path] = (group, facts)
    return found


def _is_folder(entry: Entry) -> bool:
    return entry.kind == IMPLIED or (entry.inode is not None and entry.inode.type == "d")


def _facts(entry: Entry, nlink: int, source: MemorySource) -> Facts:
    if entry.kind == WHITEOUT:
        return Facts(stat.S_IFCHR, 0, 0, 0, nlink, 0, 0, b"", ())
    inode = entry.inode or Inode("d", 0o755, 0, 0, 0)
    content: bytes | tuple[tuple[int, bytes], ...] = inode.target
    size = len(inode.target)
    if inode.type == "f":
        size, content = inode.size, _content(inode, source)
    return Facts(
        _KINDS[inode.type] | inode.mode, inode.uid, inode.gid, inode.mtime_ns, nlink, size,
        inode.rdev, content, _xattrs(entry, inode),
    )  # fmt: skip


def _xattrs(entry: Entry, inode: Inode) -> tuple[tuple[bytes, bytes], ...]:
    """Attributes as they must be stored: overlay's own escaped, its mark added, what does not fit left out."""
    found = []
    for name, value in inode.xattrs:
        if name.startswith(b"user.overlay.") or len(value) > 65535 or name == b"user.":
            continue
        if name.startswith(b"trusted.overlay."):
            name = b"trusted.overlay.overlay." + name[len(b"trusted.overlay.") :]
        found.append((name, value))
    if entry.opaque:
        found.append((b"trusted.overlay.opaque", b"y"))
    return tuple(sorted(found))


def _content(inode: Inode, source: MemorySource) -> bytes | tuple[tuple[int, bytes], ...]:
    data = source.blobs[inode.digest] if inode.digest else b""
    if not inode.sparse:
        return data
    parts, at = [], 0
    for offset, length in inode.sparse:
        parts.append((offset, data[at : at + length]))
        at += length
    if inode.size <= WHOLE_MAX:
        whole = bytearray(inode.size)
        for offset, part in parts:
            whole[offset : offset + len(part)] = part
        return bytes(whole)
    blocks: dict[int, bytearray] = {}
    for offset, part in parts:
        for index, byte in enumerate(part):
            where = offset + index
            blocks.setdefault(where // 4096, bytearray(4096))[where % 4096] = byte
    return tuple(_solid(0, [(number * 4096, bytes(block)) for number, block in sorted(blocks.items())]))
