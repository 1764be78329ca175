"""Target of the image writer: any entries that make a tree become an image that reads back as they are."""

from __future__ import annotations

import os
import shutil
import subprocess

from blake3 import blake3

from lading.materialize import erofs
from lading.values import IMPLIED, PRESENT, WHITEOUT, Entry, Inode, component_key
from tests.fuzz.draw import Draw
from tests.fuzz.erofsreader import Image, expected_tree
from tests.materialize.conftest import MemorySource

#: One image in so many is given to fsck.erofs as well; it costs a process.
FSCK_ONE_IN = 256

_TIMES = (0, 1_600_000_000_123_456_789, -1, -(1 << 63) + 1, (1 << 63) - 1, 5_000_000_000)
_IDS = (0, 1, 65535, 65536, (1 << 32) - 2)
_SIZES = (0, 1, 31, 2047, 2048, 2049, 4000, 4032, 4064, 4095, 4096, 4097, 8191, 8192, 12000)
_XATTRS = (b"user.a", b"user." + b"n" * 250, b"trusted.t", b"security.capability", b"trusted.overlay.opaque", b"user.")


def entries_of(draw: Draw, source: MemorySource) -> list[Entry]:
    """A tree with something of everything."""
    folders, found = [b""], {b"": Entry(b"", PRESENT, _inode(draw, "d", source), opaque=draw.chance(4))}
    files: list[Entry] = []
    while draw.more and len(found) < 400:
        name = draw.pick(
            (b"%d" % len(found), b"n" * (1 + draw.below(255)), bytes([1 + draw.below(46)]), b"\xff%d" % len(found))
        )
        parent = draw.pick(folders)
        path = parent + b"/" + name if parent else name
        if path in found or len(path) > 4095 or name in (b".", b".."):
            continue
        match draw.below(10):
            case 0 | 1:
                found[path] = Entry(path, PRESENT, _inode(draw, "d", source), opaque=draw.chance(3))
                folders.append(path)
            case 2:
                found[path] = Entry(path, IMPLIED, opaque=draw.chance(3))
                folders.append(path)
            case 3:
                found[path] = Entry(path, WHITEOUT)
            case 4:
                found[path] = Entry(path, PRESENT, _inode(draw, "l", source))
                files.append(found[path])
            case 5:
                found[path] = Entry(path, PRESENT, _inode(draw, draw.pick("cbps"), source))
            case 6 if files:
                first = draw.pick(files)
                found[path] = first._replace(path=path, link=first.path)
            case _:
                found[path] = Entry(path, PRESENT, _inode(draw, "f", source))
                files.append(found[path])
    return _ordered(found)


def _ordered(found: dict[bytes, Entry]) -> list[Entry]:
    """Sorted, the first name of each inode leading."""
    entries = sorted(found.values(), key=lambda entry: component_key(entry.path))
    leaders: dict[bytes, bytes] = {}
    result = []
    for entry in entries:
        group = entry.link or entry.path
        leader = leaders.setdefault(group, entry.path)
        result.append(entry._replace(link=None if leader == entry.path else leader))
    return result


def _inode(draw: Draw, kind: str, source: MemorySource) -> Inode:
    inode = Inode(kind, draw.number(2) & 0o7777, draw.pick(_IDS), draw.pick(_IDS), draw.pick(_TIMES))
    if draw.chance(4):
        names = sorted({draw.pick(_XATTRS) for _ in range(draw.below(4))})
        size = draw.pick((0, 1, 100, 3000, 65535, 65536))
        inode = inode._replace(xattrs=tuple((name, bytes([draw.byte()]) * size) for name in names))
    if kind == "l":
        return inode._replace(target=b"t" * (1 + draw.below(4095)))
    if kind in "cb":
        return inode._replace(rdev=os.makedev(draw.below(4096), draw.below(1 << 20)))
    if kind != "f":
        return inode
    size = draw.pick(_SIZES)
    data = bytes([draw.byte()]) * size
    if draw.chance(4) and size:
        return _sparse(draw, inode, data, source)
    return inode._replace(size=size, digest=source.add(data))


def _sparse(draw: Draw, inode: Inode, data: bytes, source: MemorySource) -> Inode:
    regions, at, left = [], 0, len(data)
    while left:
        at += draw.pick((0, 1, 4096, 5000, 1 << 20, 1 << 33))
        length = min(left, 1 + draw.number(2))
        regions.append((at, length))
        at, left = at + length, left - length
    size = at + draw.pick((0, 1, 4096, 1 << 30, 1 << 39))
    if regions == [(0, size)]:
        regions = []
    return inode._replace(size=size, digest=source.add(data), sparse=tuple(regions))


def run_erofs(data: bytes) -> None:
    """Write, read back by a reader that shares no code with the writer, and sometimes let fsck.erofs judge."""
    source = MemorySource()
    entries = entries_of(Draw(data), source)
    descriptor = os.memfd_create("image")
    try:
        info = erofs.write_image(descriptor, entries, source)
        assert info.size == os.fstat(descriptor).st_size
        assert info.meta_digest == erofs.meta_digest(descriptor, info.meta_size)
        assert Image(descriptor).tree() == expected_tree(entries, source)
        assert erofs.damaged_files(descriptor, entries) == []
        if blake3(data).digest()[0] % FSCK_ONE_IN == 0 and shutil.which("fsck.erofs"):
            done = subprocess.run(
                ["fsck.erofs", f"/proc/self/fd/{descriptor}"], pass_fds=[descriptor], capture_output=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        os.close(descriptor)
