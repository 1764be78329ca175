"""Reading back what was written: an overlay's upper directory, or a writable tree, as entries.

In full fidelity: nanoseconds, sockets, access control lists, all attributes but overlay's own. Walked by
directory descriptors; nothing is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from lading.errors import Corrupt
from lading.materialize.attributes import Attributes
from lading.materialize.beneath import DIRECTORY, walk
from lading.materialize.copy import StatRecord, stat_record
from lading.materialize.whiteout import TRUSTED, USER
from lading.values import IMPLIED, PRESENT, WHITEOUT, Entry, Inode, component_key, printable

#: Called with an open file and its size; stores the bytes and returns their digest.
Store = Callable[[int, int], bytes]

#: Overlay's own marks that say a file's content or place is elsewhere: a mount of ours never makes them.
_ELSEWHERE: Final = ("metacopy", "redirect")

_LETTERS: Final = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}  # fmt: skip


def capture_upper(upper: Path, store: Store) -> list[Entry]:
    """Read an overlay's upper directory.

    Args:
        upper: the directory; no mount writes to it meanwhile, or what is read may be mixed.
        store: called for each regular file with bytes.

    Returns:
        Entries sorted, the root's own first; removals and opaque directories among them.

    Raises:
        Corrupt: a file's content lies elsewhere (``metacopy``, ``redirect``).
    """
    return _Capture(store).run(upper, _upper_entry)


def capture_tree(
    tree: Path, base: Mapping[bytes, Entry], index: Mapping[bytes, StatRecord], store: Store, *, as_root: bool
) -> list[Entry]:
    """Read a writable tree as changes against what it was made from.

    Args:
        tree: the tree's folder.
        base: the full tree that it was a copy of.
        index: how its regular files looked then; one that looks the same is not read.
        store: called for each regular file that was written.
        as_root: whether owners could be set; if not, files that are as they were keep the base's owners,
            and what could not be made (devices) is not taken for removed.

    Returns:
        Entries sorted, the root's own first: what was added or modified, and removals.
    """
    capture = _Capture(store)
    capture.base, capture.index, capture.as_root = base, index, as_root
    found = {entry.path: entry for entry in capture.run(tree, _tree_entry)}
    found = _led_as_before(found, base)
    changed = [entry for path, entry in found.items() if not path or not _same(base.get(path), entry)]
    removed = []
    for path, entry in base.items():
        if path and path not in found and not (not as_root and entry.inode is not None and entry.inode.type in "cb"):
            parent = path.rpartition(b"/")[0]
            parent_now = found.get(parent)
            if not parent or (parent_now is not None and parent_now.inode is not None and parent_now.inode.type == "d"):
                removed.append(Entry(path, WHITEOUT))
    changed += _leaders(changed, found)
    result = {entry.path: entry for entry in (*changed, *removed)}
    for path in list(result):
        while path:  # directories on the way that are as they were are only implied
            path = path.rpartition(b"/")[0]
            if path in result:
                break
            result[path] = Entry(path, IMPLIED)
    return sorted(result.values(), key=lambda entry: component_key(entry.path))


def _led_as_before(found: dict[bytes, Entry], base: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    """Let the names of one inode lead to the name they led to before: which is met first in a walk says nothing."""
    groups: dict[bytes, list[bytes]] = {}
    for path, entry in found.items():
        if entry.link is not None:
            groups.setdefault(entry.link, [entry.link]).append(path)
    for leader, names in groups.items():
        wanted = next((name for name in names if (known := base.get(name)) is not None and known.link is None), leader)
        if wanted != leader:
            found.update({name: found[name]._replace(link=None if name == wanted else wanted) for name in names})
    return found


def _same(before: Entry | None, now: Entry) -> bool:
    if before is None or before.inode is None or now.inode is None or before.link != now.link:
        return False
    if before.inode == now.inode:
        return True
    # Ordinary users cannot set sub-second times of links or owners; a directory's size is nothing.
    return before.inode._replace(sparse=()) == now.inode._replace(sparse=())


def _leaders(changed: list[Entry], found: Mapping[bytes, Entry]) -> list[Entry]:
    """The first names of inodes whose further names changed: a link needs what it leads to beside it."""
    present = {entry.path for entry in changed}
    wanted = {entry.link for entry in changed if entry.link is not None} - present
    return [found[path] for path in wanted if path is not None and path in found]


class _Capture:
    """One walk: hard links by inode number, contents through the callback."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.base: Mapping[bytes, Entry] = {}
        self.index: Mapping[bytes, StatRecord] = {}
        self.as_root = True
        self._shown = Attributes(as_root=False)
        self._first: dict[tuple[int, int], Entry] = {}

    def run(self, folder: Path, make: Callable[[_Capture, bytes, int, bytes, os.stat_result], Entry]) -> list[Entry]:
        """Walk a folder."""
        root = os.open(folder, DIRECTORY)
        entries = []
        try:
            entries.append(make(self, b"", root, b".", os.fstat(root)))
            for path, descriptor, items in walk(root):
                prefix = path + b"/" if path else b""
                for item in items:
                    name = os.fsencode(item.name)
                    entries.append(make(self, prefix + name, descriptor, name, item.stat(follow_symlinks=False)))
        except FileNotFoundError as error:
            raise Corrupt(f"{folder} was changed while it was read") from error
        finally:
            os.close(root)
        return sorted(entries, key=lambda entry: component_key(entry.path))

    def present(
        self, path: bytes, parent: int, name: bytes, status: os.stat_result, xattrs: tuple[tuple[bytes, bytes], ...]
    ) -> Entry:
        """An entry that is there; a further name of an inode leads to the first."""
        key = (status.st_dev, status.st_ino)
        is_linked = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        if is_linked and key in self._first:
            first = self._first[key]
            return Entry(path, PRESENT, first.inode, False, first.path)
        entry = Entry(path, PRESENT, self._inode(path, parent, name, status, xattrs))
        if is_linked:
            self._first[key] = entry
        return entry

    def _inode(
        self, path: bytes, parent: int, name: bytes, status: os.stat_result, xattrs: tuple[tuple[bytes, bytes], ...]
    ) -> Inode:
        letter = _LETTERS[stat.S_IFMT(status.st_mode)]
        before = self.base.get(path)
        old = before.inode if before is not None else None
        uid, gid = status.st_uid, status.st_gid
        if not self.as_root and old is not None and (uid, gid) == (os.geteuid(), os.getegid()):
            uid, gid = old.uid, old.gid
        size, digest, target = 0, b"", b""
        sparse: tuple[tuple[int, int], ...] = ()
        if letter == "f":
            size = status.st_size
            if old is not None and old.type == "f" and self.index.get(path) == stat_record(status):
                digest, sparse = old.digest, old.sparse
            elif size:
                digest = self._stored(parent, name, size)
        elif letter == "l":
            target = os.readlink(name, dir_fd=parent)
        mode = 0o777 if letter == "l" else stat.S_IMODE(status.st_mode)
        if not self.as_root and old is not None and old.type == letter and self._shown.mode(old) == mode:
            mode = old.mode  # bits that may not be given to what belongs to others
        rdev = status.st_rdev if letter in "cb" else 0
        return Inode(letter, mode, uid, gid, status.st_mtime_ns, size, digest, target, rdev, xattrs, sparse)

    def _stored(self, parent: int, name: bytes, size: int) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        try:
            return self.store(descriptor, size)
        finally:
            os.close(descriptor)


def _xattrs(parent: int, name: bytes, mode: int) -> dict[str, bytes]:
    """All extended attributes of a name, which is not followed."""
    # There is no listxattr below a directory descriptor; /proc leads to exactly this directory.
    path = os.fsencode(f"/proc/self/fd/{parent}/") + name if name != b"." else os.fsencode(f"/proc/self/fd/{parent}/.")
    follow = stat.S_ISDIR(mode) and name == b"."
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return {}
        raise
    return {key: os.getxattr(path, key, follow_symlinks=follow) for key in names}


def _split_marks(found: dict[str, bytes]) -> tuple[tuple[tuple[bytes, bytes], ...], dict[str, bytes]]:
    """Tell attributes of the file from marks of overlay; escaped ones are the file's own."""
    own: list[tuple[bytes, bytes]] = []
    marks: dict[str, bytes] = {}
    for name, value in found.items():
        raw = os.fsencode(name)
        for prefix in (TRUSTED, USER):
            if raw.startswith(prefix + b"overlay."):
                own.append((prefix + raw[len(prefix + b"overlay.") :], value))
                break
            if raw.startswith(prefix):
                marks[os.fsdecode(raw[len(prefix) :])] = value
                break
        else:
            own.append((raw, value))
    return tuple(sorted(own)), marks


def _upper_entry(capture: _Capture, path: bytes, parent: int, name: bytes, status: os.stat_result) -> Entry:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return Entry(path, WHITEOUT)
    xattrs, marks = _split_marks(_xattrs(parent, name, status.st_mode))
    for mark in _ELSEWHERE:
        if mark in marks:
            raise Corrupt(f'"{printable(path)}" was written by a mount with {mark}: its content is not here')
    if "whiteout" in marks and stat.S_ISREG(status.st_mode) and not status.st_size:
        return Entry(path, WHITEOUT)
    entry = capture.present(path, parent, name, status, xattrs)
    return entry._replace(opaque=marks.get("opaque") == b"y")


def _tree_entry(capture: _Capture, path: bytes, parent: int, name: bytes, status: os.stat_result) -> Entry:
    xattrs, _ = _split_marks(_xattrs(parent, name, status.st_mode))
    return capture.present(path, parent, name, status, xattrs)
