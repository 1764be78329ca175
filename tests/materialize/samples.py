"""Entries of every kind, and a reader that describes what lies on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lading.materialize.beneath import walk
from lading.values import PRESENT, Entry, Inode, component_key
from tests.materialize.conftest import MemorySource

ROOT = SimpleNamespace(root=True, trusted_xattrs=True)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep

NOBODY = 65534

T = 1_600_000_000_123_456_789


def directory(path: bytes, mode: int = 0o755, **changes: Any) -> Entry:
    opaque = changes.pop("opaque", False)
    return Entry(path, PRESENT, Inode("d", mode, 0, 0, T)._replace(**changes), opaque=opaque)


def regular(source: MemorySource, path: bytes, data: bytes, mode: int = 0o644, **changes: Any) -> Entry:
    inode = Inode("f", mode, 0, 0, T, size=len(data), digest=source.add(data))
    return Entry(path, PRESENT, inode._replace(**changes))


def other(path: bytes, kind: str, mode: int = 0o644, **changes: Any) -> Entry:
    return Entry(path, PRESENT, Inode(kind, mode, 0, 0, T)._replace(**changes))


def further(path: bytes, first: Entry) -> Entry:
    return first._replace(path=path, link=first.path)


def ordered(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: component_key(entry.path))


def every_kind(source: MemorySource) -> list[Entry]:
    """A full tree with something of each kind."""
    tool = regular(source, b"bin/tool", b"tool" * 1000, 0o4755, uid=1000, gid=1001)
    fifo = other(b"run/fifo", "p", 0o620, uid=3)
    stored = b"a" * 4096 + b"z" * 10
    entries = [
        directory(b"", 0o750, uid=7, gid=8),
        directory(b"bin", 0o2755, gid=50),
        tool,
        further(b"another-name", tool),
        regular(source, b"bin/ping", b"ping", 0o755, xattrs=((b"security.capability", CAPABILITY),)),
        regular(source, b"notes", b"n" * 70, 0o600, mtime_ns=-1_500_000_000, xattrs=((b"user.note", b"hello"),)),
        regular(source, b"trusted", b"t", xattrs=((b"trusted.mark", b""),)),
        regular(source, b"empty", b""),
        further(b"empty-too", regular(source, b"empty", b"")),
        regular(source, b"large", os.urandom(3 << 20), 0o444),
        regular(source, b"no-\xff-utf8\n", b"x", 0o000),
        regular(source, b"sparse", stored, size=1 << 22, sparse=((1 << 20, 4096), (3 << 20, 10), (1 << 22, 0))),
        regular(source, b"hole", b"", size=1 << 20),
        directory(b"run", 0o1777, xattrs=((b"user.dir", b"d"),)),
        fifo,
        further(b"run/fifo2", fifo),
        other(b"run/socket", "s", 0o755),
        other(b"run/null", "c", 0o666, rdev=os.makedev(1, 3)),
        other(b"run/disk", "b", 0o660, rdev=os.makedev(8, 1), gid=6),
        other(b"run/link", "l", 0o777, target=b"/etc/passwd", uid=12),
        directory(b"shut", 0o000),
        regular(source, b"shut/in", b"in", 0o400),
    ]
    return ordered(entries)


def deep(levels: int, name: bytes = b"d") -> list[Entry]:
    return [directory(b"/".join([name] * depth)) for depth in range(1, levels + 1)]


def describe(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """What lies below a folder: kind and mode, owner, time, content or target, attributes."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    found = {}
    try:
        for path, folder, items in walk(descriptor):
            found[path] = _facts(os.fspath(root).encode() if not path else b"%s/%s" % (os.fsencode(root), path))
            for item in items:
                if not item.is_dir(follow_symlinks=False):
                    name = os.fsencode(item.name)
                    place = path + b"/" + name if path else name
                    found[place] = _facts(b"/proc/self/fd/%d/%s" % (folder, name))
    finally:
        os.close(descriptor)
    return found


def _facts(path: bytes) -> tuple[Any, ...]:
    status = os.lstat(path)
    xattrs = tuple(
        sorted((os.fsencode(n), os.getxattr(path, n, follow_symlinks=False)) for n in os.listxattr(path, follow_symlinks=False))
    )  # fmt: skip
    content: Any = None
    if stat.S_ISREG(status.st_mode):
        content = Path(os.fsdecode(path)).read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        content = status.st_rdev
    mode = stat.S_IFMT(status.st_mode) if stat.S_ISLNK(status.st_mode) else status.st_mode
    return (mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs)


_FORMATS = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
    "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK,
}


def expected(entries: list[Entry], source: MemorySource) -> dict[bytes, tuple[Any, ...]]:
    """What :func:`describe` must find for entries of a full tree."""
    found = {}
    for entry in entries:
        inode = entry.inode
        assert inode is not None
        content: Any = None
        if inode.type == "f":
            content = source.blobs.get(inode.digest, b"")
            if inode.sparse or len(content) < inode.size:
                whole = bytearray(inode.size)
                taken = 0
                for position, length in inode.sparse:
                    whole[position : position + length] = content[taken : taken + length]
                    taken += length
                content = bytes(whole)
        elif inode.type == "l":
            content = inode.target
        elif inode.type in "cb":
            content = inode.rdev
        mode = _FORMATS[inode.type] | (0 if inode.type == "l" else inode.mode)
        found[entry.path] = (mode, inode.uid, inode.gid, inode.mtime_ns, content, inode.xattrs)
    return found


def as_nobody(work: Callable[[], str], *folders: Path) -> str:
    """Run something as an ordinary user in a child process; returns its result, or its error's name and words."""
    for folder in folders:
        os.chown(folder, NOBODY, NOBODY)
        for above in folder.parents[:-2]:
            above.chmod(above.stat().st_mode | 0o055)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer
