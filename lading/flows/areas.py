"""Write areas: the folders that mounts write into, their locks, and how they go away.

A layer's areas are numbered; the record names the current one. What the record does not name, and no
mount uses, is debris and may go at any time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from blake3 import blake3

from lading import private
from lading.catalog import layers as catalog_layers
from lading.errors import Busy, Full, InUse, LadingError
from lading.flows.context import Context
from lading.flows.tidying import tidying
from lading.idmaps import NO_MAPS, Maps
from lading.locks import file_lock
from lading.materialize import mounts as kernel
from lading.materialize.beneath import remove_tree
from lading.materialize.inuse import Used, used
from lading.materialize.mounttable import MountRecord
from lading.objects.durable import make_dir, translating, write_durably
from lading.values import IDMap, Layer, check_record_id, printable

#: File beside an area's contents: the ID maps it is written under.
_MAPS: Final = "maps.json"

#: Lock files shared by all layers. They are never deleted, so their number must be bounded.
LOCK_BUCKETS: Final = 256


class MountedElsewhere(InUse):
    """The layer is mounted in another mount namespace, where its mount cannot be used or given back from here."""

    def __init__(self, layer_id: str, holder: str) -> None:
        """Name the layer and a process that sees the mount."""
        super().__init__(f"layer {layer_id} is mounted in another mount namespace, in use by {holder}")
        self.layer_id, self.holder = layer_id, holder


@contextmanager
def locked(context: Context, layer_ids: Iterable[str], verb: str) -> Iterator[None]:
    """Keep others from mounting, unmounting, sealing or deleting layers meanwhile.

    Locks die with their owner. They are taken in one order whatever the order of the arguments, before
    the catalog's writer lock and never after it.

    Args:
        context: the store.
        layer_ids: which.
        verb: what is done, for whoever has to wait.

    Raises:
        Busy: another process held one for longer than the store's wait limit.
    """
    folder = context.mount_table.folder / "locks"
    private.make_folders(folder)
    buckets = {blake3(layer_id.encode()).digest(1)[0] % LOCK_BUCKETS: layer_id for layer_id in layer_ids}
    with ExitStack() as stack:
        for bucket, layer_id in sorted(buckets.items()):
            path = folder / f"{bucket:02x}"
            stack.enter_context(file_lock(path, f"layer {layer_id}", verb, wait_s=context.settings.wait_s))
        yield


@contextmanager
def released(context: Context, layer_ids: Sequence[str]) -> Iterator[None]:
    """Unmount layers that are about to be deleted, and remove their areas once the block has succeeded.

    Raises:
        InUse: a process works in one of them; nothing was deleted.
    """
    from lading.flows import mounting

    with locked(context, layer_ids, "delete"):
        written: list[Path] = []
        try:
            for layer_id in layer_ids:
                mounting.unmount_all(context, layer_id, written)
            yield
        except BaseException:
            # They live on, unmounted: what was written to them is now as durable as unmounting makes it.
            for area in written:
                with tidying(f"sync of {area}", later="the kernel writes it in its own time"):
                    kernel.sync_filesystem(area)
            raise
        for layer_id in layer_ids:
            with tidying(f"write areas of layer {layer_id}"):
                remove_unused(context, layer_id, keep=_current_number(context, layer_id))


def _current_number(context: Context, layer_id: str) -> int | None:
    """Number of a layer's current area; None when the layer is gone."""
    with context.catalog.read() as conn:
        layer = catalog_layers.get_layer(conn, layer_id)
    return None if layer is None else layer.write_area


def current(context: Context, layer: Layer) -> Path:
    """Path of a layer's current area, there or not."""
    return context.layout.write_area(layer.id, layer.write_area)


class Moved(Exception):
    """A write area that was looked up has been sealed, or removed, meanwhile."""


class Use:
    """A write area that somebody reads from: it stays as long as this object lives, or its process."""

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor that holds the area's lock."""
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


def in_use(context: Context) -> Used:
    """What live mounts use of a store: the one question that everything which removes areas or views asks."""
    return used(context.mount_table, context.layout.layers, context.layout.trees)


def use(context: Context, layer: Layer) -> Use | None:
    """Keep a layer's current area from being removed, without waiting for anybody.

    Args:
        context: the store that has the layer.
        layer: its record as it was read.

    Returns:
        What holds the area; None when there is no folder.

    Raises:
        Moved: the record names another area by now.
    """
    try:
        descriptor = os.open(current(context, layer), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        held = None
    else:
        held = Use(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Moved from None  # it is being removed: nothing names it any more
    with context.catalog.read() as conn:
        present = catalog_layers.get_layer(conn, layer.id)
    if present is None or (present.write_area, present.write_kind) != (layer.write_area, layer.write_kind):
        raise Moved
    return held


def maps_of(area: Path) -> Maps:
    """The ID maps that an area is written under: its files have host IDs."""
    try:
        values = json.loads((area / _MAPS).read_bytes())
    except FileNotFoundError:
        return NO_MAPS
    return Maps(*(tuple(IDMap(*item) for item in values[kind]) for kind in ("uid", "gid")))


def set_maps(context: Context, layer: Layer, area: Path, maps: Maps) -> None:
    """Note the maps that an area is about to be written under.

    Raises:
        InUse: something was written to it under other maps.
    """
    known = maps_of(area)
    if known == maps:
        return
    if any((area / name).is_dir() and any((area / name).iterdir()) for name in ("upper", "tree")):
        raise InUse(f"layer {layer.id} was written to under other ID maps; seal it first")
    for name in ("upper", "tree"):
        if (area / name).is_dir():
            discard(context, area / name)
    values = {
        kind: [[item.container_id, item.host_id, item.size] for item in ranges]
        for kind, ranges in (("uid", maps.uid), ("gid", maps.gid))
    }
    write_durably(area / _MAPS, json.dumps(values).encode())


def ensure(context: Context, layer: Layer) -> Path:
    """Make the folder of a layer's current area."""
    folder = current(context, layer)
    if not folder.is_dir():
        make_dir(folder)
    return folder


def remove_unused(context: Context, layer_id: str, keep: int | None) -> int:
    """Remove a layer's areas except the one to keep and those that a mount uses.

    Args:
        context: the store.
        layer_id: whose areas; the caller holds its lock.
        keep: number of the current area; None when the layer is gone.

    Returns:
        Bytes removed.
    """
    folder = context.layout.layers / layer_id
    try:
        numbers = os.listdir(folder)
    except FileNotFoundError:
        return 0
    freed = 0
    for number in numbers:
        if keep is None or number != str(keep):
            freed += _remove_idle(context, folder / number)
    if not os.listdir(folder):
        folder.rmdir()
    return freed


def _remove_idle(context: Context, area: Path) -> int:
    """Remove an area unless somebody reads from it or a mount uses it; then a later collection does."""
    descriptor = os.open(area, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever is about to mount upon it holds it until there is a record: looked at only now.
        if in_use(context).has_area(area):
            return 0
        return discard(context, area)
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)


def discard(context: Context, folder: Path) -> int:
    """Move a folder into staging, then remove it, so that a kill leaves only debris.

    Where there is no room for that it is removed where it is: what nothing names is debris there, too.

    Returns:
        Bytes of the files removed.
    """
    from lading.objects.durable import Staging

    staging = None
    try:
        with translating(folder):
            staging = Staging(context.layout.staging)
            target = staging.path / "discarded"
            os.rename(folder, target)
    except Full:
        target = folder
    try:
        if staging is None:
            return remove_tree(target)
        freed = 0
        with tidying(str(target)):
            freed = remove_tree(target)
        return freed
    finally:
        if staging is not None:
            with tidying(str(staging.path)):
                staging.close()


def collect_debris(context: Context, *, dry_run: bool) -> tuple[int, list[str]]:
    """Remove areas that no record names and no mount uses.

    Returns:
        Bytes found, and a warning for each area that could not be removed, or whose layer is busy.
    """
    freed, warnings = 0, []
    for layer_id in _with_debris(context):
        try:
            with locked(context, [layer_id], "gc"):
                keep = _current_number(context, layer_id)
                if dry_run:
                    freed += _unused_bytes(context, layer_id, keep)
                    continue
                try:
                    freed += remove_unused(context, layer_id, keep)
                except (OSError, LadingError) as error:
                    warnings.append(f"write areas of layer {printable(layer_id)}: {error}")
        except Busy as error:  # mounted or sealed just now: the next collection looks again
            warnings.append(f"write areas of layer {printable(layer_id)}: {error}")
    return freed, warnings


def _unused_bytes(context: Context, layer_id: str, keep: int | None) -> int:
    """Bytes that :func:`remove_unused` would remove."""
    from lading.flows.accounting import files_below

    mounted = in_use(context)
    areas = (context.layout.layers / layer_id / number for number in _listed(context.layout.layers / layer_id))
    return sum(files_below(area) for area in areas if area.name != str(keep) and not mounted.has_area(area))


def _with_debris(context: Context) -> list[str]:
    """Layers whose folders may hold something that goes, by one comparison of the folders' names with the records.

    A layer that was never sealed has had no other area than its first: its folder is not even read.
    """
    folders = context.layout.layers
    names = [name for name in _listed(folders) if check_record_id(name) is None]
    with context.catalog.read() as conn:
        numbers = catalog_layers.write_areas(conn, names)
    return [
        name
        for name in names
        if name not in numbers or (numbers[name] and set(_listed(folders / name)) != {str(numbers[name])})
    ]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def mount_record(context: Context, layer_id: str) -> MountRecord | None:
    """The live mount of a layer, in whatever mount namespace; None when it is not mounted in this boot."""
    return context.mount_table.get(layer_id)


def mount_here(context: Context, layer_id: str) -> MountRecord | None:
    """The live mount of a layer, to do something with it.

    Raises:
        MountedElsewhere: it is mounted where we cannot reach it.
    """
    record = context.mount_table.get(layer_id)
    if record is not None and record.elsewhere:
        raise MountedElsewhere(layer_id, record.elsewhere)
    return record
