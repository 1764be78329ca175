"""Farms: one lowerdir for each layer content, made of hardlinks into the pool.

A farm is built in ``cache/trees/.building-…/``, renamed to ``cache/trees/KEY/`` when it is complete, and
described by ``cache/trees/KEY.json``. Nothing is synced: a farm of another boot, or one whose description
is missing, is compared with its entries in full before it is used.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from lading import private
from lading.errors import Busy
from lading.materialize.attributes import Attributes, prepare_root
from lading.materialize.beneath import DIRECTORY, remove_tree, split, told
from lading.materialize.build import File, TreeBuilder
from lading.materialize.cachelock import (
    BUILDING_PREFIX,
    MARKER_SUFFIX,
    boot_id,
    cache_lock,
    make_private,
    read_description,
)
from lading.materialize.copy import clean_building, make_building
from lading.materialize.pool import Pool
from lading.materialize.strategy import Farm
from lading.materialize.verify import Verification
from lading.materialize.whiteout import Xattrs, layer_xattrs, make_whiteout, mark_hiding, mark_opaque
from lading.values import ContentSource, Entry, Inode, inode_key

#: Rounds of building while others build, damage or evict the same farm.
_ROUNDS_MAX: Final = 4


class FarmAbilities(Protocol):
    """What a farm needs to know of the machine."""

    @property
    def root(self) -> bool:
        """Owners, devices and all attributes can be given."""

    @property
    def trusted_xattrs(self) -> bool:
        """``trusted.*`` attributes can be set on the cache's filesystem."""


@dataclass(frozen=True, slots=True)
class FarmInfo:
    """A farm that is ready to be a lowerdir."""

    path: Path
    entries: int
    files: int  #: names of regular files
    bytes: int  #: their sizes, each name counted
    warnings: tuple[str, ...] = ()  #: what could not be applied, one sentence a kind
    built: bool = False  #: made by this call
    written: int = 0  #: files written by this call; the others were linked


def find_farm(cache_root: Path, key: str, *, boot: str | None = None) -> Path | None:
    """Look for a farm that was built or verified in this boot, and note that it is used.

    Hold :func:`lading.materialize.pool.cache_lock` shared until it is mounted, or eviction may remove it.

    Returns:
        Its path, else None: then :func:`build_farm` makes, or verifies, it.
    """
    info = _described(cache_root / "trees", key, boot or boot_id())
    return info.path if info is not None else None


def build_farm(
    cache_root: Path,
    key: str,
    entries: Sequence[Entry],
    source: ContentSource,
    abilities: FarmAbilities,
    *,
    boot: str | None = None,
) -> FarmInfo:
    """Make the farm of a content, or verify the one that another boot left.

    Args:
        cache_root: the store's cache folder.
        key: names the farm; a plain file name that does not begin with a dot.
        entries: of the content, sorted by ``component_key``; implied directories have been given their
            inherited attributes, those left are 0755, 0:0, time 0.
        source: where contents come from; asked only for what the pool does not have.
        abilities: chooses who owns the files and how overlay's marks are spelt.
        boot: id of this boot; None: the kernel's.

    Raises:
        Corrupt: a content is missing or damaged.
        Unsupported: a deletion or an opaque directory cannot be marked here.
        Busy: an eviction did not end in time.
        Full, ReadOnly: as told by the filesystem.

    Concurrency: processes that build the same farm do not wait for each other; one farm stays.
    """
    boot = boot or boot_id()
    strategy = Farm(as_root=abilities.root, userxattr=not abilities.trusted_xattrs)
    with told(cache_root), cache_lock(cache_root):
        make_private(cache_root / "trees")
        trees = os.open(cache_root / "trees", DIRECTORY)
        try:
            clean_building(trees, BUILDING_PREFIX)
            with _Maker(cache_root, key, boot, trees, strategy) as maker:
                return maker.make(entries, source)
        finally:
            os.close(trees)


def _described(trees: Path, key: str, boot: str) -> FarmInfo | None:
    marker = trees / (key + MARKER_SUFFIX)
    described = read_marker(marker)
    if described is None or described.get("boot") != boot or not (trees / key).is_dir():
        return None
    os.utime(marker)
    return FarmInfo(
        trees / key, described["entries"], described["files"], described["bytes"], tuple(described["warnings"])
    )


def read_marker(path: Path) -> Mapping[str, Any] | None:
    """Read a farm's description; None when there is none, or only what a power cut left of it."""
    return read_description(path, ("boot", "entries", "files", "bytes", "warnings"))


class _Maker:
    """One call of :func:`build_farm`: the pool, the folder of trees and what was chosen."""

    def __init__(self, cache_root: Path, key: str, boot: str, trees: int, strategy: Farm) -> None:
        def choose(xattrs: Xattrs) -> Xattrs:
            return layer_xattrs(xattrs, userxattr=strategy.userxattr)

        self._attributes = Attributes(as_root=strategy.as_root, choose=choose)
        self._pool = Pool(cache_root, self._attributes, boot)
        self._folder, self._key, self._boot, self._trees = cache_root / "trees", key, boot, trees
        self._strategy = strategy

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def make(self, entries: Sequence[Entry], source: ContentSource) -> FarmInfo:
        """Find, verify or build; more than one round only where others are at the same farm."""
        if not self._strategy.as_root:
            entries = [_movable(entry) if not entry.path else entry for entry in entries]
        for _ in range(_ROUNDS_MAX):
            found = _described(self._folder, self._key, self._boot) or self._adopt(entries)
            if found is not None:
                return found
            made = self._build(entries, source)
            if made is not None:
                self._describe(made)
                return made
        raise Busy(f"{self._folder / self._key} is being made and removed by other processes")

    def _adopt(self, entries: Sequence[Entry]) -> FarmInfo | None:
        """Verify a farm that this boot has not seen; a damaged one goes, and its pool files with it."""
        described = read_marker(self._folder / (self._key + MARKER_SUFFIX)) or {"warnings": ()}
        warnings = tuple(described["warnings"])
        try:
            root = os.open(self._key, DIRECTORY, dir_fd=self._trees)
        except FileNotFoundError:
            return None
        try:
            check = Verification(root, self._attributes, self._strategy, lenient=bool(warnings))
            sound = check.run(entries)
        finally:
            os.close(root)
        for inode in check.damaged:
            self._pool.drop(inode_key(inode))
        if not sound:
            self._discard()
            return None
        sizes = [entry.inode.size for entry in entries if entry.inode is not None and entry.inode.type == "f"]
        path = self._folder / self._key
        info = FarmInfo(path, len(entries), len(sizes), sum(sizes), warnings)
        self._describe(info)
        return info

    def _discard(self) -> None:
        """Take a farm out of sight in one step, then remove it."""
        name, root = make_building(self._trees, BUILDING_PREFIX)
        try:
            with suppress(FileNotFoundError):
                os.rename(self._key, name + "/tree", src_dir_fd=self._trees, dst_dir_fd=self._trees)
            remove_tree(name, dir_fd=self._trees)
        finally:
            os.close(root)

    def _build(self, entries: Sequence[Entry], source: ContentSource) -> FarmInfo | None:
        """Build the farm and put it in its place; None when another one lies there by then."""
        name, building = make_building(self._trees, BUILDING_PREFIX)
        try:
            prepare_root(building)
            private.make_folder("tree", dir_fd=building)
            root = os.open("tree", DIRECTORY, dir_fd=building)
            try:
                builder = _FarmBuilder(root, source, self._attributes, self._pool, self._strategy)
                builder.build(entries)
            finally:
                os.close(root)
            try:
                os.rename("tree", self._key, src_dir_fd=building, dst_dir_fd=self._trees)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return None
                raise
        finally:
            remove_tree(name, dir_fd=self._trees)
            os.close(building)
        path, warnings = self._folder / self._key, self._attributes.warnings
        return FarmInfo(path, len(entries), builder.files, builder.bytes, warnings, True, builder.wrote)

    def _describe(self, info: FarmInfo) -> None:
        described = {
            "boot": self._boot,
            "entries": info.entries,
            "files": info.files,
            "bytes": info.bytes,
            "warnings": info.warnings,
        }
        name, building = make_building(self._trees, BUILDING_PREFIX)
        try:
            descriptor = private.opened("marker", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=building)
            with open(descriptor, "w") as marker:
                json.dump(described, marker)
            os.rename("marker", self._key + MARKER_SUFFIX, src_dir_fd=building, dst_dir_fd=self._trees)
        finally:
            remove_tree(name, dir_fd=self._trees)
            os.close(building)


def _movable(root: Entry) -> Entry:
    """Let an ordinary user rename the farm into place, which writes to its root."""
    return root if root.inode is None else root._replace(inode=root.inode._replace(mode=root.inode.mode | 0o700))


class _FarmBuilder(TreeBuilder):
    """A tree whose files are the pool's, with overlay's marks for deletions."""

    def __init__(self, root: int, source: ContentSource, attributes: Attributes, pool: Pool, strategy: Farm) -> None:
        super().__init__(root, source, attributes)
        self.wrote = 0
        self._pool = pool
        self._strategy = strategy
        self._expected: set[bytes] = set()  # keys of files that are about to be written
        self._again: list[File] = []  # further names of these
        self._names: dict[bytes, list[bytes]] = {}  # further hardlinked names by first name

    def whiteout(self, name: bytes, parent: int) -> None:
        """Hide a name of lower layers."""
        make_whiteout(name, parent)
        mark_hiding(parent, userxattr=self._strategy.userxattr)

    def needs_marks(self, entry: Entry) -> bool:
        """Only opaque directories have marks."""
        return entry.opaque

    def finish_directory(self, descriptor: int, entry: Entry) -> None:
        """Mark an opaque directory."""
        if entry.opaque:
            mark_opaque(descriptor, userxattr=self._strategy.userxattr)

    def regular(self, entry: Entry, inode: Inode) -> None:
        """Link the pool's file, or put the writing off."""
        if not inode.size:
            self.write_later(File(entry.path, inode))
            return
        file = File(entry.path, inode, inode_key(inode))
        if file.key in self._expected:
            self._again.append(file)
            return
        parent, name = split(entry.path)
        if not self._pool.link_out(file.key, inode, name, self.directories.fd(parent)):
            self._expected.add(file.key)
            self.write_later(file)

    def written(self, descriptor: int, name: bytes, parent: int, file: File) -> None:
        """Put a new file into the pool."""
        del descriptor
        if file.key:
            self._pool.publish(file.key, name, parent)

    def write_pending(self) -> None:
        """Write what the pool does not have, then link the further names of these files."""
        while self.pending:
            self.wrote += len(self.pending)
            super().write_pending()
            again, self._again = self._again, []
            self._expected.clear()
            for file in again:
                parent, name = split(file.path)
                if file.key in self._expected:
                    self._again.append(file)
                elif not self._pool.link_out(file.key, file.inode, name, self.directories.fd(parent)):
                    self._expected.add(file.key)
                    self.write_later(file)

    def link_further(self, path: bytes, leader: bytes, inode: Inode) -> None:
        """Link a further name; a group that meets the link limit moves to a further pool file as a whole."""
        names = self._names.setdefault(leader, [leader])
        try:
            self.link_within(self.leaders.get(leader, leader), path)
        except OSError as error:
            if error.errno != errno.EMLINK or inode.type != "f":
                raise
            self._continue_group(path, leader, names, inode)
        else:
            names.append(path)

    def _continue_group(self, path: bytes, leader: bytes, names: list[bytes], inode: Inode) -> None:
        full = self.leaders.get(leader, leader)
        parent, name = split(full)
        limit = os.stat(name, dir_fd=self.directories.fd(parent), follow_symlinks=False).st_nlink
        self.duplicate(full, path, inode)
        self.leaders[leader] = path
        if inode.size:
            key = inode_key(inode)
            self._pool.skip_full(key)
            parent, name = split(path)
            self._pool.publish(key, name, self.directories.fd(parent))
        if len(names) + 2 <= limit:  # else the group alone is larger than an inode can count, and splits
            for earlier in names:
                parent, name = split(earlier)
                os.unlink(name, dir_fd=self.directories.fd(parent))
                self.link_within(path, earlier)
        else:
            names.clear()
        names.append(path)
