"""A content's entries written onto a tree that exists: what a diff does to a mounted layer.

Others may write to the tree at the same moment, and it may hold traps: everything goes through directory
descriptors below the root, and no name is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lading.materialize.attributes import Attributes
from lading.materialize.beneath import DIRECTORY, Directories, remove_tree, split, told
from lading.materialize.build import write_content
from lading.trees import IMPLIED_INODE
from lading.values import IMPLIED, WHITEOUT, ContentSource, Entry, Inode

_KINDS = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO, "s": stat.S_IFSOCK}


def unpack(root: Path, entries: Sequence[Entry], source: ContentSource) -> tuple[str, ...]:
    """Write entries onto a tree, in order.

    Args:
        root: the tree's folder.
        entries: of one content, sorted; removals and opaque directories remove what is there.
        source: where contents come from.

    Returns:
        What could not be applied, one sentence a kind.

    Raises:
        Corrupt: a content is missing or damaged; what was written before stays.
        Full, ReadOnly: as told by the filesystem.
    """
    with told(root):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _Unpacking(descriptor, source).run(entries)
        finally:
            os.close(descriptor)


class _Unpacking:
    def __init__(self, root: int, source: ContentSource) -> None:
        self._directories = Directories(root)
        self._root = root
        self._source = source
        self._attributes = Attributes(as_root=os.geteuid() == 0)

    def run(self, entries: Sequence[Entry]) -> tuple[str, ...]:
        digests = [entry.inode.digest for entry in entries if _has_content(entry) and entry.inode is not None]
        contents = self._source.contents(digests)
        made: list[Entry] = []
        with self._directories:
            for entry in entries:
                if entry.path:
                    self._write(entry, contents)
                elif entry.opaque:
                    self._empty(self._root)
                if entry.path and entry.inode is not None and entry.inode.type == "d":
                    made.append(entry)
            for entry in reversed(made):
                assert entry.inode is not None
                self._attributes.apply(self._directories.fd(entry.path), entry.inode)
        return self._attributes.warnings

    def _write(self, entry: Entry, contents: Iterator[Iterator[bytes]]) -> None:
        parent_path, name = split(entry.path)
        parent = self._directories.fd(parent_path)
        if entry.kind == WHITEOUT:
            self._clear(parent, name)
            return
        inode = IMPLIED_INODE if entry.kind == IMPLIED else entry.inode
        assert inode is not None
        if inode.type == "d":
            self._directory(parent, name, entry, inode)
            return
        self._clear(parent, name)
        if entry.link is not None:
            link_parent, link_name = split(entry.link)
            source = self._directories.fd(link_parent)
            target = self._directories.fd(parent_path)
            # Without the last argument a first name that is a symlink would be followed, out of the tree.
            os.link(link_name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        elif inode.type == "f":
            self._file(parent, name, entry.path, inode, next(contents) if inode.digest else iter(()))
        elif inode.type == "l":
            os.symlink(inode.target, name, dir_fd=parent)
            self._attributes.apply_at(name, parent, inode)
        else:
            self._special(parent, name, inode)

    def _directory(self, parent: int, name: bytes, entry: Entry, inode: Inode) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                if entry.opaque:
                    self._empty(self._directories.fd(entry.path))
                return
            self._clear(parent, name)
            os.mkdir(name, 0o700, dir_fd=parent)
        if entry.kind == IMPLIED:
            self._attributes.apply(self._directories.fd(entry.path), inode)

    def _file(self, parent: int, name: bytes, path: bytes, inode: Inode, chunks: Iterator[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            write_content(descriptor, inode, chunks, path)
            self._attributes.apply(descriptor, inode)
        finally:
            os.close(descriptor)

    def _special(self, parent: int, name: bytes, inode: Inode) -> None:
        try:
            os.mknod(name, _KINDS[inode.type] | 0o600, inode.rdev, dir_fd=parent)
        except PermissionError:
            self._attributes.warn("device", "devices cannot be made by this user: they are left out")
            return
        self._attributes.apply_at(name, parent, inode)

    def _clear(self, parent: int, name: bytes) -> None:
        """Remove whatever has the name; a subtree's open directories are forgotten with it."""
        with suppress(FileNotFoundError):
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            remove_tree(name, dir_fd=parent)
            if is_directory:
                self._directories.close()

    def _empty(self, directory: int) -> None:
        """Remove all that is in a directory."""
        listed = os.open(".", DIRECTORY, dir_fd=directory)
        try:
            for name in os.listdir(listed):
                remove_tree(os.fsencode(name), dir_fd=listed)
        finally:
            os.close(listed)


def _has_content(entry: Entry) -> bool:
    inode = entry.inode
    return inode is not None and inode.type == "f" and entry.link is None and bool(inode.digest)
