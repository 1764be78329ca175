"""Snapshots of containers: a new layer and image, or a new container, from what was written so far.

Only the files of the write area are read. What the container's layer had before is shared, and the container goes
on as it was: it may even be mounted, and then the snapshot has what was written until it came to each file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lading.catalog import containers as catalog_containers
from lading.catalog import images as catalog_images
from lading.catalog import names as catalog_names
from lading.catalog.database import WriteTransaction
from lading.errors import LayerUnknown
from lading.flows import areas, bigdata, containers, layers, sealing, stores, views
from lading.flows.context import Context
from lading.flows.records import check_id, check_names, check_text
from lading.idmaps import MapRequest, Maps
from lading.materialize import mounts as kernel
from lading.values import Container, Entry, Image, Layer


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A container's layer as it is now, with its writes as one more content."""

    layer: Layer
    native: sealing.Native
    entries: Sequence[Entry]
    epoch: int

    def onto(self, tx: WriteTransaction, fresh: Layer) -> Layer:
        """Give a new layer everything that the container's layer has and was written."""
        key = self.native.commit(tx)
        copied = layers.copied(fresh, self.layer)
        copied = replace(
            copied, contents=(*self.layer.contents, key) if key else self.layer.contents,
            root_mode=self.layer.root_mode, root_uid=self.layer.root_uid, root_gid=self.layer.root_gid,
        )  # fmt: skip
        return sealing.with_root(copied, self.entries)


@contextmanager
def _taken(context: Context, container: Container, verb: str) -> Iterator[_Snapshot]:
    """Store what a container's layer holds; hidden until it is committed."""
    with areas.locked(context, [container.layer], verb):
        layer = stores.layer_by_id(context, container.layer)
        if layer is None:
            raise LayerUnknown()
        area = areas.current(context, layer)
        if layer.write_kind and area.is_dir() and areas.mount_record(context, layer.id) is not None:
            kernel.sync_filesystem(area)
        base = views.base_tree(context, layer) if layer.write_kind == "tree" else {}
        with context.epochs.shared() as epoch, context.writer() as writer:
            written = bool(layer.write_kind) and area.is_dir()
            entries = views.capture(context, layer, base, sealing.into(writer)) if written else []
            native = sealing.store_native(context, writer, [entry for entry in entries if entry.path], epoch)
            yield _Snapshot(layer, native, entries, epoch)


def commit(context: Context, ref: str, *, id: str = "", names: Sequence[str] = (), metadata: str = "") -> Image:
    """Make a layer and an image of a container, in one commit.

    Args:
        context: the store.
        ref: the container.
        id: the image's; empty to draw one.
        names: the image's.
        metadata: the image's.

    Raises:
        ContainerUnknown, LayerUnknown: there is none.
        DuplicateID, DuplicateName: id or name is taken.
    """
    context.need_writable()
    container = containers.get(context, ref)
    now = time.time_ns()
    wanted = Image(
        check_id(id, "image"), names=check_names(names), metadata=check_text(metadata, "metadata"), created_ns=now
    )
    with context.catalog.read() as conn:
        catalog_names.check_new(conn, "image", wanted.id, wanted.names)
    with _taken(context, container, "commit") as snapshot, context.catalog.write("commit") as tx:
        parent = _image_layer(context, container, snapshot.layer)
        fresh = snapshot.onto(tx, Layer("", created_ns=now))
        # Contents keep owners as the container knew them, so that the image needs no maps.
        layer = layers.insert(context, tx, fresh, parent, MapRequest(host_uids=True, host_gids=True))
        image = replace(wanted, id=wanted.id or catalog_names.new_id(tx.conn, "image"), layer=layer.id)
        catalog_images.create_image(tx, image)
        made = catalog_images.get_image(tx.conn, image.id)
        assert made is not None
        return made


def _image_layer(context: Context, container: Container, layer: Layer) -> Layer | None:
    """What to build on: the image's own top layer rather than a copy of it with maps."""
    image = stores.image_by_id(context, container.image) if container.image else None
    parent_id = image.layer if image is not None and layer.parent in image.mapped_layers else layer.parent
    if not parent_id:
        return None
    parent = stores.layer_by_id(context, parent_id)
    if parent is None:
        raise LayerUnknown()
    return parent


def clone(context: Context, ref: str, *, id: str = "", names: Sequence[str] = ()) -> Container:
    """Make a container like another one, with what was written to it, its metadata and its big data.

    Directories of files beside the record belong to the engine that runs a container, and are not copied.

    Raises:
        ContainerUnknown, LayerUnknown: there is none.
        DuplicateID, DuplicateName: id or name is taken.
    """
    context.need_writable()
    container = containers.get(context, ref)
    chosen, wanted = check_id(id, "container"), check_names(names)
    now = time.time_ns()
    with context.catalog.read() as conn:
        catalog_names.check_new(conn, "container", chosen, wanted)
    with _taken(context, container, "clone") as snapshot:
        items = bigdata.copy_items(context, context, container.big_data, snapshot.epoch)
        with context.catalog.write("clone") as tx:
            parent = stores.layer_by_id(context, snapshot.layer.parent) if snapshot.layer.parent else None
            fresh = snapshot.onto(tx, Layer("", created_ns=now))
            maps = Maps(snapshot.layer.uidmap, snapshot.layer.gidmap)
            request = MapRequest(maps, host_uids=not maps.uid, host_gids=not maps.gid)
            layer = layers.insert(context, tx, fresh, parent, request)
            made = replace(
                container, id=chosen or catalog_names.new_id(tx.conn, "container"), names=wanted, layer=layer.id,
                created_ns=now, big_data=(),
            )  # fmt: skip
            catalog_containers.create_container(tx, made)
            bigdata.put_items(tx, "container", made.id, items)
            found = catalog_containers.get_container(tx.conn, made.id)
            assert found is not None
            return found
