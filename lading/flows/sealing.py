"""Sealing: what a write area holds becomes one more immutable content of its layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lading import trees
from lading.catalog import content as catalog_content
from lading.catalog import layers as catalog_layers
from lading.errors import InUse, LayerUnknown
from lading.flows import areas, views
from lading.flows.context import Context
from lading.materialize.capture import Store
from lading.materialize.listing import listing
from lading.objects.writer import ObjectWriter
from lading.values import KIND_DATA, KIND_LISTING, Entry, Layer

#: Bytes read at a time from a file of a write area.
READ_SIZE: Final = 1 << 20


class LayerMounted(InUse):
    """The layer is mounted, so its write area may still change."""

    text = "layer is mounted: unmount it first"


def seal(context: Context, ref: str) -> Layer:
    """Seal a layer's write area.

    Raises:
        LayerMounted: the layer is mounted.
    """
    from lading.flows import layers

    context.need_writable()
    layer = layers.get(context, ref)
    with areas.locked(context, [layer.id]):
        if areas.mount_record(context, layer.id) is not None:
            raise LayerMounted(f"layer {layer.id}")
        return seal_locked(context, layer.id)


def seal_if_idle(context: Context, layer: Layer) -> None:
    """Seal a layer that others are about to build on, unless it is mounted."""
    if not layer.write_kind:
        return
    with areas.locked(context, [layer.id]):
        if areas.mount_record(context, layer.id) is None:
            seal_locked(context, layer.id)


def seal_locked(context: Context, layer_id: str) -> Layer:
    """Seal a layer whose lock the caller holds and that is not mounted.

    Returns:
        The layer as it is now; unchanged when there was no write area.
    """
    with context.catalog.read() as conn:
        layer = catalog_layers.get_layer(conn, layer_id)
        if layer is None:
            raise LayerUnknown()
        if not layer.write_kind:
            return layer
    base = views.base_tree(context, layer) if layer.write_kind == "tree" else {}
    with context.epochs.shared() as epoch, context.writer() as writer:
        entries = views.capture(context, layer, base, _into(writer))
        sealed = [entry for entry in entries if entry.path]
        content_id, key = None, ""
        if sealed:
            recipe = writer.stream(KIND_LISTING)
            for chunk in listing(sealed):
                recipe.write(chunk)
            digest = recipe.close()
            key = "native:" + digest.hex()
            packs = writer.finish()
            catalog_content.register_packs(context.catalog, packs, epoch)
            content_id = catalog_content.store_content(
                context.catalog, diff_id=None, size=0, recipe=digest, entries=sealed, uids=(), gids=(),
                diff_bytes=trees.diff_size(sealed), epoch=epoch,
            )  # fmt: skip
        with context.catalog.write("seal") as tx:
            if content_id is not None:
                key = catalog_content.ready(tx, content_id, key)
            updated = replace(
                with_root(layer, entries), contents=(*layer.contents, key) if key else layer.contents,
                write_area=layer.write_area + 1, write_kind="",
            )  # fmt: skip
            catalog_layers.update_layer(tx, updated)
    areas.remove_unused(context, layer_id, keep=updated.write_area)
    return updated


def with_root(layer: Layer, entries: Sequence[Entry]) -> Layer:
    """Give a layer the attributes that its root directory has in a captured tree.

    An ordinary user's tree has others than the layer's for its owner's sake; they say nothing.
    """
    if os.geteuid() != 0:
        return layer
    for entry in entries:
        if not entry.path and entry.inode is not None:
            return replace(layer, root_mode=entry.inode.mode, root_uid=entry.inode.uid, root_gid=entry.inode.gid)
    return layer


def _into(writer: ObjectWriter) -> Store:
    """Store a file of a write area as an object."""

    def store(descriptor: int, size: int) -> bytes:
        del size  # what is read is what counts
        target = writer.stream(KIND_DATA)
        while chunk := os.read(descriptor, READ_SIZE):
            target.write(chunk)
        return target.close()

    return store
