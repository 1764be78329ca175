"""Layers: create, import, apply, look up, delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lading.catalog import containers as catalog_containers
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.errors import (
    DuplicateID,
    InvalidBigDataName,
    InvalidInput,
    LayerHasChildren,
    LayerUnknown,
    LayerUsedByContainer,
    LayerUsedByImage,
    NotALayer,
    ParentIsContainer,
)
from lading.flows import areas, bigdata, sealing, stores
from lading.flows.context import Context, Progress
from lading.flows.records import check_id, check_names, check_text
from lading.idmaps import NO_MAPS, NO_REQUEST, MapRequest, Maps
from lading.values import Layer, Readable

if TYPE_CHECKING:
    from lading.flows.ingest import Ingested


@dataclass(frozen=True, slots=True)
class NewLayer:
    """What a caller says of a layer to be made."""

    parent: str = ""
    id: str = ""
    names: Sequence[str] = ()
    label: str = ""
    metadata: str = ""
    request: MapRequest = NO_REQUEST
    read_only: bool = False
    template: str = ""
    original_digest: str = ""
    original_size: int = 0
    flags: Mapping[str, Any] = field(default_factory=dict)
    big_data: Mapping[str, bytes] = field(default_factory=dict)


def list_all(context: Context) -> list[Layer]:
    """List all layers, oldest first, those of other stores behind those of the main one."""
    found = []
    for origin, part in enumerate(context.stores):
        with part.catalog.read() as conn:
            found += [stores.marked_layer(context, layer, origin) for layer in catalog_layers.list_layers(conn)]
    return found


def find(context: Context, ref: str) -> Layer | None:
    """Look a layer up; None when nothing answers."""
    return stores.find_layer(context, ref)


def get(context: Context, ref: str) -> Layer:
    """Look a layer up.

    Raises:
        LayerUnknown: nothing answers to the reference.
    """
    layer = stores.find_layer(context, ref)
    if layer is None:
        raise LayerUnknown()
    return layer


def get_writable(context: Context, ref: str) -> Layer:
    """Look a layer up among those that can be changed, or raise ``LayerUnknown``."""
    layer = stores.find_layer(context, ref, writable=True)
    if layer is None:
        raise LayerUnknown()
    return layer


def by_digest(context: Context, column: catalog_layers.DigestColumn, digest: str) -> list[Layer]:
    """List the layers that have a digest.

    Raises:
        InvalidInput: the digest is malformed.
        LayerUnknown: none has it.
    """
    from lading.flows.ingest import check_digest

    what = {"compressed_digest": "compressed layers", "diff_digest": "layers", "toc_digest": "TOC"}[column]
    try:
        check_digest(digest or ":")
    except InvalidInput as error:
        raise InvalidInput(f'looking for {what} matching digest "{digest}": {error}') from error
    found = []
    for origin, part in enumerate(context.stores):
        with part.catalog.read() as conn:
            hits = catalog_layers.layers_by_digest(conn, column, digest)
            found += [stores.marked_layer(context, layer, origin) for layer in hits]
    if not found:
        raise LayerUnknown()
    return found


def create(context: Context, wanted: NewLayer) -> Layer:
    """Make an empty layer, or a copy of a template.

    Raises:
        DuplicateID: its ``existing`` is the layer that has the id.
    """
    target, fresh, parent = _prepared(context, wanted)
    if wanted.template:
        fresh = _like_template(context, wanted, fresh, parent, target)
    with target.epochs.shared() as epoch:
        items = bigdata.store_items(target, wanted.big_data, epoch)
        with stores.changing(context, target, "create-layer") as tx:
            layer = insert(context, tx, fresh, parent, wanted.request)
            bigdata.put_items(tx, "layer", layer.id, items)
            return _as_seen(context, target, tx, layer.id)


def _prepared(context: Context, wanted: NewLayer) -> tuple[Context, Layer, Layer | None]:
    """Check what a caller says of a new layer.

    Returns:
        The store it goes to, the layer without what the transaction gives it, and its parent.
    """
    target = context.image_home if wanted.read_only else context
    target.need_writable()
    if "" in wanted.big_data:
        raise InvalidBigDataName("can't set empty name for layer big data item")
    layer = fresh(wanted)
    parent = get(context, wanted.parent) if wanted.parent else None
    if parent is not None:
        with context.catalog.read() as conn:
            if catalog_containers.container_of_layer(conn, parent.id) is not None:
                raise ParentIsContainer()
    refuse_taken(context, layer)
    if parent is not None and parent.origin == 0:
        sealing.seal_if_idle(context, parent)
    return target, layer, parent


def fresh(wanted: NewLayer) -> Layer:
    """Check what a caller says of a new layer itself."""
    return Layer(
        check_id(wanted.id, "layer"), names=check_names(wanted.names), mount_label=check_text(wanted.label, "label"),
        metadata=check_text(wanted.metadata, "metadata"), created_ns=time.time_ns(), flags=dict(wanted.flags),
        compressed_digest=wanted.original_digest, compressed_size=wanted.original_size,
    )  # fmt: skip


def refuse_taken(context: Context, new: Layer) -> None:
    """Refuse early what the commit would refuse after all the work: an id or a name that is taken."""
    for origin, part in enumerate(context.stores[: context.writable_stores]):
        with part.catalog.read() as conn:
            try:
                catalog_layers.check_new(conn, new)
            except DuplicateID as error:
                error.existing = stores.layer_at(context, conn, origin, new.id)
                raise


def _like_template(context: Context, wanted: NewLayer, fresh: Layer, parent: Layer | None, target: Context) -> Layer:
    """Give a new layer what a template has; the two share a parent."""
    template = get(context, wanted.template)
    if stores.home(context, template) is not target:
        raise InvalidInput(f"template layer {template.id} is in another store")
    if template.parent != (parent.id if parent else ""):
        raise InvalidInput(f"template layer {template.id} has another parent")
    sealing.seal_if_idle(target, template)
    return copied(fresh, get(context, template.id))


def copied(fresh: Layer, template: Layer) -> Layer:
    """A new layer with another's contents, digests and metadata."""
    return replace(
        fresh, metadata=fresh.metadata or template.metadata, compressed_digest=template.compressed_digest,
        compressed_size=template.compressed_size, diff_digest=template.diff_digest, diff_size=template.diff_size,
        toc_digest=template.toc_digest, compression=template.compression, uids=template.uids, gids=template.gids,
        contents=template.contents, replay=template.replay,
    )  # fmt: skip


def insert(
    context: Context,
    tx: WriteTransaction,
    fresh: Layer,
    parent: Layer | None,
    request: MapRequest,
    *,
    kind: str = "read-write",
) -> Layer:
    """Insert a layer's record as part of a transaction; an empty id is drawn here.

    Args:
        context: the store as a whole.
        tx: the transaction, of the store that the layer goes to.
        fresh: the layer without parent, maps and root.
        parent: the layer below.
        request: whose maps it wants.
        kind: what it is called when its map has no place for root.

    Raises:
        DuplicateID, DuplicateName, LayerUnknown.
        InvalidInput: the map has no host ID for the container's root.
    """
    layer = fresh if fresh.id else replace(fresh, id=catalog_names.new_id(tx.conn, "layer"))
    inherited = Maps(parent.uidmap, parent.gidmap) if parent is not None else NO_MAPS
    maps = NO_MAPS if context.shifts else request.over(inherited)
    try:
        _ = maps.root
    except InvalidInput as error:
        raise InvalidInput(f'creating {kind} layer with ID "{layer.id}": {error}') from error
    layer = replace(layer, uidmap=maps.uid, gidmap=maps.gid)
    if parent is not None:
        present = stores.layer_by_id(context, parent.id, parent.origin)
        if present is None:
            raise LayerUnknown()
        layer = replace(
            layer, parent=present.id, root_mode=present.root_mode, root_uid=present.root_uid, root_gid=present.root_gid
        )
    catalog_layers.create_layer(tx, layer)
    return layer


def _as_seen(context: Context, target: Context, tx: WriteTransaction, layer_id: str) -> Layer:
    layer = stores.layer_at(context, tx.conn, context.stores.index(target), layer_id)
    assert layer is not None
    return layer


def import_layer(
    context: Context,
    stream: Readable,
    wanted: NewLayer,
    *,
    expected: str = "",
    diff_id: str = "",
    progress: Progress | None = None,
) -> Layer:
    """Make a layer with a diff's content, all in one commit; see ``ingest.ingesting`` for the digests."""
    target, fresh, parent = _prepared(context, wanted)
    from lading.flows.ingest import ingesting

    with ingesting(target, stream, expected=expected, diff_id=diff_id, progress=progress) as diff:
        items = bigdata.store_items(target, wanted.big_data, diff.epoch)
        with stores.changing(context, target, "import-layer") as tx:
            key = diff.commit(tx)
            layer = insert(
                context, tx, fresh, parent, wanted.request, kind="read-only" if wanted.read_only else "read-write"
            )
            _refuse_unmapped(context, layer, diff)
            layer = replace(described_by(layer, diff), contents=(key,), replay=key)
            if wanted.original_digest:
                layer = replace(layer, compressed_digest=wanted.original_digest, compressed_size=wanted.original_size)
            catalog_layers.update_layer(tx, layer)
            bigdata.put_items(tx, "layer", layer.id, items)
            return _as_seen(context, target, tx, layer.id)


def _refuse_unmapped(context: Context, layer: Layer, diff: Ingested) -> None:
    if not context.settings.ignore_chown_errors:
        Maps(layer.uidmap, layer.gidmap).refuse_unmapped(diff.uids, diff.gids)


def described_by(layer: Layer, diff: Ingested) -> Layer:
    """Give a layer the digests, sizes and owner sets of a diff."""
    stream = diff.stream
    return replace(
        layer, compressed_digest=stream.compressed_digest, compressed_size=stream.compressed_size,
        diff_digest=stream.diff_digest, diff_size=stream.diff_size, toc_digest="", compression=stream.compression,
        uids=diff.uids, gids=diff.gids,
    )  # fmt: skip


def apply(context: Context, ref: str, stream: Readable, *, expected: str, progress: Progress | None) -> Layer:
    """Apply a diff on top of what a layer holds.

    A mounted layer gets the files through its mount point as well; its content stays in the write area
    until it is sealed.
    """
    from lading.flows import mounting

    layer = get_writable(context, ref)
    target = stores.home(context, layer)
    from lading.flows.ingest import ingesting

    with ingesting(target, stream, expected=expected, progress=progress) as diff:
        _refuse_unmapped(context, layer, diff)
        while True:
            with mounting.held(context, layer.id, "applydiff") as mount:
                if mount is None:
                    sealing.seal_locked(target, layer.id)
                else:  # before the commit: the record must not promise files that are not there
                    mounting.unpack_onto(context, mount, diff.entries(target))
                with target.catalog.write("applydiff") as tx:
                    current = catalog_layers.get_layer(tx.conn, layer.id)
                    if current is None:
                        raise LayerUnknown()
                    if mount is None and current.write_kind:
                        continue  # written to since it was sealed: seal again first
                    key = diff.commit(tx)
                    contents = current.contents if mount else (*current.contents, key)
                    updated = replace(described_by(current, diff), contents=contents, replay=key)
                    catalog_layers.update_layer(tx, updated)
                return stores.marked_layer(context, updated, layer.origin)


def size(context: Context, ref: str) -> int:
    """Tell the recorded uncompressed size of a layer's diff, -1 when none was applied."""
    layer = get(context, ref)
    return layer.diff_size if layer.diff_digest or layer.toc_digest else -1


def refuse_used(context: Context, layer_id: str) -> None:
    """Refuse to delete a layer that another record needs.

    Raises:
        LayerHasChildren, LayerUsedByImage, LayerUsedByContainer: in this order of checks.
    """
    parts = context.stores[: context.writable_stores]
    for part in parts:
        with part.catalog.read() as conn:
            children = catalog_layers.children(conn, layer_id)
        if children:
            raise LayerHasChildren(f"used by layer {children[0]}")
    for part in parts:
        with part.catalog.read() as conn:
            users = catalog_layers.top_of_images(conn, layer_id)
        if users:
            raise LayerUsedByImage(f"layer {layer_id} used by image {users[0]}")
    with context.catalog.read() as conn:
        container = catalog_containers.container_of_layer(conn, layer_id)
    if container is not None:
        raise LayerUsedByContainer(f"layer {layer_id} used by container {container}")


def delete(context: Context, ref: str) -> None:
    """Delete a layer that nothing uses, unmounting it first."""
    stores.settled(lambda: _delete_once(context, ref))


def _delete_once(context: Context, ref: str) -> None:
    with stores.snapshot(context):
        layer = stores.find_layer(context, ref, writable=True)
        if layer is None:
            raise NotALayer()
        refuse_used(context, layer.id)

    def unmoved() -> None:
        found = stores.find_layer(context, ref, writable=True)
        if found is None or (found.id, found.origin) != (layer.id, layer.origin):
            raise stores.Moved

    context.with_room(lambda: _delete(context, layer, unmoved, checked=True))


def delete_unchecked(context: Context, layer_id: str, unmoved: Callable[[], None] = stores.as_meant) -> None:
    """Delete a layer whatever uses it.

    Args:
        context: the store.
        layer_id: which.
        unmoved: called in the transaction; raises ``stores.Moved`` when another one was meant.

    Raises:
        NotALayer: there is none of this id.
    """
    for origin, part in enumerate(context.stores[: context.writable_stores]):
        with part.catalog.read() as conn:
            layer = stores.layer_at(context, conn, origin, layer_id)
        if layer is not None:
            context.with_room(partial(_delete, context, layer, unmoved, checked=False))
            return
    raise NotALayer()


def _delete(context: Context, layer: Layer, unmoved: Callable[[], None], *, checked: bool) -> None:
    target = stores.home(context, layer)
    target.need_writable()
    with areas.released(context, [layer.id]), stores.changing(context, target, "delete-layer", durable=True) as tx:
        unmoved()
        if catalog_layers.get_layer(tx.conn, layer.id) is None:
            raise NotALayer()
        if checked:
            refuse_used(context, layer.id)
        delete_rows(tx, layer.id)


def delete_rows(tx: WriteTransaction, layer_id: str) -> None:
    """Delete a layer's record as part of a transaction."""
    catalog_layers.delete_layer(tx, layer_id)
    tx.conn.execute("DELETE FROM transient WHERE kind = 'layer' AND record_id = ?", (layer_id,))


def users_of(conn: Connection, layer_id: str) -> tuple[list[str], list[str], str | None]:
    """Children, images (mapped copies counted) and container of a layer, within one store."""
    return (
        catalog_layers.children(conn, layer_id),
        catalog_layers.images_of_layer(conn, layer_id),
        catalog_containers.container_of_layer(conn, layer_id),
    )
