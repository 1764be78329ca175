"""What live mounts use of a store: its write areas, its cached views.

Records say it. Where one is missing, lost with the run root or by a kill before it was written, the kernel's mount table
says as much as it knows: folders by their paths, but images, and folders whose owners are shifted, not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.materialize.livemounts import LiveMounts
from lading.materialize.mounts import MountInfo, unescaped
from lading.materialize.mounttable import MountTable

#: Overlay's options that name what a mount is made from, one path each.
_PATHS: Final = frozenset({"lowerdir+", "datadir+", "upperdir", "workdir"})


@dataclass(frozen=True, slots=True)
class Used:
    """What may not be removed now. It says nothing of mounts yet to come: the caller keeps those away."""

    areas: frozenset[tuple[str, str]]  #: write areas, by layer and number, whatever path leads to them
    views: frozenset[str]  #: names in the cache
    all: bool  #: a mount of this store may use anything of it

    def has_area(self, area: Path) -> bool:
        """Tell whether a write area (``…/ID/N``) may be in use."""
        return self.all or (area.parent.name, area.name) in self.areas


def used(table: MountTable, layers: Path, trees: Path) -> Used:
    """Tell what live mounts use, in this mount namespace and, as far as there are records, in others.

    Args:
        table: the store's records.
        layers: folder of its write areas.
        trees: folder of its farms.
    """
    live = LiveMounts()
    records = table.possible(live)
    areas = {(area.parent.name, area.name) for record in records for area in record.areas}
    views = {name for record in records for name in record.views}
    whole = [record for record in records if record.source and record.complete]
    known = {record.device for record in whole} | {os.path.realpath(record.path) for record in whole}
    points = Path(os.path.realpath(table.points))
    unknown = any(record.source and not record.complete for record in records)
    for mount in live.here:
        if mount.fstype != "overlay" or not mount.source.startswith("lading:"):
            continue
        ours = mount.path.is_relative_to(points) and mount.device not in known and str(mount.path) not in known
        for path in _paths(mount):
            if not path.is_absolute() or path.is_relative_to("/proc"):
                unknown = unknown or ours  # a descriptor that was closed long ago
            elif path.name in ("upper", "work"):
                area = (path.parent.parent.name, path.parent.name)
                if _same(path.parent, layers.joinpath(*area)):
                    areas.add(area)
            elif path.parent.name == trees.name and _same(path, trees / path.name):
                views.add(path.name)
    return Used(frozenset(areas), frozenset(views), unknown)


def _paths(mount: MountInfo) -> Iterator[Path]:
    """The paths that an overlay was given, as the kernel keeps them: seen by whoever mounted it."""
    for option in mount.options.split(","):
        key, _, value = option.partition("=")
        if key in _PATHS:
            yield Path(unescaped(value))
        elif key == "lowerdir":
            yield from (Path(part) for part in unescaped(value).split(":") if part)


def _same(found: Path, ours: Path) -> bool:
    """Tell whether a path leads to a folder of ours; one that leads nowhere here may have, under another name."""
    try:
        there = os.stat(ours)
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.stat(found), there)
    except OSError:
        return True
