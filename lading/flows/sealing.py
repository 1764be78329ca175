"""Sealing: what a write area holds becomes one more immutable content of its layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lading import trees
from lading.catalog import content as catalog_content
from lading.catalog import layers as catalog_layers
from lading.catalog.database import WriteTransaction
from lading.errors import InUse, LayerUnknown
from lading.flows import areas, views
from lading.flows.context import Context
from lading.flows.tidying import tidying
from lading.values import KIND_DATA, KIND_LISTING, Entry, Layer

if TYPE_CHECKING:
    from lading.materialize.capture import Store
    from lading.objects.writer import ObjectWriter

#: Bytes read at a time from a file of a write area.
READ_SIZE: Final = 1 << 20


class LayerMounted(InUse):
    """The layer is mounted, so its write area may still change."""

    text = "layer is mounted: unmount it first"


def seal(context: Context, ref: str) -> Layer:
    """Seal a layer's write area.

    Raises:
        LayerMounted: the layer is mounted.
        MountedElsewhere: it is, in another mount namespace.
    """
    from lading.flows import layers

    context.need_writable()
    layer = layers.get_writable(context, ref)
    if layer.origin:
        return layer  # such layers are never written to through a mount
    with areas.locked(context, [layer.id], "seal"):
        if areas.mount_here(context, layer.id) is not None:
            raise LayerMounted(f"layer {layer.id}")
        return seal_locked(context, layer.id)


def seal_if_idle(context: Context, layer: Layer) -> None:
    """Seal a layer that others are about to build on, unless it is mounted."""
    if not layer.write_kind:
        return
    with areas.locked(context, [layer.id], "seal"):
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
    with context.epochs.shared() as epoch, context.writer(floor=False) as writer:
        # No floor: the bytes are on this disk already, and an unmount may not fail for one.
        entries = views.capture(context, layer, base, into(writer))
        native = store_native(context, writer, [entry for entry in entries if entry.path], epoch)
        with context.catalog.write("seal", durable=True) as tx:
            key = native.commit(tx)
            updated = replace(
                with_root(layer, entries), contents=(*layer.contents, key) if key else layer.contents,
                write_area=layer.write_area + 1, write_kind="",
            )  # fmt: skip
            catalog_layers.update_layer(tx, updated)
    with tidying(f"write areas of layer {layer_id}"):
        areas.remove_unused(context, layer_id, keep=updated.write_area)
    return updated


@dataclass(frozen=True, slots=True)
class Native:
    """Entries that are stored but not visible yet; valid while the epoch lock is held."""

    key: str  #: empty when there are no entries
    content_id: int | None

    def commit(self, tx: WriteTransaction) -> str:
        """Make the content visible as part of a transaction.

        Returns:
            Its key; empty when there is nothing.
        """
        return self.key if self.content_id is None else catalog_content.ready(tx, self.content_id, self.key)


def store_native(context: Context, writer: ObjectWriter, entries: Sequence[Entry], epoch: int) -> Native:
    """Store entries as a content that came as no tar, hidden.

    Args:
        context: the store.
        writer: what the files' bytes were written with; finished here.
        entries: sorted, without the root.
        epoch: the epoch whose lock the caller holds.
    """
    if not entries:
        return Native("", None)
    from lading.materialize.listing import listing

    recipe = writer.stream(KIND_LISTING)
    for chunk in listing(entries):
        recipe.write(chunk)
    digest = recipe.close()
    catalog_content.register_packs(context.catalog, writer.finish(), epoch)
    content_id = catalog_content.store_content(
        context.catalog, diff_id=None, size=0, recipe=digest, entries=entries, uids=(), gids=(),
        diff_bytes=trees.diff_size(entries), epoch=epoch,
    )  # fmt: skip
    return Native("native:" + digest.hex(), content_id)


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


def into(writer: ObjectWriter) -> Store:
    """Store a file of a write area as an object."""

    def store(descriptor: int, size: int) -> bytes:
        del size  # what is read is what counts
        target = writer.stream(KIND_DATA)
        while chunk := os.read(descriptor, READ_SIZE):
            target.write(chunk)
        return target.close()

    return store
