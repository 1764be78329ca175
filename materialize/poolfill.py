"""Filling the pool for images that hold no contents: their files lead to the pool's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lading.materialize.attributes import Attributes
from lading.materialize.beneath import DIRECTORY, remove_tree
from lading.materialize.build import File, TreeBuilder
from lading.materialize.cachelock import BUILDING_PREFIX, boot_id, make_private
from lading.materialize.copy import make_building
from lading.materialize.pool import Pool, pool_name
from lading.materialize.whiteout import Xattrs, layer_xattrs
from lading.values import PRESENT, ContentSource, Entry, Inode, inode_key


def pool_path(inode: Inode) -> bytes:
    """Where overlay finds a file's content, with the pool as a data-only lowerdir."""
    return b"/" + os.fsencode(pool_name(inode_key(inode)))


def open_pool(cache_root: Path) -> Pool:
    """Open the pool for reading files out of it; hold the cache's lock."""
    return Pool(cache_root, Attributes(as_root=True, choose=_choose), boot_id())


def fill_pool(cache_root: Path, entries: Sequence[Entry], source: ContentSource) -> bytes:
    """See to it that the pool has every file of a content.

    Returns:
        Keys of the pool files, 20 bytes each, sorted.

    Raises:
        Corrupt: a content is missing or damaged.
    """
    wanted = {
        inode_key(entry.inode): entry.inode
        for entry in entries
        if entry.kind == PRESENT and entry.inode is not None and entry.inode.type == "f" and entry.inode.size
    }
    attributes = Attributes(as_root=True, choose=_choose)
    trees = cache_root / "trees"
    make_private(trees)
    parent = os.open(trees, DIRECTORY)
    name, building = make_building(parent, BUILDING_PREFIX)
    try:
        with Pool(cache_root, attributes, boot_id()) as pool:
            _Filler(building, source, attributes, pool).build(
                [Entry(key.hex().encode(), PRESENT, inode) for key, inode in wanted.items()]
            )
    finally:
        remove_tree(name, dir_fd=parent)
        os.close(building)
        os.close(parent)
    return b"".join(sorted(wanted))


def _choose(xattrs: Xattrs) -> Xattrs:
    return layer_xattrs(xattrs, userxattr=False)


class _Filler(TreeBuilder):
    """Makes the files that the pool lacks in a folder that goes away; their names are their keys."""

    def __init__(self, root: int, source: ContentSource, attributes: Attributes, pool: Pool) -> None:
        super().__init__(root, source, attributes)
        self._pool = pool

    def regular(self, entry: Entry, inode: Inode) -> None:
        """Write the file unless the pool has it."""
        if not self._pool.has(bytes.fromhex(entry.path.decode()), inode):
            self.write_later(File(entry.path, inode, bytes.fromhex(entry.path.decode())))

    def written(self, descriptor: int, name: bytes, parent: int, file: File) -> None:
        """Put it into the pool."""
        del descriptor
        self._pool.publish(file.key, name, parent)
