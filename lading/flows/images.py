"""Images: create with their data, look up, measure, delete with the layers that only they need."""

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
from lading.errors import ImageUnknown, ImageUsedByContainer, InvalidBigDataName, InvalidInput, LayerUnknown, NotAnImage
from lading.flows import areas, bigdata, directories, layers, sealing, stores, views
from lading.flows.context import Context
from lading.flows.records import check_id, check_names, check_text
from lading.values import Image, Layer, printable, unique


def list_all(context: Context) -> list[Image]:
    """List all images, oldest first, those of other stores behind those of the first."""
    found = []
    for origin in context.image_origins:
        with context.stores[origin].catalog.read() as conn:
            found += [stores.marked_image(context, image, origin) for image in catalog_images.list_images(conn)]
    return found


def find(context: Context, ref: str) -> Image | None:
    """Look an image up; None when nothing answers."""
    return stores.find_image(context, ref)


def get(context: Context, ref: str) -> Image:
    """Look an image up.

    Raises:
        ImageUnknown: nothing answers to the reference.
    """
    image = stores.find_image(context, ref)
    if image is None:
        raise unknown(ref)
    return image


def unknown(ref: str) -> ImageUnknown:
    """The error for a reference that no image answers to."""
    return ImageUnknown(f'locating image with ID "{printable(ref)}"')


def by_digest(context: Context, digest: str, *, strict: bool) -> list[Image]:
    """List the images that a digest finds. One that is malformed finds none, or is refused if ``strict``."""
    from lading.flows.ingest import check_digest

    try:
        check_digest(digest or ":")
    except InvalidInput:
        if strict:
            raise
        return []
    found = []
    for origin in context.image_origins:
        with context.stores[origin].catalog.read() as conn:
            hits = catalog_images.images_by_digest(conn, digest)
            found += [stores.marked_image(context, image, origin) for image in hits]
    return found


def by_top_layer(context: Context, ref: str) -> list[Image]:
    """List the images whose top layer, or a mapped copy of it, a layer is."""
    layer = layers.get(context, ref)
    found = []
    for origin in context.image_origins:
        with context.stores[origin].catalog.read() as conn:
            hits = [
                catalog_images.get_image(conn, image_id) for image_id in catalog_layers.images_of_layer(conn, layer.id)
            ]
        found += [stores.marked_image(context, image, origin) for image in hits if image is not None]
    return found


@dataclass(frozen=True, slots=True)
class NewImage:
    """What a caller says of an image to be made."""

    layer: str = ""
    id: str = ""
    names: Sequence[str] = ()
    digest: str = ""
    metadata: str = ""
    big_data: Mapping[str, bytes] = field(default_factory=dict)
    created_ns: int | None = None
    flags: Mapping[str, object] = field(default_factory=dict)
    names_history: Sequence[str] = ()
    moved_names: Sequence[str] = ()  #: names that move here, whoever has them


def create(context: Context, wanted: NewImage) -> Image:
    """Make an image with all its data in one commit.

    An image of the same id in a store that is only read gives what the caller leaves open: metadata, dates,
    digests, history and data.
    """
    target = context.image_home
    target.need_writable()
    layer = layers.get(context, wanted.layer) if wanted.layer else None
    with target.catalog.read() as conn:  # told before anything else that is wrong, as scripts know it
        catalog_names.check_new(conn, "image", check_id(wanted.id, "image"), check_names(wanted.names))
    _check_digest(wanted.digest)
    if "" in wanted.big_data:
        raise InvalidBigDataName("can't set empty name for image big data item")
    fresh = Image(
        check_id(wanted.id, "image"), digest=wanted.digest, names=check_names(wanted.names),
        names_history=unique(wanted.names_history), metadata=check_text(wanted.metadata, "metadata"),
        created_ns=time.time_ns() if wanted.created_ns is None else wanted.created_ns, flags=dict(wanted.flags),
    )  # fmt: skip
    if layer is not None and layer.origin == 0:
        sealing.seal_if_idle(context, layer)
    model = _beside(context, fresh.id)
    if model is not None:
        fresh = replace(
            fresh, digest=fresh.digest or model.digest, metadata=fresh.metadata or model.metadata,
            created_ns=model.created_ns if wanted.created_ns is None else wanted.created_ns,
            names_history=unique([*fresh.names_history, *model.names_history]), flags={**model.flags, **fresh.flags},
        )  # fmt: skip
    with target.epochs.shared() as epoch:
        items = []
        if model is not None:
            kept = [item for item in model.big_data if item.key not in wanted.big_data]
            items = bigdata.copy_items(stores.home(context, model), target, kept, epoch)
        items += bigdata.store_items(target, wanted.big_data, epoch)
        with stores.changing(context, target, "create-image") as tx:
            if layer is not None and stores.layer_by_id(context, layer.id, layer.origin) is None:
                raise LayerUnknown()
            image = replace(
                fresh, id=fresh.id or catalog_names.new_id(tx.conn, "image"), layer=layer.id if layer else ""
            )
            catalog_images.create_image(tx, image)
            bigdata.put_items(tx, "image", image.id, items)
            if wanted.moved_names:
                catalog_names.set_names(tx, "image", image.id, unique([*check_names(wanted.moved_names), *image.names]))
            made = catalog_images.get_image(tx.conn, image.id)
            assert made is not None
            return stores.marked_image(context, made, context.stores.index(target))


def _beside(context: Context, image_id: str) -> Image | None:
    """The image of this id in a store that is only read; None when there is none, or it is in a writable one."""
    if not image_id:
        return None
    found = stores.image_by_id(context, image_id)
    return found if found is not None and found.read_only else None


def pulled_up(context: Context, image_id: str) -> Image:
    """Copy an image's record, names and data from a store that is only read, so that it can be changed.

    Raises:
        ImageUnknown: it is not there any more.
    """
    model = _beside(context, image_id)
    if model is None:
        raise unknown(image_id)
    target = context.image_home
    target.need_writable()
    with target.epochs.shared() as epoch:
        items = bigdata.copy_items(stores.home(context, model), target, model.big_data, epoch)
        with stores.changing(context, target, "pull-up") as tx:
            catalog_images.create_image(tx, replace(model, names=(), mapped_layers=()))
            bigdata.put_items(tx, "image", model.id, items)
            catalog_names.set_names(tx, "image", model.id, model.names)
            catalog_images.set_names_history(tx, model.id, model.names_history)
    found = stores.image_by_id(context, image_id)
    assert found is not None
    return found


def _check_digest(digest: str) -> None:
    from lading.flows.ingest import check_digest

    try:
        check_digest(digest)
    except InvalidInput as error:
        raise InvalidInput(
            f'validating digests for new image: validating image digest "{printable(digest)}": {error}'
        ) from error


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
        layer = stores.layer_by_id(context, top)
        if layer is None:
            raise LayerUnknown(f'locating layer with ID "{printable(top)}"')
        for step in stores.chain(context, layer):
            if step.id not in seen:
                seen.add(step.id)
                total += layer_size(context, step)
    return total


def layer_size(context: Context, layer: Layer) -> int:
    """A layer's recorded diff size, else the bytes of its files."""
    if layer.diff_digest:
        return layer.diff_size
    return trees.diff_size(views.stack(context, layer, views.LiveFiles(context.objects)).changes())


def doomed_layers(context: Context, image: Image) -> list[str]:
    """List the layers that go with an image: mapped copies, then the top and its ancestors.

    It ends at the first one that a container, another image or a layer that stays still needs, or that is in
    a store that is only read.
    """
    parts = context.stores[: context.writable_stores]
    doomed = [layer_id for layer_id in image.mapped_layers if _deletable(context, layer_id)]
    layer_id = image.layer
    while layer_id and (layer := _deletable(context, layer_id)) is not None:
        needed = False
        for part in parts:
            with part.catalog.read() as conn:
                children, users, container = layers.users_of(conn, layer_id)
            needed = needed or container is not None
            needed = needed or any(user != image.id for user in users) or any(child not in doomed for child in children)
        if needed:
            break
        doomed.append(layer_id)
        layer_id = layer.parent
    return doomed


def _deletable(context: Context, layer_id: str) -> Layer | None:
    layer = stores.layer_by_id(context, layer_id)
    return layer if layer is not None and not layer.read_only else None


def refuse_used(context: Context, image: Image) -> None:
    """Refuse to delete an image that a container was made from.

    Raises:
        ImageUsedByContainer: with the container's id.
    """
    with context.catalog.read() as conn:
        users = catalog_containers.containers_of_image(conn, image.id)
    if users:
        raise ImageUsedByContainer(f"image used by {users[0]}")


def delete(context: Context, ref: str, *, dry_run: bool) -> list[str]:
    """Delete an image and the layers that only it needs."""
    return stores.settled(lambda: _delete_once(context, ref, dry_run=dry_run))


def _delete_once(context: Context, ref: str, *, dry_run: bool) -> list[str]:
    with stores.snapshot(context):
        image = stores.find_image(context, ref, writable=True)
        if image is None:
            raise NotAnImage()
        refuse_used(context, image)
        doomed = doomed_layers(context, image)
    if dry_run:
        return doomed
    context.need_writable()

    def unmoved() -> None:
        found = stores.find_image(context, ref, writable=True)
        if found is None or (found.id, found.origin) != (image.id, image.origin):
            raise stores.Moved

    begun: list[list[str]] = []
    removed = context.with_room(lambda: _delete(context, image, doomed, unmoved, begun))
    directories.remove(context, "image", image.id)
    return removed


def _delete(
    context: Context, image: Image, doomed: Sequence[str], unmoved: Callable[[], None], begun: list[list[str]]
) -> list[str]:
    """Delete an image and those of the layers that still nothing else needs, as far as may be in one commit."""
    with areas.released(context, doomed):
        if context.writable_stores > 1:
            return _delete_apart(context, image, doomed, unmoved, begun)
        with context.catalog.write("delete-image", durable=True) as tx:
            still = _still_doomed(context, image, doomed, unmoved)
            _delete_from(tx, image.id, still)
    return still


def _still_doomed(context: Context, image: Image, doomed: Sequence[str], unmoved: Callable[[], None]) -> list[str]:
    """Look once more, in the transaction, at what goes with an image.

    Raises:
        stores.Moved: it is another one, or layers go whose locks are not held: another image that had them has gone.
        NotAnImage, ImageUsedByContainer: as when it was looked up.
    """
    unmoved()
    present = stores.image_by_id(context, image.id)
    if present is None:
        raise NotAnImage()
    refuse_used(context, present)
    still = doomed_layers(context, present)
    if not set(still) <= set(doomed):
        raise stores.Moved
    return still


def _delete_apart(
    context: Context, image: Image, doomed: Sequence[str], unmoved: Callable[[], None], begun: list[list[str]]
) -> list[str]:
    """The same where records are in two stores.

    The image store commits first, so that a kill between the two leaves layers that nothing names. The main store's
    transaction is open all the time: containers are recorded only there.

    Args:
        context: the store as a whole.
        image: which.
        doomed: layers whose locks are held.
        unmoved: raises ``stores.Moved`` when another one was meant.
        begun: gets the layers that go once the image store has committed; when the main one then has no room, and is asked
            again, it goes on with these.
    """
    main, apart = context.stores[: context.writable_stores]
    with main.catalog.write("delete-image", durable=True) as tx:
        if not begun:
            with apart.catalog.write("delete-image", durable=True) as tx_apart:
                still = _still_doomed(context, image, doomed, unmoved)
                _delete_from(tx_apart, image.id, still)
            begun.append(still)
        going = begun[0]
        free = [layer_id for layer_id in going if not _has_users(context, image.id, layer_id, going)]
        _delete_from(tx, image.id, free)
    return begun[0]


def _delete_from(tx: WriteTransaction, image_id: str, layer_ids: Sequence[str]) -> None:
    """Delete what one store has of an image and its layers."""
    if catalog_images.get_image(tx.conn, image_id) is not None:
        catalog_images.delete_image(tx, image_id)
    for layer_id in layer_ids:
        if catalog_layers.get_layer(tx.conn, layer_id) is not None:
            layers.delete_rows(tx, layer_id)


def _has_users(context: Context, image_id: str, layer_id: str, going: Sequence[str]) -> bool:
    """Tell whether something that does not go as well names a layer."""
    for part in context.stores[: context.writable_stores]:
        with part.catalog.read() as conn:
            children, users, container = layers.users_of(conn, layer_id)
        if (
            any(child not in going for child in children)
            or container is not None
            or any(user != image_id for user in users)
        ):
            return True
    return False


def delete_record(context: Context, image_id: str, unmoved: Callable[[], None] = stores.as_meant) -> bool:
    """Delete an image's record and data alone.

    Args:
        context: the store.
        image_id: which.
        unmoved: called in the first transaction; raises ``stores.Moved`` when another one was meant.

    Returns:
        False when there was none of this id.
    """
    context.need_writable()
    deleted = context.with_room(lambda: _delete_record(context, image_id, unmoved))
    directories.remove(context, "image", image_id)
    return deleted


def _delete_record(context: Context, image_id: str, unmoved: Callable[[], None]) -> bool:
    deleted = False
    for part in context.stores[: context.writable_stores]:
        with part.catalog.read() as conn:
            if catalog_images.get_image(conn, image_id) is None:
                continue
        with stores.changing(context, part, "delete-image", durable=True) as tx:
            if catalog_images.get_image(tx.conn, image_id) is None:  # another process was faster
                continue
            if not deleted:  # once the first is gone, the reference leads elsewhere
                unmoved()
            catalog_images.delete_image(tx, image_id)
            deleted = True
    return deleted
