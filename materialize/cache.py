"""The cache as a whole: what lies in it, what each part takes, what can go.

Sizes are sums of ``st_size`` of regular files, an inode counted once; directories and links count
nothing. Everything here can be made again, so nothing but a mount is a reason to keep it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.materialize.beneath import DIRECTORY, remove_tree, told, walk
from lading.materialize.cachelock import (
    BUILDING_PREFIX,
    IMAGE_SUFFIX,
    LOCK_SUFFIX,
    LOCK_WAIT_S,
    MARKER_SUFFIX,
    REFS_SUFFIX,
    cache_lock,
)
from lading.materialize.copy import make_building
from lading.materialize.imagecache import drop_image
from lading.materialize.pool import pool_name

TREE: Final = "tree"
IMAGE: Final = "image"
POOL: Final = "pool"
OTHER: Final = "other"

#: A budget that nothing exceeds: only debris goes.
UNLIMITED: Final = 1 << 62

#: Bytes of the name of a pool file.
_KEY_SIZE: Final = 20


@dataclass(frozen=True, slots=True)
class Eviction:
    """What goes, or went: trees, and pool files that no tree has any more."""

    trees: tuple[str, ...]  #: keys, least recently used first
    images: tuple[str, ...]  #: names, least recently used first
    pool: tuple[str, ...]  #: names below the pool
    debris: tuple[str, ...]  #: folders of builds that were killed, and descriptions without what they describe
    bytes: int  #: sizes of all files removed


def measure(cache_root: Path) -> list[tuple[str, str, int]]:
    """Measure the cache.

    Returns:
        ``(kind, key, size)``, sorted. Kinds: ``pool``, by hex name; ``image``, by name, with its description; ``tree``, by key, with the files that
        only trees have and the tree's description; ``other``, by path (lists, locks, debris). The sizes sum
        to those of all regular files below the cache; a file in the pool counts there, a file of several
        trees for the first.
    """
    try:
        root = os.open(cache_root, DIRECTORY)
    except FileNotFoundError:
        return []
    sizes: dict[tuple[str, str], int] = {}
    seen: set[tuple[int, int]] = set()
    try:
        for path, status in _files(root, skip_mounts=True):  # as those of a probe, in another process
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                part = _part(path)
                sizes[part] = sizes.get(part, 0) + status.st_size
    finally:
        os.close(root)
    return sorted((kind, key, size) for (kind, key), size in sizes.items())


def _part(path: bytes) -> tuple[str, str]:
    """Name the part of the cache that a file counts for."""
    top, _, rest = os.fsdecode(path).partition("/")
    name = rest.partition("/")[0] if top == "trees" else rest.rpartition("/")[2]
    if not rest or name.startswith("."):
        return OTHER, f"{top}/{name}" if rest else top
    if top == "pool":
        return POOL, name
    if top == "erofs":
        return IMAGE, _image_name(name) or name
    if top == "trees":
        return TREE, name.removesuffix(MARKER_SUFFIX) if "/" not in rest else name
    return OTHER, os.fsdecode(path)


def _image_name(file: str) -> str:
    """The image that a file belongs to; empty for anything else."""
    for suffix in (IMAGE_SUFFIX, MARKER_SUFFIX, REFS_SUFFIX):
        if file.endswith(suffix) and not file.startswith("."):
            return file.removesuffix(suffix)
    return ""


def present(cache_root: Path) -> list[str]:
    """Names of the trees and images in the cache, sorted."""
    found: set[str] = set()
    with suppress(FileNotFoundError):
        found.update(item.name for item in os.scandir(cache_root / "trees") if item.is_dir(follow_symlinks=False))
    with suppress(FileNotFoundError):
        found.update(_image_name(name) for name in os.listdir(cache_root / "erofs"))
    return sorted(name for name in found if name and not name.startswith("."))


def has_debris(cache_root: Path) -> bool:
    """Tell by names alone whether a build may have been killed, or is going on."""
    for folder in ("trees", "erofs"):
        with suppress(FileNotFoundError):
            names = set(os.listdir(cache_root / folder))
            if any(_is_debris(folder, name, names) for name in names):
                return True
    return False


def _is_debris(folder: str, name: str, names: Collection[str]) -> bool:
    if name.startswith(BUILDING_PREFIX):
        return True
    if folder == "trees":
        return name.endswith(MARKER_SUFFIX) and name.removesuffix(MARKER_SUFFIX) not in names
    of = _image_name(name)
    return bool(of) and not all(file in names for file in (of + IMAGE_SUFFIX, of + MARKER_SUFFIX))


def last_used(cache_root: Path, name: str) -> int:
    """When a view was last asked for, in nanoseconds since 1970; 0 when nobody knows."""
    for folder in ("erofs", "trees"):
        with suppress(FileNotFoundError):
            return os.stat(cache_root / folder / (name + MARKER_SUFFIX)).st_mtime_ns
    return 0


def _files(root: int, *, skip_mounts: bool = False) -> Iterator[tuple[bytes, os.stat_result]]:
    """Walk the regular files below a folder; the pool first, so that its files count there."""
    for path, descriptor, items in walk(root, skip_mounts=skip_mounts):
        prefix = path + b"/" if path else b""
        for item in items:
            if item.is_file(follow_symlinks=False):
                name = os.fsencode(item.name)
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed since its folder was read
                yield prefix + name, status


def evict(
    cache_root: Path,
    *,
    keep: Collection[str] | Callable[[], Collection[str]] = (),
    budget: int = 0,
    dry_run: bool = False,
    wait_s: float = LOCK_WAIT_S,
) -> Eviction:
    """Remove parts of the cache until it is within a budget, the least recently used first.

    Debris goes in any case, then pool files that nothing leads to, then trees and images, together with the pool
    files that only they had.

    Args:
        cache_root: the store's cache folder.
        keep: names of trees and images that are mounted, or about to be; or what tells them once nobody can
            build or mount any more.
        budget: bytes that may stay.
        dry_run: only say what would go; takes no lock and changes nothing.
        wait_s: how long to wait for builders.

    Returns:
        Exactly what was removed; a dry run says exactly what a run at that moment would.

    Raises:
        Busy: trees were being built, or looked for, until the limit.
    """
    if not cache_root.is_dir():
        return Eviction((), (), (), (), 0)
    if dry_run:
        return _Plan(cache_root, keep() if callable(keep) else keep, budget).eviction()
    with told(cache_root), cache_lock(cache_root, exclusive=True, wait_s=wait_s):
        plan = _Plan(cache_root, keep() if callable(keep) else keep, budget)
        _execute(cache_root, plan.eviction())
        return plan.eviction()


class _Plan:
    """Decides what goes by counting names: a file's bytes go with its last one."""

    def __init__(self, cache_root: Path, keep: Collection[str], budget: int) -> None:
        self._root = cache_root
        # Without a budget everything may go, with all of it nothing: neither has to be measured.
        fixed = {0: UNLIMITED, UNLIMITED: 0}.get(budget)
        self._total = sum(size for _, _, size in measure(cache_root)) if fixed is None else fixed
        self._left: dict[int, int] = {}  # names that an inode keeps, where not its link count
        self._pool: dict[int, tuple[str, int]] = {}  # name and size of pool files, by inode
        self._numbers: dict[str, int] = {}  # inode of pool files, by name
        self._freed = 0
        self._trees: list[str] = []
        self._images: list[str] = []
        self._unused: list[str] = []
        self._debris: list[str] = []
        self._read_pool(cache_root / "pool")
        folders = {part: _opened(cache_root / part) for part in ("trees", "erofs")}
        try:
            self._decide(folders["trees"], folders["erofs"], keep, budget)
        finally:
            for descriptor in folders.values():
                if descriptor >= 0:
                    os.close(descriptor)

    def eviction(self) -> Eviction:
        gone = (self._trees, self._images, self._unused, self._debris)
        trees, images, pool, debris = (tuple(names) for names in gone)
        return Eviction(trees, images, pool, debris, self._freed)

    def _read_pool(self, folder: Path) -> None:
        try:
            root = os.open(folder, DIRECTORY)
        except FileNotFoundError:
            return
        try:
            for path, status in _files(root):
                if b"/" in path:
                    name = os.fsdecode(path)
                    self._pool[status.st_ino] = (name, status.st_size)
                    self._numbers[name] = status.st_ino
                    self._left[status.st_ino] = status.st_nlink
        finally:
            os.close(root)

    def _decide(self, trees: int, images: int, keep: Collection[str], budget: int) -> None:
        tree_names = sorted(os.listdir(trees)) if trees >= 0 else []
        image_names = sorted(os.listdir(images)) if images >= 0 else []
        self._find_debris(trees, tree_names)
        self._find_image_debris(images, image_names)
        for name in image_names:
            if name.endswith(REFS_SUFFIX) and f"erofs/{name}" not in self._debris:
                for inode in self._led_to(images, name):
                    self._left[inode] = self._left.get(inode, 1) + 1
        for inode in list(self._pool):
            if self._total - self._freed > budget:
                self._drop_unused(inode)
        found = [(moment, name, False) for moment, name in _by_use(trees, tree_names, keep)] if trees >= 0 else []
        found += [
            (last_used(self._root, name), name, True)
            for name in sorted({_image_name(file) for file in image_names if file.endswith(IMAGE_SUFFIX)})
            if name and name not in keep
        ]
        for _, name, is_image in sorted(found):
            if self._total - self._freed <= budget:
                break
            for inode in self._remove_image(images, name) if is_image else self._remove_farm(trees, tree_names, name):
                self._drop_unused(inode)

    def _find_debris(self, trees: int, names: Collection[str]) -> None:
        known = set(names)
        for name in names:
            if name.startswith(BUILDING_PREFIX) and is_abandoned(trees, name):
                self._debris.append(f"trees/{name}")
                self._remove_names(trees, name)  # what it put into the pool may serve the next try
            elif name.endswith(MARKER_SUFFIX) and name.removesuffix(MARKER_SUFFIX) not in known:
                self._add_debris("trees", name, trees)

    def _find_image_debris(self, images: int, names: Collection[str]) -> None:
        known = set(names)
        for name in names:
            if name.startswith(BUILDING_PREFIX) and is_abandoned(images, name):
                self._debris.append(f"erofs/{name}")
                self._remove_names(images, name)
            elif (of := _image_name(name)) and not {of + IMAGE_SUFFIX, of + MARKER_SUFFIX} <= known:
                self._add_debris("erofs", name, images)

    def _add_debris(self, folder: str, name: str, parent: int) -> None:
        self._debris.append(f"{folder}/{name}")
        self._freed += os.stat(name, dir_fd=parent, follow_symlinks=False).st_size

    def _remove_farm(self, trees: int, names: Collection[str], name: str) -> list[int]:
        self._trees.append(name)
        if name + MARKER_SUFFIX in names:
            self._freed += os.stat(name + MARKER_SUFFIX, dir_fd=trees, follow_symlinks=False).st_size
        return self._remove_names(trees, name)

    def _remove_image(self, images: int, name: str) -> list[int]:
        self._images.append(name)
        unused = []
        for suffix in (IMAGE_SUFFIX, MARKER_SUFFIX, REFS_SUFFIX):
            with suppress(FileNotFoundError):
                size = os.stat(name + suffix, dir_fd=images, follow_symlinks=False).st_size
                if suffix == REFS_SUFFIX:
                    for inode in self._led_to(images, name + suffix):
                        self._left[inode] -= 1
                        unused.append(inode)
                self._freed += size
        return [inode for inode in unused if self._left[inode] == 1]

    def _led_to(self, images: int, refs: str) -> list[int]:
        """Inodes of the pool files that an image without contents leads to."""
        with open(os.open(refs, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=images), "rb") as file:
            data = file.read()
        keys = (data[start : start + _KEY_SIZE] for start in range(0, len(data), _KEY_SIZE))
        return [inode for key in keys if (inode := self._numbers.get(pool_name(key))) is not None]

    def _remove_names(self, trees: int, name: str) -> list[int]:
        """Account for a folder's files losing their names in it; return pool files that may be unused then."""
        root = os.open(name, DIRECTORY, dir_fd=trees)
        shared: dict[int, None] = {}
        try:
            for _, status in _files(root):
                left = self._left.get(status.st_ino, status.st_nlink) - 1
                self._left[status.st_ino] = left
                if not left:
                    self._freed += status.st_size
                elif left == 1 and status.st_ino in self._pool:
                    shared[status.st_ino] = None
        finally:
            os.close(root)
        return list(shared)

    def _drop_unused(self, inode: int) -> None:
        if self._left[inode] == 1 and inode in self._pool:
            name, size = self._pool.pop(inode)
            self._left[inode] = 0
            self._unused.append(name)
            self._freed += size


def is_abandoned(parent: int, name: str) -> bool:
    """Say whether nobody builds in a folder any more."""
    try:
        descriptor = os.open(name, DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _by_use(trees: int, names: list[str], keep: Collection[str]) -> list[tuple[int, str]]:
    """List the trees that may go, with when they were last asked for.

    A folder without a description was left by a kill just before it; without content too, it frees nothing
    and stays.
    """
    known, found = set(names), []
    for name in names:
        if name.startswith(".") or name in keep:
            continue
        status = os.stat(name, dir_fd=trees, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            continue
        marker = name + MARKER_SUFFIX
        if marker in known:
            found.append((os.stat(marker, dir_fd=trees, follow_symlinks=False).st_mtime_ns, name))
        elif _holds_something(trees, name):
            found.append((0, name))
    return found


def _holds_something(trees: int, name: str) -> bool:
    descriptor = os.open(name, DIRECTORY, dir_fd=trees)
    try:
        return bool(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    try:
        return os.open(folder, DIRECTORY)
    except FileNotFoundError:
        return -1


def _execute(cache_root: Path, eviction: Eviction) -> None:
    for name in eviction.images:
        drop_image(cache_root / "erofs", name)
    for path in eviction.debris:
        folder, _, name = path.partition("/")
        parent = os.open(cache_root / folder, DIRECTORY)
        try:
            remove_tree(name, dir_fd=parent)
        finally:
            os.close(parent)
    with suppress(FileNotFoundError):
        trees = os.open(cache_root / "trees", DIRECTORY)
        try:
            for name in eviction.trees:
                _remove_farm(trees, name)
        finally:
            os.close(trees)
    for name in eviction.pool:
        os.unlink(cache_root / "pool" / name)
    for folder in ("trees", "erofs"):  # nobody builds: the cache is locked
        with suppress(FileNotFoundError):
            for name in os.listdir(cache_root / folder):
                if name.startswith(".") and name.endswith(LOCK_SUFFIX):
                    os.unlink(cache_root / folder / name)


def _remove_farm(trees: int, name: str) -> None:
    """Take a farm out of sight in one step, then remove it; a kill in between leaves debris."""
    folder, descriptor = make_building(trees, BUILDING_PREFIX)
    try:
        os.rename(name, f"{folder}/tree", src_dir_fd=trees, dst_dir_fd=trees)
        with suppress(FileNotFoundError):
            os.unlink(name + MARKER_SUFFIX, dir_fd=trees)
        remove_tree(folder, dir_fd=trees)
    finally:
        os.close(descriptor)
