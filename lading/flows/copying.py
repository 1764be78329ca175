"""Copying files and folders into a layer, out of one, or between two, through their mounts.

Paths are resolved as if the layer's tree were the whole filesystem: a link to ``/etc`` in it means its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading import private
from lading.errors import InvalidInput, LadingError
from lading.flows import mounting, stores, views
from lading.flows.context import Context
from lading.idmaps import NO_MAPS, Maps
from lading.materialize.beneath import open_beneath
from lading.materialize.capture import capture_tree
from lading.materialize.unpack import unpack
from lading.values import PRESENT, Entry, Inode, printable

#: Links followed on the way to a path.
_HOPS_MAX: Final = 40

#: Attributes that say something about the place and not about the file.
_NOT_COPIED: Final = (b"trusted.overlay.", b"user.overlay.", b"security.selinux")


@dataclass(frozen=True, slots=True)
class _Place:
    """A path in a tree."""

    words: str  #: as the caller wrote it
    root: Path
    path: bytes  #: below the root, links resolved as far as it exists
    maps: Maps

    @property
    def absolute(self) -> Path:
        return self.root / os.fsdecode(self.path)


def copy(context: Context, sources: Sequence[str], target: str, *, chown: tuple[int, int] | None) -> None:
    """Copy each source onto the target, in order; the first that fails ends it.

    Args:
        context: the store.
        sources: ``LAYER:/path`` or a path on the host.
        target: the same. For a file it is the path to make or replace, for a folder the folder to merge into.
        chown: container IDs to give everything; None to keep the source's.

    Raises:
        LadingError: what failed, in the contract's words.
    """
    with ExitStack() as mounts:
        goal = mounts.enter_context(_placed(context, target))
        for source in sources:
            origin = mounts.enter_context(_placed(context, source))
            try:
                _copy_one(origin, goal, chown)
            except (OSError, LadingError) as error:
                raise InvalidInput(
                    f'error copying "{origin.words}" to "{goal.words}": {_reason(error, origin)}'
                ) from error


def _reason(error: Exception, origin: _Place) -> str:
    if isinstance(error, FileNotFoundError):
        return f"stat {printable(str(origin.absolute))}: no such file or directory"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)


@contextmanager
def _placed(context: Context, words: str) -> Iterator[_Place]:
    """Mount the layer that a path is in, for as long as it is used."""
    ref, colon, path = words.partition(":")
    if not colon:
        yield _Place(printable(words), Path("/"), _resolved(Path("/"), os.path.abspath(words)), NO_MAPS)
        return
    layer = stores.find_layer(context, ref)
    if layer is None:
        raise InvalidInput(f'error finding layer "{printable(ref)}": layer not known')
    try:
        root = mounting.mount(context, layer.id, label="")
    except LadingError as error:
        raise InvalidInput(f'error mounting layer "{layer.id}": {error}') from error
    try:
        maps = mounting.maps_of(context, layer)
        yield _Place(printable(words), root, _resolved(root, path), maps)
    finally:
        mounting.unmount(context, layer.id, force=False)


def _resolved(root: Path, path: str) -> bytes:
    """Follow links within a tree; what does not exist is taken as it is.

    Raises:
        OSError: ELOOP, or ENOTDIR on the way.
    """
    pending = os.fsencode(path).split(b"/")[::-1]
    names: list[bytes] = []
    hops = 0
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                names = names[:-1]
                continue
            target = _link(descriptor, b"/".join([*names, part]))
            if target is None:
                names.append(part)
                continue
            hops += 1
            if hops > _HOPS_MAX:
                raise InvalidInput(f"{printable(path)}: too many levels of symbolic links")
            if target.startswith(b"/"):
                names = []
            pending += target.split(b"/")[::-1]
    finally:
        os.close(descriptor)
    return b"/".join(names)


def _link(root: int, path: bytes) -> bytes | None:
    """Where a symlink points; None for anything else, there or not."""
    try:
        opened = open_beneath(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if stat.S_ISLNK(os.fstat(opened).st_mode):
            return os.readlink(b"", dir_fd=opened)
    finally:
        os.close(opened)
    return None


def _copy_one(origin: _Place, goal: _Place, chown: tuple[int, int] | None) -> None:
    status = os.lstat(origin.absolute)
    existing = _mode(goal.absolute)
    if stat.S_ISDIR(status.st_mode):
        if existing is not None and not stat.S_ISDIR(existing):
            raise InvalidInput(f"{goal.words} exists and is no directory")
        _copy_tree(origin, goal, chown, fresh=existing is None)
    elif stat.S_ISREG(status.st_mode):
        if existing is not None and stat.S_ISDIR(existing):
            raise InvalidInput(f"{goal.words} is a directory")
        _copy_file(origin, goal, chown)
    else:
        raise InvalidInput(f"{origin.words} is neither a file nor a directory")


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def _copy_tree(origin: _Place, goal: _Place, chown: tuple[int, int] | None, *, fresh: bool) -> None:
    live = views.LiveFiles(views.NoObjects())
    found = capture_tree(origin.absolute, {}, {}, live.store(origin.absolute), as_root=True)
    if fresh:
        _make_parents(goal)
        os.mkdir(goal.absolute, 0o755)
        os.chmod(goal.absolute, 0o755)  # noqa: S103 - as the contract says, whatever the umask
        _give(goal.absolute, goal.maps.to_host(*(chown or (0, 0))))
    entries = [_moved(entry, origin.maps, goal.maps, chown) for entry in found if entry.path]
    unpack(goal.absolute, entries, live)


def _copy_file(origin: _Place, goal: _Place, chown: tuple[int, int] | None) -> None:
    live = views.LiveFiles(views.NoObjects())
    descriptor = os.open(origin.absolute, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        digest = live.store(origin.absolute.parent)(descriptor, status.st_size) if status.st_size else b""
        names = [os.fsencode(name) for name in os.listxattr(descriptor)]
        xattrs = tuple((name, os.getxattr(descriptor, name)) for name in sorted(names))
    finally:
        os.close(descriptor)
    inode = Inode(
        "f",
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size,
        digest,
        xattrs=xattrs,
    )
    _make_parents(goal)
    parent = goal.absolute.parent
    entry = _moved(Entry(os.fsencode(goal.absolute.name), PRESENT, inode), origin.maps, goal.maps, chown)
    unpack(parent, [entry], live)


def _moved(entry: Entry, source: Maps, target: Maps, chown: tuple[int, int] | None) -> Entry:
    """An entry with the owner and the attributes it has at the target."""
    inode = entry.inode
    assert inode is not None
    owner = chown or source.to_container(inode.uid, inode.gid)
    uid, gid = target.to_host(*owner)
    xattrs = tuple(item for item in inode.xattrs if not item[0].startswith(_NOT_COPIED))
    return entry._replace(inode=inode._replace(uid=uid, gid=gid, xattrs=xattrs))


def _make_parents(goal: _Place) -> None:
    missing = []
    folder = goal.absolute.parent
    while _mode(folder) is None:
        missing.append(folder)
        folder = folder.parent
    for step in reversed(missing):
        private.make_folder(step)
        _give(step, goal.maps.to_host(0, 0))


def _give(path: Path, owner: tuple[int, int]) -> None:
    if os.geteuid() == 0:
        os.chown(path, *owner)
