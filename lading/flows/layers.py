"""Layers: create, import, apply, look up, delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from lading.catalog import containers as catalog_containers
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog.database import Connection, WriteTransaction
from lading.errors import (
    LayerHasChildren,
    LayerUnknown,
    LayerUsedByContainer,
    LayerUsedByImage,
    NotALayer,
    ParentIsContainer,
)
from lading.flows import areas, reserve, sealing
from lading.flows.context import Context, Progress
from lading.flows.ingest import Ingested, ingesting
from lading.flows.records import check_id, check_names, check_text
from lading.values import IDMap, Layer, Readable


def list_all(context: Context) -> list[Layer]:
    """List all layers, oldest first."""
    with context.catalog.read() as conn:
        return catalog_layers.list_layers(conn)


def find(context: Context, ref: str) -> Layer | None:
    """Look a layer up; None when nothing answers."""
    with context.catalog.read() as conn:
        return find_in(conn, ref)


def find_in(conn: Connection, ref: str) -> Layer | None:
    """Look a layer up in a snapshot or transaction."""
    found = catalog_names.resolve(conn, "layer", ref)
    return catalog_layers.get_layer(conn, found) if found is not None else None


def get(context: Context, ref: str) -> Layer:
    """Look a layer up.

    Raises:
        LayerUnknown: nothing answers to the reference.
    """
    with context.catalog.read() as conn:
        return get_in(conn, ref)


def get_in(conn: Connection, ref: str) -> Layer:
    """Look a layer up in a snapshot or transaction, or raise ``LayerUnknown``."""
    layer = find_in(conn, ref)
    if layer is None:
        raise LayerUnknown()
    return layer


def chain(conn: Connection, layer: Layer) -> list[Layer]:
    """List a layer and its ancestors, the layer first.

    Raises:
        LayerUnknown: a parent's record is gone, or the parents run in a circle.
    """
    found = [layer]
    seen = {layer.id}
    while found[-1].parent:
        parent = catalog_layers.get_layer(conn, found[-1].parent)
        if parent is None or parent.id in seen:
            raise LayerUnknown(f"parent {found[-1].parent} of layer {found[-1].id}")
        seen.add(parent.id)
        found.append(parent)
    return found


def create(
    context: Context,
    parent: str,
    *,
    id: str,
    names: Sequence[str],
    label: str,
    metadata: str,
    uidmap: Sequence[IDMap],
    gidmap: Sequence[IDMap],
) -> Layer:
    """Make an empty layer."""
    context.need_writable()
    fresh = _described(id=id, names=names, label=label, metadata=metadata, uidmap=uidmap, gidmap=gidmap)
    if parent:
        sealing.seal_if_idle(context, get(context, parent))
    with context.catalog.write("create-layer") as tx:
        return insert(tx, fresh, parent)


def _described(
    *,
    id: str,
    names: Sequence[str],
    label: str,
    metadata: str,
    uidmap: Sequence[IDMap] = (),
    gidmap: Sequence[IDMap] = (),
) -> Layer:
    """Check what a caller says of a new layer."""
    return Layer(
        check_id(id, "layer"), names=check_names(names), mount_label=check_text(label, "label"),
        metadata=check_text(metadata, "metadata"), created_ns=time.time_ns(), uidmap=tuple(uidmap), gidmap=tuple(gidmap),
    )  # fmt: skip


def insert(tx: WriteTransaction, fresh: Layer, parent_ref: str) -> Layer:
    """Insert a layer's record as part of a transaction; an empty id is drawn here."""
    layer = fresh if fresh.id else replace(fresh, id=catalog_names.new_id(tx.conn, "layer"))
    if parent_ref:
        parent = get_in(tx.conn, parent_ref)
        if catalog_containers.container_of_layer(tx.conn, parent.id) is not None:
            raise ParentIsContainer()
        layer = replace(
            layer, parent=parent.id, root_mode=parent.root_mode, root_uid=parent.root_uid, root_gid=parent.root_gid
        )
    catalog_layers.create_layer(tx, layer)
    return layer


def import_layer(
    context: Context,
    stream: Readable,
    parent: str,
    *,
    id: str,
    names: Sequence[str],
    label: str,
    metadata: str,
    expected: str,
    progress: Progress | None,
) -> Layer:
    """Make a layer with a diff's content, all in one commit."""
    context.need_writable()
    fresh = _described(id=id, names=names, label=label, metadata=metadata)
    with context.catalog.read() as conn:  # refuse early what the commit would refuse after all the work
        catalog_layers.check_new(conn, fresh)
    if parent:
        sealing.seal_if_idle(context, get(context, parent))
    with ingesting(context, stream, expected=expected, progress=progress) as diff:
        with context.catalog.write("import-layer") as tx:
            key = diff.commit(tx)
            layer = insert(tx, fresh, parent)
            layer = replace(described_by(layer, diff), contents=(key,), replay=key)
            catalog_layers.update_layer(tx, layer)
            return layer


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

    layer = get(context, ref)
    with ingesting(context, stream, expected=expected, progress=progress) as diff:
        while True:
            with mounting.held(context, layer.id) as mount:
                if mount is None:
                    sealing.seal_locked(context, layer.id)
                with context.catalog.write("applydiff") as tx:
                    current = get_in(tx.conn, layer.id)
                    if mount is None and current.write_kind:
                        continue  # written to since it was sealed: seal again first
                    key = diff.commit(tx)
                    contents = current.contents if mount else (*current.contents, key)
                    updated = replace(described_by(current, diff), contents=contents, replay=key)
                    catalog_layers.update_layer(tx, updated)
                if mount is not None:
                    mounting.unpack_onto(context, mount, key)
                return updated


def size(context: Context, ref: str) -> int:
    """Tell the recorded uncompressed size of a layer's diff, -1 when none was applied."""
    layer = get(context, ref)
    return layer.diff_size if layer.diff_digest or layer.toc_digest else -1


def refuse_used(conn: Connection, layer_id: str) -> None:
    """Refuse to delete a layer that another record needs.

    Raises:
        LayerHasChildren, LayerUsedByImage, LayerUsedByContainer: in this order of checks.
    """
    children = catalog_layers.children(conn, layer_id)
    if children:
        raise LayerHasChildren(f"used by layer {children[0]}")
    users = catalog_layers.top_of_images(conn, layer_id)
    if users:
        raise LayerUsedByImage(f"layer {layer_id} used by image {users[0]}")
    container = catalog_containers.container_of_layer(conn, layer_id)
    if container is not None:
        raise LayerUsedByContainer(f"layer {layer_id} used by container {container}")


def delete(context: Context, ref: str) -> None:
    """Delete a layer that nothing uses, unmounting it first."""
    with context.catalog.read() as conn:
        layer = find_in(conn, ref)
        if layer is None:
            raise NotALayer()
        refuse_used(conn, layer.id)
    reserve.with_room(context, lambda: _delete(context, layer.id, checked=True))


def delete_unchecked(context: Context, layer_id: str) -> None:
    """Delete a layer whatever uses it."""
    reserve.with_room(context, lambda: _delete(context, layer_id, checked=False))


def _delete(context: Context, layer_id: str, *, checked: bool) -> None:
    context.need_writable()
    with areas.released(context, [layer_id]), context.catalog.write("delete-layer") as tx:
        if catalog_layers.get_layer(tx.conn, layer_id) is None:
            raise NotALayer()
        if checked:
            refuse_used(tx.conn, layer_id)
        catalog_layers.delete_layer(tx, layer_id)
