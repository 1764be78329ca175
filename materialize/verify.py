"""Comparing a farm on disk with the entries it was made from: names, kinds, attributes, every byte."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from lading.materialize.attributes import Attributes
from lading.materialize.beneath import split, walk
from lading.materialize.build import BARE_DIRECTORY
from lading.materialize.pool import has_attributes, is_as_recorded
from lading.materialize.strategy import Farm
from lading.materialize.whiteout import layer_xattrs, own_prefix
from lading.values import WHITEOUT, Entry, Inode

_KINDS: Final = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
    "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK,
}


class Verification:
    """One comparison; ``damaged`` then lists the inodes of regular files that differ."""

    def __init__(self, root: int, attributes: Attributes, strategy: Farm, *, lenient: bool) -> None:
        """Prepare.

        Args:
            root: descriptor of the farm.
            attributes: what its builder applies.
            strategy: how overlay's marks are spelt.
            lenient: accept missing extended attributes and devices, which the builder could not make.
        """
        self.damaged: list[Inode] = []
        self._root = root
        self._attributes = attributes
        self._strategy = strategy
        self._lenient = lenient
        self._checked: dict[int, tuple[Inode, bool]] = {}

    def run(self, entries: Sequence[Entry]) -> bool:
        """Compare everything.

        Returns:
            Whether the farm is what its builder would make, but for link counts and times of folders.
        """
        try:
            return self._compare(entries)
        except PermissionError:
            if self._attributes.as_root:
                raise
            return False  # modes that shut out their own owner: an ordinary user cannot look, only build again

    def _compare(self, entries: Sequence[Entry]) -> bool:
        expected: dict[bytes, dict[bytes, Entry]] = {}
        sound = True
        for entry in entries:
            if entry.path:
                parent, name = split(entry.path)
                expected.setdefault(parent, {})[name] = entry
            else:
                sound = self._directory(self._root, entry)
        for path, descriptor, items in walk(self._root):
            wanted = expected.get(path, {})
            found = {os.fsencode(item.name) for item in items}
            missing = [entry for name, entry in wanted.items() if name not in found]
            if found - wanted.keys() or not all(self._may_miss(entry) for entry in missing):
                return False
            for name in found:
                sound = self._entry(descriptor, name, wanted[name]) and sound
        return sound

    def _may_miss(self, entry: Entry) -> bool:
        return self._lenient and entry.inode is not None and entry.inode.type in "cb"

    def _entry(self, parent: int, name: bytes, entry: Entry) -> bool:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if entry.kind == WHITEOUT:
            return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        inode = entry.inode or BARE_DIRECTORY
        if stat.S_IFMT(status.st_mode) != _KINDS[inode.type]:
            return False
        if inode.type == "f":
            return self._file(parent, name, inode, status)
        if inode.type == "d":
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                return self._directory(descriptor, entry)
            finally:
                os.close(descriptor)
        if inode.type == "l":
            return os.readlink(name, dir_fd=parent) == inode.target
        return inode.type not in "cb" or status.st_rdev == inode.rdev

    def _directory(self, descriptor: int, entry: Entry) -> bool:
        inode = entry.inode or BARE_DIRECTORY
        if not has_attributes(os.fstat(descriptor), inode, self._attributes) or not self._xattrs(descriptor, inode):
            return False
        if not entry.opaque:
            return True
        return _xattr(descriptor, own_prefix(self._strategy.userxattr) + b"opaque") == b"y"

    def _file(self, parent: int, name: bytes, inode: Inode, status: os.stat_result) -> bool:
        checked = self._checked.get(status.st_ino)
        if checked is not None and checked[0] == inode:
            return checked[1]
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        try:
            sound = is_as_recorded(descriptor, inode, self._attributes) and self._xattrs(descriptor, inode)
        finally:
            os.close(descriptor)
        self._checked[status.st_ino] = (inode, sound)
        if not sound:
            self.damaged.append(inode)
        return sound

    def _xattrs(self, descriptor: int, inode: Inode) -> bool:
        if not inode.xattrs:
            return True
        for name, value in layer_xattrs(inode.xattrs, userxattr=self._strategy.userxattr):
            found = _xattr(descriptor, name)
            if found != value and not (found is None and self._lenient):
                return False
        return True


def _xattr(descriptor: int, name: bytes) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
