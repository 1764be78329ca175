"""Images: create with their data, look up, measure, delete with the layers that only they need."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lading import trees
from lading.catalog import bigdata as catalog_bigdata
from lading.catalog import containers as catalog_containers
from lading.catalog import content as catalog_content
from lading.catalog import images as catalog_images
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog.database import Connection
from lading.errors import ImageUnknown, ImageUsedByContainer, InvalidBigDataName, LayerUnknown, NotAnImage
from lading.flows import areas, layers, reserve, sealing, views
from lading.flows.context import Context
from lading.flows.ingest import check_digest
from lading.flows.records import check_id, check_names, check_text
from lading.objects.digest import blake3_digest
from lading.values import KIND_BIG_DATA, BigData, Image, Layer, printable


def list_all(context: Context) -> list[Image]:
    """List all images, oldest first."""
    with context.catalog.read() as conn:
        return catalog_images.list_images(conn)


def find(context: Context, ref: str) -> Image | None:
    """Look an image up; None when nothing answers."""
    with context.catalog.read() as conn:
        return find_in(conn, ref)


def find_in(conn: Connection, ref: str) -> Image | None:
    """Look an image up in a snapshot or transaction."""
    found = catalog_names.resolve(conn, "image", ref)
    return catalog_images.get_image(conn, found) if found is not None else None


def get(context: Context, ref: str) -> Image:
    """Look an image up.

    Raises:
        ImageUnknown: nothing answers to the reference.
    """
    with context.catalog.read() as conn:
        return get_in(conn, ref)


def get_in(conn: Connection, ref: str) -> Image:
    """Look an image up in a snapshot or transaction, or raise ``ImageUnknown``."""
    image = find_in(conn, ref)
    if image is None:
        raise ImageUnknown(f'locating image with ID "{printable(ref)}"')
    return image


def by_digest(context: Context, digest: str) -> list[Image]:
    """List the images that a digest finds."""
    check_digest(digest)
    with context.catalog.read() as conn:
        return catalog_images.images_by_digest(conn, digest)


def create(
    context: Context,
    layer: str,
    *,
    id: str,
    names: Sequence[str],
    digest: str,
    metadata: str,
    big_data: Mapping[str, bytes],
    created_ns: int | None,
    flags: Mapping[str, object],
) -> Image:
    """Make an image with all its data in one commit."""
    context.need_writable()
    _check_digest(digest)
    if "" in big_data:
        raise InvalidBigDataName("can't set empty name for image big data item")
    fresh = Image(
        check_id(id, "image"), digest=digest, names=check_names(names), metadata=check_text(metadata, "metadata"),
        created_ns=time.time_ns() if created_ns is None else created_ns, flags=dict(flags),
    )  # fmt: skip
    if layer:
        sealing.seal_if_idle(context, layers.get(context, layer))
    with context.epochs.shared() as epoch:
        items = _store_items(context, big_data, epoch)
        with context.catalog.write("create-image") as tx:
            image = replace(
                fresh, id=fresh.id or catalog_names.new_id(tx.conn, "image"),
                layer=layers.get_in(tx.conn, layer).id if layer else "",
            )  # fmt: skip
            catalog_images.create_image(tx, image)
            for item in items:
                catalog_bigdata.put_big_data(tx, "image", image.id, item)
            return get_in(tx.conn, image.id)


def _check_digest(digest: str) -> None:
    from lading.errors import InvalidInput

    try:
        check_digest(digest)
    except InvalidInput as error:
        raise InvalidInput(
            f'validating digests for new image: validating image digest "{printable(digest)}": {error}'
        ) from error


def _store_items(context: Context, big_data: Mapping[str, bytes], epoch: int) -> list[BigData]:
    """Store the bytes of big data items; the caller holds the epoch lock."""
    if not big_data:
        return []
    with context.writer() as writer:
        for data in big_data.values():
            if data:
                writer.put(data, KIND_BIG_DATA)
        packs = writer.finish()
    catalog_content.register_packs(context.catalog, packs, epoch)
    return [
        BigData(key, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", blake3_digest(data) if data else b"")
        for key, data in big_data.items()
    ]


def size(context: Context, ref: str) -> int:
    """Sum the recorded diff sizes of an image's layers, each once, and its big data.

    Raises:
        LayerUnknown: a layer of the image is gone.
    """
    image = get(context, ref)
    total = sum(item.size for item in image.big_data)
    seen: set[str] = set()
    for top in (image.layer, *image.mapped_layers):
        if not top:
            continue
        with context.catalog.read() as conn:
            layer = catalog_layers.get_layer(conn, top)
            if layer is None:
                raise LayerUnknown(f'locating layer with ID "{top}"')
            steps = layers.chain(conn, layer)
        for step in steps:
            if step.id not in seen:
                seen.add(step.id)
                total += layer_size(context, step)
    return total


def layer_size(context: Context, layer: Layer) -> int:
    """A layer's recorded diff size, else the bytes of its files."""
    if layer.diff_digest:
        return layer.diff_size
    return trees.diff_size(views.stack(context, layer, views.LiveFiles(context.reader)).changes())


def doomed_layers(conn: Connection, image: Image) -> list[str]:
    """List the layers that go with an image: mapped copies, then the top and its ancestors.

    It ends at the first one that a container, another image or a layer that stays still needs.
    """
    doomed = [layer_id for layer_id in image.mapped_layers if catalog_layers.get_layer(conn, layer_id)]
    layer_id = image.layer
    while layer_id and (layer := catalog_layers.get_layer(conn, layer_id)) is not None:
        needed = (
            catalog_containers.container_of_layer(conn, layer_id) is not None
            or any(user != image.id for user in catalog_layers.images_of_layer(conn, layer_id))
            or any(child not in doomed for child in catalog_layers.children(conn, layer_id))
        )
        if needed:
            break
        doomed.append(layer_id)
        layer_id = layer.parent
    return doomed


def refuse_used(conn: Connection, image: Image) -> None:
    """Refuse to delete an image that a container was made from.

    Raises:
        ImageUsedByContainer: with the container's id.
    """
    users = catalog_containers.containers_of_image(conn, image.id)
    if users:
        raise ImageUsedByContainer(f"image used by {users[0]}")


def delete(context: Context, ref: str, *, dry_run: bool) -> list[str]:
    """Delete an image and the layers that only it needs."""
    with context.catalog.read() as conn:
        image = find_in(conn, ref)
        if image is None:
            raise NotAnImage()
        refuse_used(conn, image)
        doomed = doomed_layers(conn, image)
    if dry_run:
        return doomed
    context.need_writable()
    image_id = image.id
    return reserve.with_room(context, lambda: _delete(context, image_id, doomed))


def _delete(context: Context, image_id: str, doomed: Sequence[str]) -> list[str]:
    """Delete an image and those of the layers that still nothing else needs."""
    with areas.released(context, doomed), context.catalog.write("delete-image") as tx:
        present = catalog_images.get_image(tx.conn, image_id)
        if present is None:
            raise NotAnImage()
        refuse_used(tx.conn, present)
        still = [layer_id for layer_id in doomed_layers(tx.conn, present) if layer_id in doomed]
        catalog_images.delete_image(tx, present.id)
        for layer_id in still:
            catalog_layers.delete_layer(tx, layer_id)
    return still


def delete_record(context: Context, image_id: str) -> None:
    """Delete an image's record and data alone."""
    context.need_writable()
    reserve.with_room(context, lambda: _delete_record(context, image_id))


def _delete_record(context: Context, image_id: str) -> None:
    with context.catalog.write("delete") as tx:
        catalog_images.delete_image(tx, image_id)
