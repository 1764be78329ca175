"""What a tree must look like, told by hand, and what one does look like, read from disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lading.materialize.beneath import walk

#: Seconds from which a filesystem may hold an earlier time instead: 34 bits, less what it spends on the past.
CLAMPED_FROM = 15_000_000_000


@dataclass(frozen=True)
class Node:
    """One name of a tree."""

    kind: str  #: as ``values.Inode.type``
    content: bytes | int = b""  #: of a file, a link's target, a device's number
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    nlink: int = 1
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def F(content: bytes = b"", **facts: object) -> Node:  # noqa: N802 - a table of trees reads better so
    """A file."""
    return replace(Node("f", content), **facts)  # type: ignore[arg-type]


def D(**facts: object) -> Node:  # noqa: N802
    """A directory."""
    return replace(Node("d", mode=0o755), **facts)  # type: ignore[arg-type]


def L(target: bytes, **facts: object) -> Node:  # noqa: N802
    """A symlink."""
    return replace(Node("l", target, mode=0o777), **facts)  # type: ignore[arg-type]


def P(**facts: object) -> Node:  # noqa: N802
    """A fifo."""
    return replace(Node("p"), **facts)  # type: ignore[arg-type]


def C(major: int, minor: int, kind: str = "c", **facts: object) -> Node:  # noqa: N802
    """A device."""
    return replace(Node(kind, os.makedev(major, minor)), **facts)  # type: ignore[arg-type]


Tree = Mapping[bytes, Node]


def with_parents(tree: Tree) -> dict[bytes, Node]:
    """A tree together with the directories that it only implies."""
    found = dict(tree)
    for path in tree:
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            found.setdefault(path, D())
    return found


_KINDS = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}  # fmt: skip


def read_tree(root: Path) -> dict[bytes, Node]:
    """Read everything below a folder, from directory to directory, following nothing."""
    found: dict[bytes, Node] = {}
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path, folder, items in walk(descriptor):
            for item in items:
                name = os.fsencode(item.name)
                found[path + b"/" + name if path else name] = _read(folder, name)
    finally:
        os.close(descriptor)
    return found


def _read(folder: int, name: bytes) -> Node:
    place = b"/proc/self/fd/%d/%s" % (folder, name)
    status = os.lstat(place)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    content: bytes | int = b""
    if kind == "f":
        content = _content(place, status.st_size)
    elif kind == "l":
        content = os.readlink(place)
    elif kind in "cb":
        content = status.st_rdev
    xattrs = {key: os.getxattr(place, key, follow_symlinks=False) for key in os.listxattr(place, follow_symlinks=False)}
    mode = 0o777 if kind == "l" else stat.S_IMODE(status.st_mode)
    return Node(kind, content, mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink, xattrs)


def _content(place: bytes, size: int) -> bytes:
    """A file's bytes; of a large one, which is sparse, its size and the data of its extents."""
    with open(place, "rb") as file:
        if size <= 1 << 20:
            return file.read()
        parts, position = [b"%d" % size], 0
        while position < size:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            file.seek(position)
            data = file.read(min(end - position, 1 << 20)).strip(b"\0")
            if data:
                parts.append(data)
            position = end
        return b" ".join(parts)


def differences(found: Tree, wanted: Tree, *, links: bool) -> list[str]:
    """Say what is not as it should be.

    Args:
        found: as read.
        wanted: with all parents.
        links: compare the number of names, too.
    """
    said = [f"{path!r} is missing" for path in wanted if path not in found]
    said += [f"{path!r} should not be there: {found[path].kind}" for path in found if path not in wanted]
    for path in found.keys() & wanted.keys():
        have, want = found[path], wanted[path]
        if have.kind == "d" or not links:
            have = replace(have, nlink=want.nlink)
        if want.mtime_ns // 10**9 >= CLAMPED_FROM and have.mtime_ns // 10**9 >= CLAMPED_FROM:
            have = replace(have, mtime_ns=want.mtime_ns)
        if have != want:
            said.append(f"{path!r} is {_short(have)} instead of {_short(want)}")
    return said


def _short(node: Node) -> str:
    text = repr(node)
    return text if len(text) < 400 else f"{text[:400]}…"
