"""A new catalog takes the old one's place; what was there is put aside, and nothing of it deleted.

The new one first gets a name beside the old one. From then on a step that is cut short is finished by whoever opens
the store next: the old catalog is there, or the new one is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lading.catalog.chain import segments
from lading.errors import Busy
from lading.flows.exclusive import refuse_open, writing
from lading.flows.tidying import tidying
from lading.objects.durable import fsync_dir, fsync_file, translating
from lading.objects.folder import FolderBackend
from lading.objects.layout import Layout

#: The database, its log, its shared memory.
_SUFFIXES: Final = ("", "-wal", "-shm")


def put_in_place(layout: Layout, built: Path, stamp: str, segment: int, packs: Sequence[str]) -> list[str]:
    """Rename a complete catalog into place.

    The old files get second names first, then lose their own, the database before its log, so that at no instant
    a database stands beside another one's log, or nothing of the old is left.

    Args:
        layout: the store's, held alone.
        built: the new database, closed, without a log.
        stamp: for the names of what is put aside.
        segment: journal segments before this one are put aside, too.
        packs: names of packs that are put aside: they cannot be read, and a collection would take them for debris.

    Returns:
        Paths of what was put aside.

    Raises:
        Busy: a process came to open the catalog meanwhile; everything is as it was.
    """
    with translating(layout.root):
        os.chmod(built, 0o600)
        fsync_file(built)
        aside = _free_name(layout, stamp)
        kept = [suffix for suffix in _SUFFIXES if _give_name(_beside(layout, suffix), Path(f"{aside}{suffix}"))]
        moved = _set_packs_aside(layout, packs)
        os.rename(built, layout.new_catalog)
        fsync_dir(layout.root)
        known = set(kept)
        _take_names(layout, aside, kept)
        try:
            refuse_open(layout, Path(f"{aside}-shm"))
            written = "-wal" in kept and "-wal" not in known and Path(f"{aside}-wal").stat().st_size
            if written or _beside(layout, "-wal").exists():
                raise Busy(f"store {layout.root} is being opened by another process; try again")
        except Busy:
            _give_back(layout, aside, kept, moved)
            raise
        os.rename(layout.new_catalog, layout.catalog_db)
        fsync_dir(layout.root)
    return (
        [str(path) for path in moved.values()]
        + [f"{aside}{suffix}" for suffix in kept]
        + set_segments_aside(layout, segment, stamp)
    )


def settle(layout: Layout, wait_s: float) -> None:
    """Finish what a rebuild began that was stopped while the new catalog took its place.

    Args:
        layout: of a store that is about to be opened for writing.
        wait_s: longest wait for a rebuild that goes on.

    Raises:
        Busy: a rebuild takes longer than that.
    """
    if not os.path.lexists(layout.new_catalog):
        return
    with writing(layout, "finish a rebuild", wait_s):
        settle_alone(layout)


def settle_alone(layout: Layout) -> bool:
    """Do so while the writer lock is held.

    Returns:
        Whether a new catalog was put in place.
    """
    if not os.path.lexists(layout.new_catalog):
        return False
    with translating(layout.root):
        # An empty file is what opening a catalog that was missing leaves behind.
        if layout.catalog_db.exists() and layout.catalog_db.stat().st_size:
            os.unlink(layout.new_catalog)  # it may know less by now than the one that is there
            fsync_dir(layout.root)
            return False
        for suffix in _SUFFIXES:
            with suppress(FileNotFoundError):
                os.unlink(_beside(layout, suffix))
        os.rename(layout.new_catalog, layout.catalog_db)
        fsync_dir(layout.root)
    return True


def _take_names(layout: Layout, aside: Path, kept: list[str]) -> None:
    """Remove the old catalog's own names; what was in it has others, or gets them now if it has just come."""
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            if suffix in kept or not _beside(layout, suffix).stat().st_size:
                os.unlink(_beside(layout, suffix))
            else:
                os.rename(_beside(layout, suffix), f"{aside}{suffix}")
                kept.append(suffix)


def _give_back(layout: Layout, aside: Path, kept: Sequence[str], moved: Mapping[Path, Path]) -> None:
    """Put everything back as it was, the database last."""
    for suffix in reversed(kept):
        with suppress(FileNotFoundError):
            os.unlink(_beside(layout, suffix))
        os.link(f"{aside}{suffix}", _beside(layout, suffix), follow_symlinks=False)
    fsync_dir(layout.root)
    os.unlink(layout.new_catalog)
    for suffix in kept:
        os.unlink(f"{aside}{suffix}")
    for path, target in moved.items():
        os.rename(target, path)
    fsync_dir(layout.root)


def _beside(layout: Layout, suffix: str) -> Path:
    return Path(f"{layout.catalog_db}{suffix}")


def _free_name(layout: Layout, stamp: str) -> Path:
    number = 0
    while True:
        path = layout.root / f"{layout.catalog_db.name}.lost-{stamp}{f'-{number}' if number else ''}"
        if not any(Path(f"{path}{suffix}").exists() for suffix in _SUFFIXES):
            return path
        number += 1


def _give_name(source: Path, target: Path) -> bool:
    """Give a file with anything in it a second name.

    Returns:
        Whether there was one.
    """
    try:
        if not os.lstat(source).st_size:
            return False
    except FileNotFoundError:
        return False
    os.link(source, target, follow_symlinks=False)
    return True


def set_segments_aside(layout: Layout, before: int, stamp: str) -> list[str]:
    """Rename journal segments with a hole, once a new one has replaced them: where they stay, nothing looks at them."""
    kept: list[str] = []
    with tidying("replaced segments of the journal", later="they go with a later snapshot"):
        for path in segments(layout.journal):
            if int(path.stem) < before:
                target = path.with_name(f"{path.name}.lost-{stamp}")
                os.rename(path, target)
                kept.append(str(target))
        if kept:
            fsync_dir(layout.journal)
    return kept


def _set_packs_aside(layout: Layout, names: Sequence[str]) -> dict[Path, Path]:
    """Rename packs.

    Returns:
        Their paths, each with the new one.
    """
    moved = {}
    for name in names:
        path = FolderBackend(layout.packs).path(name)
        moved[path] = path.with_name(f"{path.name}.damaged")
        os.rename(path, moved[path])
        fsync_dir(path.parent)
    return moved
