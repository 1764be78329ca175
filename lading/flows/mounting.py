"""Trees to run from: mount, unmount, checkout.

With the overlay driver a mount stacks cached farms below the layer's write area; with vfs, or for
ordinary users, the layer gets a writable tree of its own. Either outlives the process; every mount is
counted in this boot's mount table.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lading.catalog import containers as catalog_containers
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.errors import InUse, InvalidInput, LadingError, LayerUnknown, StoreIsReadOnly, Unsupported
from lading.flows import areas, images, lowers, sealing, stores, views
from lading.flows.context import Context
from lading.flows.tidying import tidying
from lading.idmaps import NO_MAPS, MapRequest, Maps
from lading.materialize import mounts as kernel
from lading.materialize.cachelock import cache_lock
from lading.materialize.holders import holders
from lading.materialize.mounttable import MountRecord
from lading.materialize.shift import namespace
from lading.objects.durable import make_dir
from lading.values import Container, Entry, Image, Layer

#: Lowerdirs the kernel takes in one overlay, less room for the upper's own and an empty one.
LOWERDIRS_MAX: Final = 480

#: Descriptors that a mount takes beside one for each lowerdir: locks, the epoch, the catalog, objects that are read.
_OTHER_DESCRIPTORS: Final = 20


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mounted layer."""

    layer: str
    path: Path
    count: int


def target_of(context: Context, ref: str) -> tuple[Layer, Container | None]:
    """Resolve what is to be mounted: a container means its layer."""
    with context.catalog.read() as conn:
        found = catalog_names.resolve(conn, "container", ref)
        container = catalog_containers.get_container(conn, found) if found is not None else None
    layer = stores.find_layer(context, ref) if container is None else stores.layer_by_id(context, container.layer)
    if layer is None:
        raise LayerUnknown()
    return layer, container


@contextmanager
def held(context: Context, layer_id: str, verb: str) -> Iterator[MountRecord | None]:
    """Hold a layer's lock; hand out its live mount, if it has one.

    Raises:
        MountedElsewhere: it has one in another mount namespace.
    """
    with areas.locked(context, [layer_id], verb):
        yield areas.mount_here(context, layer_id)


@dataclass(frozen=True, slots=True)
class MountWish:
    """How a layer is to be shown."""

    read_only: bool = False
    volatile: bool = False
    label: str = ""
    options: tuple[str, ...] = ()
    maps: Maps = NO_MAPS
    flatten: bool = False


def mount(context: Context, ref: str, *, label: str, options: Sequence[str] = (), flatten: bool = False) -> Path:
    """Mount a layer or a container's layer, writable; layers of a split-off image store read-only."""
    layer, container = target_of(context, ref)
    if layer.read_only:
        raise StoreIsReadOnly("mounting read/only store images is not allowed")
    maps = Maps(layer.uidmap, layer.gidmap)
    chosen = tuple(options)
    volatile = False
    if container is not None:
        wanted = Maps(container.uidmap, container.gidmap)
        if wanted != maps:
            if not context.shifts:
                raise InvalidInput(f"cannot mount layer {layer.id}: shifting not enabled")
            maps = wanted
        chosen = chosen or tuple(container.flags.get("MountOpts") or ())
        volatile = bool(container.flags.get("Volatile")) and not context.settings.disable_volatile
    wish = MountWish(
        read_only=bool(layer.origin), volatile=volatile, label=label or layer.mount_label,
        options=chosen or context.settings.mount_options, maps=maps, flatten=flatten,
    )  # fmt: skip
    return _mount(context, layer, wish)


def maps_of(context: Context, layer: Layer) -> Maps:
    """The maps that a layer is shown with: its container's, where owners are shifted at mount time."""
    with context.catalog.read() as conn:
        found = catalog_containers.container_of_layer(conn, layer.id)
        container = catalog_containers.get_container(conn, found) if found is not None else None
    if container is not None:
        return Maps(container.uidmap, container.gidmap)
    return Maps(layer.uidmap, layer.gidmap)


def mount_image(context: Context, ref: str, *, label: str, options: Sequence[str] = (), flatten: bool = False) -> Path:
    """Mount an image's top layer, read-only and with its owners as they are."""
    if "rw" in options:
        raise InvalidInput(' "rw" option not supported')
    image = images.get(context, ref)
    layer = unmapped_top(context, image)
    if layer.read_only and layer.uidmap:
        raise InvalidInput("cannot create an image with canonical UID/GID mappings in a read-only store")
    chosen = tuple(option for option in options if option != "ro") or context.settings.mount_options
    return _mount(context, layer, MountWish(read_only=True, label=label, options=chosen, flatten=flatten))


def unmapped_top(context: Context, image: Image) -> Layer:
    """An image's top layer without ID maps: itself, or the copy that has none, made when it is missing."""
    from lading.flows import containers

    if not image.layer:
        raise LayerUnknown(f"image {image.id} has no layer")
    top = stores.layer_by_id(context, image.layer)
    if top is None:
        raise LayerUnknown()
    for layer_id in (top.id, *image.mapped_layers):
        layer = stores.layer_by_id(context, layer_id)
        if layer is not None and not layer.uidmap and not layer.gidmap:
            return layer
    if image.origin or top.origin:
        return top
    context.need_writable()
    with context.catalog.write("mount") as tx:
        made = containers.layer_for_maps(context, tx, image, top, MapRequest(host_uids=True, host_gids=True))
    return made


def _mount(context: Context, wanted: Layer, wish: MountWish) -> Path:
    _settle_ancestors(context, wanted)
    with held(context, wanted.id, "mount") as record:
        if record is not None:
            return context.mount_table.add(wanted.id).path
        context.need_writable()
        layer = stores.layer_by_id(context, wanted.id, wanted.origin)
        if layer is None:
            raise LayerUnknown()
        adopted = _clear_stray_mount(context, layer)
        if adopted is not None:
            return adopted
        if not context.asked_driver and context.abilities.doubtful:
            cache = context.layout.cache
            raise Unsupported(f"what can be mounted could not be tried out: {cache} is full, or cannot be written")
        if context.driver == "vfs" and any(option != "ro" for option in wish.options):
            raise InvalidInput("vfs driver does not support mount options")
        kind = "upper" if context.driver == "overlay" else "tree"
        written = "" if wish.read_only and kind == "upper" else kind
        if layer.write_kind not in ("", written) and not layer.origin:
            layer = sealing.seal_locked(context, layer.id)
        with stores.epochs(context):
            if kind == "tree":
                return _provide_tree(context, layer, wish)
            return _mount_overlay(context, layer, wish)


def _clear_stray_mount(context: Context, layer: Layer) -> Path | None:
    """Remove a mount that has no record, as a kill between the two leaves it; take it over when it is in use."""
    target = context.mount_table.mount_point(layer.id)
    if not kernel.is_mounted(target):
        return None
    try:
        kernel.unmount(target)
    except InUse:
        used = [areas.current(context, layer)] if layer.write_kind else []
        return context.mount_table.put(layer.id, target, source=f"lading:{layer.id}", areas=used, complete=False).path
    return None


def _settle_ancestors(context: Context, layer: Layer) -> None:
    """Seal what nobody writes to any more below a layer; what is mounted, or in another store, stays live."""
    for step in views.chain_of(context, layer)[1:]:
        if not step.origin:
            sealing.seal_if_idle(context, step)


def _mount_overlay(context: Context, layer: Layer, wish: MountWish) -> Path:
    with cache_lock(context.layout.cache, wait_s=context.settings.wait_s):  # no view goes before it is mounted
        while True:
            try:
                path = _stack(context, layer, wish)
                break
            except areas.Moved:  # an ancestor was sealed meanwhile
                continue
    if context.settings.cache_budget:
        from lading.flows import caching

        caching.settle(context)
    return path


def views_of(context: Context, layer: Layer, *, flatten: bool = False) -> list[lowers.Lower]:
    """Make what a read-only mount of a layer would be stacked from; the caller holds the locks."""
    limit = _flatten_limit(context)
    return lowers.lowerdirs(context, layer, maximum=limit, maps=Maps(layer.uidmap, layer.gidmap), flatten=flatten)


def _flatten_limit(context: Context) -> int:
    """Contents of a chain that are stacked one by one: each takes a descriptor until the stack is mounted."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = LOWERDIRS_MAX
    if soft != resource.RLIM_INFINITY and soft < 2 * LOWERDIRS_MAX:
        most = max(1, min(most, soft - len(os.listdir("/proc/self/fd")) - _OTHER_DESCRIPTORS))
    return min(context.settings.flatten_depth or most, most)


def layer_of_any(context: Context, ref: str) -> Layer:
    """The layer that shows a record of any kind."""
    try:
        return target_of(context, ref)[0]
    except LayerUnknown:
        image = images.find(context, ref)
        if image is None:
            raise
        if not image.layer:
            raise LayerUnknown(f"image {image.id} has no layer") from None
        found = stores.layer_by_id(context, image.layer)
        if found is None:
            raise
        return found


def _stack(context: Context, layer: Layer, wish: MountWish) -> Path:
    limit = _flatten_limit(context)
    found = lowers.lowerdirs(context, layer, maximum=limit, maps=wish.maps, flatten=wish.flatten)
    # Live uppers of this store; another store keeps records of its own.
    used = [lower.path for lower in found if not lower.name and lower.path.is_relative_to(context.layout.layers)]
    upper = work = None
    if not wish.read_only:
        if layer.write_kind != "upper":
            _discard_stale(context, layer)
        area = areas.ensure(context, layer)
        areas.set_maps(context, layer, area, wish.maps)
        upper, work = area / "upper", area / "work"
        _prepare_upper(layer, upper, wish.maps)
        _fresh_folder(context, work)
        used.append(area)
        _note_write_kind(context, layer, "upper")
    if wish.read_only or not found:
        found = [lowers.empty_root(context, layer, wish.maps), *found]
    if wish.read_only and len(found) < 2:
        found.append(lowers.empty_root(context, replace(layer, root_mode=0o700)))
    target = context.mount_table.mount_point(layer.id)
    settings, attributes = kernel.mount_options(wish.options)
    if wish.label:
        settings["context"] = wish.label
    with _namespace(found, wish.maps) as namespace_fd:
        stacked = [
            kernel.LowerDir(
                lower.path, image=lower.image, namespace=namespace_fd if lower.shifted else -1, data=lower.data
            )
            for lower in found
        ]
        kernel.mount_overlay(
            stacked, upper, work, target, source=f"lading:{layer.id}", read_only=wish.read_only or "ro" in wish.options,
            volatile=wish.volatile or "volatile" in wish.options, options=settings, attributes=attributes,
            abilities=context.abilities,
        )  # fmt: skip
    try:
        return context.mount_table.put(
            layer.id, target, source=f"lading:{layer.id}", areas=[_area_of(context, path) for path in used],
            views=[lower.name for lower in found if lower.name],
        ).path  # fmt: skip
    except BaseException:
        with suppress(OSError, LadingError):  # without a record nobody would give it back
            kernel.unmount(target)
        raise


@contextmanager
def _namespace(found: Sequence[lowers.Lower], maps: Maps) -> Iterator[int]:
    """The namespace that has the maps, if the mount is to shift the owners of anything."""
    if not any(lower.shifted for lower in found):
        yield -1
        return
    descriptor = namespace(maps.uid, maps.gid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _area_of(context: Context, path: Path) -> Path:
    """The write area (``layers/ID/N``) that a path lies in."""
    layer_id, number, *_ = path.relative_to(context.layout.layers).parts
    return context.layout.layers / layer_id / number


def _prepare_upper(layer: Layer, upper: Path, maps: Maps) -> None:
    """Make an upper directory whose root has the layer's own attributes, and belongs to the container's root."""
    if not upper.is_dir():
        make_dir(upper)
        os.chmod(upper, layer.root_mode)
    mode = os.lstat(upper).st_mode & 0o7777
    os.chown(upper, *maps.root)
    os.chmod(upper, mode)  # a change of owner may take bits away


def _discard_stale(context: Context, layer: Layer) -> None:
    """Remove what lies where a layer's first write area is to be: a deleted layer of the same id left it.

    Raises:
        InUse: a mount that was not to be found when that layer was deleted uses it still.
    """
    area = areas.current(context, layer)
    if area.is_dir():
        if (layer.id, area.name) in areas.in_use(context).areas:
            raise InUse(f"{area} is in use by a mount")
        areas.discard(context, area)


def _fresh_folder(context: Context, folder: Path) -> None:
    """Give overlay a scratch folder that no earlier mount has used."""
    if folder.is_dir():
        areas.discard(context, folder)
    make_dir(folder)


def _note_write_kind(context: Context, layer: Layer, kind: str) -> None:
    """Record that a layer has a write area, for good, before anything can be written to it."""
    if layer.write_kind == kind:
        return
    with context.catalog.write("mount", durable=True) as tx:
        present = catalog_layers.get_layer(tx.conn, layer.id)
        if present is None:
            raise LayerUnknown()
        catalog_layers.update_layer(tx, replace(present, write_kind=kind))


def _provide_tree(context: Context, layer: Layer, wish: MountWish) -> Path:
    """Give a layer a writable tree of its own, or the one it has."""
    from lading.materialize.copy import copy_tree, write_stat_index

    area = areas.ensure(context, layer)
    areas.set_maps(context, layer, area, wish.maps)
    tree = area / "tree"
    recorded = not layer.origin  # a layer of another store gets a copy that goes with the mount
    if layer.write_kind != "tree" or not recorded:
        if tree.is_dir():
            areas.discard(context, tree)
        stack = views.stack(context, layer, live := views.LiveFiles(context.objects))
        entries = wish.maps.shown(views.with_root(layer, stack.tree()))
        report = copy_tree(tree, entries, live, as_root=os.geteuid() == 0)
        write_stat_index(area / "index", report.index)
        context.warn_of(report.warnings)
        if recorded:
            _note_write_kind(context, layer, "tree")
    return context.mount_table.put(layer.id, tree, source="", areas=[area]).path


def unmount(context: Context, ref: str, *, force: bool) -> bool:
    """Give one mount back, or all."""
    layer = _unmountable(context, ref)
    return True if layer is None else _unmount(context, layer, force=force)


def _unmount(context: Context, layer: Layer, *, force: bool) -> bool:
    with held(context, layer.id, "unmount") as record:
        if record is not None and record.count > 1 and not force:
            context.mount_table.drop(layer.id)
            return False
        _detach(context, layer.id, record, force=force)
        if layer.origin:
            with tidying(f"write areas of layer {layer.id}"):
                areas.remove_unused(context, layer.id, keep=None)
            return True
        with context.catalog.read() as conn:
            present = catalog_layers.get_layer(conn, layer.id)
            built_upon = bool(catalog_layers.children(conn, layer.id) or catalog_layers.images_of_layer(conn, layer.id))
        if present is not None and built_upon and context.writable:
            with tidying(f"sealing layer {layer.id}", later="it is unmounted, and is sealed when it is built on"):
                sealing.seal_locked(context, layer.id)
        return True


def unmount_image(context: Context, ref: str, *, force: bool) -> bool:
    """Give one mount of an image back, or all."""
    image = images.get(context, ref)
    layer = _layer_shown_for(context, image)
    return True if layer is None else _unmount(context, layer, force=force)


def _unmountable(context: Context, ref: str) -> Layer | None:
    """Resolve what is to be unmounted; an image means its top layer."""
    try:
        return target_of(context, ref)[0]
    except LayerUnknown:
        image = images.find(context, ref)
        if image is None:
            raise
    return _layer_shown_for(context, image)


def _layer_shown_for(context: Context, image: Image) -> Layer | None:
    """The layer by which an image is mounted: the first copy without maps, else the top layer itself."""
    return next(
        (
            layer
            for layer_id in (*image.mapped_layers, image.layer)
            if (layer := stores.layer_by_id(context, layer_id)) is not None
            and (layer_id == image.layer or not (layer.uidmap or layer.gidmap))
        ),
        None,
    )


def _detach(
    context: Context, layer_id: str, record: MountRecord | None, *, force: bool = False, keep: bool = True
) -> None:
    """Really unmount, whatever the count; nothing changes when somebody works in it.

    What was written is synced, unless it is not to be kept. By force a view that nothing can be written to goes although
    it is in use: whoever is in it may stay there.

    Raises:
        InUse: with the processes that do.
        MountedElsewhere: it was made in another mount namespace and is still there; it is gone from ours.
    """
    target = record.path if record is not None else context.mount_table.mount_point(layer_id)
    if record is not None and keep:
        for area in record.areas:
            if area.is_dir():
                kernel.sync_filesystem(area)
    if (record is None or record.source) and kernel.is_mounted(target):
        try:
            kernel.unmount(target)
        except InUse:
            if not force or record is None or record.areas:
                raise
            kernel.detach(target)
        if record is not None and (left := context.mount_table.seen_elsewhere(record)) != "":
            if left:
                raise areas.MountedElsewhere(layer_id, left)
            return  # its record stays, and with it what it names, until that can be told
    elif record is not None and not record.source:
        names = holders(target)
        if names:
            raise InUse(f"{target} is in use by {', '.join(names)}")
    elif record is None and context.mount_table.is_doubtful(layer_id):
        return  # nor may its mount point go: that would detach it, in whatever namespace it is
    if record is not None and record.source:
        with tidying(f"mount record of layer {layer_id}", later="it counts for nothing"):
            context.mount_table.remove(layer_id)
    else:  # of a tree the record is all there is
        context.mount_table.remove(layer_id)


def unmount_all(context: Context, layer_id: str, written: list[Path]) -> None:
    """Unmount a layer that is about to be deleted; the caller holds its lock.

    Args:
        context: the store.
        layer_id: which.
        written: gets its write areas, which are not synced.
    """
    record = areas.mount_here(context, layer_id)
    if record is not None:
        written += [area for area in record.areas if area.is_dir()]
    if record is not None or kernel.is_mounted(context.mount_table.mount_point(layer_id)):
        _detach(context, layer_id, record, keep=False)


def mounted(context: Context, ref: str) -> int:
    """Count the mounts of a layer or container."""
    layer, _ = target_of(context, ref)
    record = context.mount_table.get(layer.id)
    return record.count if record is not None else 0


def mounts(context: Context) -> list[Mounted]:
    """List everything mounted in this boot."""
    return [Mounted(record.layer, record.path, record.count) for record in context.mount_table.records()]


def unpack_onto(context: Context, record: MountRecord, entries: Sequence[Entry]) -> None:
    """Write a content's files through the mount point of a mounted layer."""
    from lading.materialize.unpack import unpack

    maps = areas.maps_of(record.areas[-1]) if record.areas else NO_MAPS
    context.warn_of(unpack(record.path, maps.shown(entries), context.reader))
