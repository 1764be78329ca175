"""Containers: a record and a writable layer, made and deleted together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lading import trees
from lading.catalog import containers as catalog_containers
from lading.catalog import images as catalog_images
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.errors import (
    ContainerUnknown,
    InvalidBigDataName,
    InvalidInput,
    LayerUnknown,
    NotAContainer,
    NotALayer,
    NotSupported,
)
from lading.flows import (
    areas,
    automaps,
    bigdata,
    directories,
    images,
    layers,
    sealing,
    stores,
    transient,
    views,
)
from lading.flows.accounting import files_below
from lading.flows.context import Context
from lading.flows.records import check_id, check_names, check_text
from lading.idmaps import NO_REQUEST, MapRequest, Maps, refuse_overlaps
from lading.values import Container, Image, Layer


def list_all(context: Context) -> list[Container]:
    """List all containers, oldest first."""
    with context.catalog.read() as conn:
        return catalog_containers.list_containers(conn)


def find(context: Context, ref: str) -> Container | None:
    """Look a container up, also by its layer's id; None when nothing answers."""
    with context.catalog.read() as conn:
        return find_in(conn, ref)


def find_in(conn: Connection, ref: str) -> Container | None:
    """Look a container up in a snapshot or transaction."""
    found = catalog_names.resolve(conn, "container", ref)
    return catalog_containers.get_container(conn, found) if found is not None else None


def get(context: Context, ref: str) -> Container:
    """Look a container up.

    Raises:
        ContainerUnknown: nothing answers to the reference.
    """
    found = find(context, ref)
    if found is None:
        raise ContainerUnknown()
    return found


@dataclass(frozen=True, slots=True)
class NewContainer:
    """What a caller says of a container to be made."""

    image: str = ""
    id: str = ""
    names: Sequence[str] = ()
    layer_id: str = ""
    metadata: str = ""
    volatile: bool = False
    request: MapRequest = NO_REQUEST
    mount_options: Sequence[str] = ()
    storage_options: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, object] = field(default_factory=dict)
    big_data: Mapping[str, bytes] = field(default_factory=dict)


def by_layer(context: Context, ref: str) -> Container:
    """Look up the container whose own layer this is.

    Raises:
        ContainerUnknown: it is no container's.
    """
    layer = stores.find_layer(context, ref)
    with context.catalog.read() as conn:
        found = catalog_containers.container_of_layer(conn, layer.id) if layer is not None else None
        container = catalog_containers.get_container(conn, found) if found is not None else None
    if container is None:
        raise ContainerUnknown()
    return container


def create(context: Context, wanted: NewContainer) -> Container:
    """Make a container and its writable layer in one commit, with whatever copy of the image's top layer its maps need."""
    context.need_writable()
    fresh = _described(context, wanted)
    check_id(wanted.layer_id, "layer")
    _refuse_storage_options(context, wanted.storage_options)
    if "" in wanted.big_data:
        raise InvalidBigDataName("can't set empty name for container big data item")
    return stores.settled(lambda: _create_once(context, wanted, fresh))


def _create_once(context: Context, wanted: NewContainer, fresh: Container) -> Container:
    with stores.snapshot(context):
        image = images.get(context, wanted.image) if wanted.image else None
        top = _top_of(context, image)
    if top is not None and top.origin == 0:
        sealing.seal_if_idle(context, top)
    with automaps.allotted(context, wanted.request, top) as request:
        if context.settings.transient:
            transient.claim(context)
        with context.epochs.shared() as epoch:
            items = bigdata.store_items(context, wanted.big_data, epoch)
            with context.catalog.write("create-container") as tx:
                container = _insert(context, tx, fresh, wanted.layer_id, image, top, request)
                bigdata.put_items(tx, "container", container.id, items)
                if context.settings.transient:
                    transient.note(tx, container.id, container.layer)
                made = catalog_containers.get_container(tx.conn, container.id)
                assert made is not None
                return made


def _refuse_storage_options(context: Context, options: Mapping[str, str]) -> None:
    """Refuse quotas: they need project quotas of XFS, which this version does not set.

    Raises:
        NotSupported: with what they would need.
    """
    if not options:
        return
    if context.driver == "vfs":
        raise NotSupported("--storage-opt is not supported for vfs")
    raise NotSupported("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")


def _described(context: Context, wanted: NewContainer) -> Container:
    """Check what a caller says of a new container."""
    flags = dict(wanted.flags)
    if ("MountLabel" in flags) != ("ProcessLabel" in flags):
        raise InvalidInput("ProcessLabel and Mountlabel must either not be specified or both specified")
    flags = {"MountLabel": "", "ProcessLabel": "", **flags}
    if wanted.mount_options:
        flags["MountOpts"] = list(wanted.mount_options)
    if wanted.volatile or context.settings.transient:
        flags["Volatile"] = True
    return Container(
        check_id(wanted.id, "container"), names=check_names(wanted.names), metadata=check_text(wanted.metadata, "metadata"),
        created_ns=time.time_ns(), flags=flags,
    )  # fmt: skip


def _top_of(context: Context, image: Image | None) -> Layer | None:
    """An image's top layer."""
    if image is None or not image.layer:
        return None
    top = stores.layer_by_id(context, image.layer)
    if top is None:
        raise LayerUnknown()
    stores.chain(context, top)  # a container on a broken chain could never be mounted
    return top


def _insert(
    context: Context,
    tx: WriteTransaction,
    fresh: Container,
    layer_id: str,
    image: Image | None,
    top: Layer | None,
    request: MapRequest,
) -> Container:
    if image is not None:
        present = stores.image_by_id(context, image.id)  # its copies may have become more since
        if present is None:
            raise images.unknown(image.id)
        if present.layer != image.layer:  # deleted and made anew
            raise stores.Moved
        image = present
    base = top
    if image is not None and top is not None:
        base = layer_for_maps(context, tx, image, top, request)
    inherited = Maps(base.uidmap, base.gidmap) if base is not None else Maps()
    maps = request.over(inherited)
    catalog_names.check_new(tx.conn, "container", fresh.id, fresh.names)
    refuse_overlaps(maps.uid)
    refuse_overlaps(maps.gid)
    layer = layers.insert(context, tx, Layer(layer_id, created_ns=fresh.created_ns), base, _exactly(maps))
    container = replace(
        fresh, id=fresh.id or catalog_names.new_id(tx.conn, "container"), image=image.id if image else "",
        layer=layer.id, uidmap=maps.uid, gidmap=maps.gid,
    )  # fmt: skip
    catalog_containers.create_container(tx, container)
    return container


def _exactly(maps: Maps) -> MapRequest:
    """A request for these maps and no inherited ones."""
    return MapRequest(maps, host_uids=not maps.uid, host_gids=not maps.gid)


def layer_for_maps(context: Context, tx: WriteTransaction, image: Image, top: Layer, request: MapRequest) -> Layer:
    """The copy of an image's top layer to build on: one with the very maps wanted, made when there is none.

    An image or a layer in a store that is only read gets no copies: the caller's own layer is shifted instead.
    """
    wanted = request.maps
    for layer_id in (top.id, *image.mapped_layers):
        layer = stores.layer_by_id(context, layer_id)
        if layer is not None and _fits(context, layer, request):
            return layer
    if image.origin != 0 or top.origin != 0:
        return top
    present = catalog_layers.get_layer(tx.conn, top.id)
    if present is None:
        raise LayerUnknown()
    fresh = layers.copied(Layer("", created_ns=time.time_ns(), mount_label=present.mount_label), present)
    parent = stores.layer_by_id(context, present.parent) if present.parent else None
    made = layers.insert(context, tx, fresh, parent, _exactly(wanted))
    catalog_images.add_mapped_layer(tx, image.id, made.id)
    return made


def _fits(context: Context, layer: Layer, request: MapRequest) -> bool:
    if context.shifts and not layer.uidmap and not layer.gidmap:
        return True
    if (request.host_uids and layer.uidmap) or (request.host_gids and layer.gidmap):
        return False
    return (layer.uidmap, layer.gidmap) == (request.maps.uid, request.maps.gid)


def size(context: Context, ref: str) -> int:
    """Sum a container's own changes, its big data and the files of both its directories.

    Raises:
        LayerUnknown: its layer is gone.
    """
    container = get(context, ref)
    layer = stores.layer_by_id(context, container.layer)
    if layer is None:
        raise LayerUnknown()
    own = trees.diff_size(views.stack(context, layer, views.LiveFiles(context.objects)).changes())
    data = sum(item.size for item in container.big_data)
    folders = [directories.place(context, "container", container.id, run=run) for run in (False, True)]
    return own + data + sum(files_below(folder) for folder in folders)


def delete(context: Context, ref: str, *, with_layer: bool = False) -> None:
    """Delete a container, its layer and its directories.

    Args:
        context: the store.
        ref: the container.
        with_layer: refuse when its layer is gone.

    Raises:
        NotAContainer: there is none.
        NotALayer: its layer is gone.
    """

    def delete_once() -> None:
        with context.catalog.read() as conn:
            container = find_in(conn, ref)
        if container is None:
            raise NotAContainer()

        def unmoved() -> None:
            with context.catalog.read() as conn:
                found = find_in(conn, ref)
            if found is None or found.id != container.id:
                raise stores.Moved

        delete_found(context, container.id, unmoved, with_layer=with_layer)

    stores.settled(delete_once)


def delete_found(context: Context, container_id: str, unmoved: Callable[[], None], *, with_layer: bool = False) -> None:
    """Delete a container that was looked up; see :func:`delete`.

    Args:
        context: the store.
        container_id: which.
        unmoved: called in the transaction; raises ``stores.Moved`` when another one was meant.
        with_layer: refuse when its layer is gone.
    """
    with context.catalog.read() as conn:
        container = catalog_containers.get_container(conn, container_id)
        if container is None:
            raise stores.Moved
        if with_layer and catalog_layers.get_layer(conn, container.layer) is None:
            raise NotALayer()
    context.need_writable()
    context.with_room(lambda: _delete(context, container, unmoved))
    directories.remove(context, "container", container.id)


def _delete(context: Context, container: Container, unmoved: Callable[[], None]) -> None:
    with areas.released(context, [container.layer]), context.catalog.write("delete-container", durable=True) as tx:
        unmoved()
        present = catalog_containers.get_container(tx.conn, container.id)
        if present is None:
            raise NotAContainer()
        catalog_containers.delete_container(tx, present.id)
        tx.conn.execute("DELETE FROM transient WHERE kind = 'container' AND record_id = ?", (present.id,))
        if catalog_layers.get_layer(tx.conn, present.layer) is not None:
            layers.delete_rows(tx, present.layer)
