"""Several stores opened as one: the main one, a split-off image store, and read-only ones beside them.

Records of all are found together; each knows by its ``origin`` which store it is in. Nothing is ever written
to a store that is only beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from lading.catalog import content as catalog_content
from lading.catalog import images as catalog_images
from lading.catalog import layers as catalog_layers
from lading.catalog import names as catalog_names
from lading.catalog.database import WriteTransaction
from lading.catalog.engine import Connection
from lading.errors import Busy, LayerUnknown
from lading.flows.context import Context
from lading.values import Image, Layer, RecordKind

#: Digests whose places are looked up together when there are several stores.
LOOKUP: int = 256

#: How often a reference is looked up again. Each time another process has to change a record between two steps of this
#: one, so so many in a row are a mistake of this program's own.
MOVES_MAX: int = 1000

Result = TypeVar("Result")


class Moved(Exception):
    """A reference leads to another record than when it was looked up."""


def settled(act: Callable[[], Result]) -> Result:
    """Do something that looks a reference up and then changes what it found; again while references move.

    Args:
        act: raises ``Moved``, having changed nothing, when its transaction finds another record.

    Raises:
        Busy: they never stopped moving.
    """
    for _ in range(MOVES_MAX):
        with suppress(Moved):
            return act()
    raise Busy("the records asked for change faster than they can be looked up; try again")


def as_meant() -> None:
    """For what was named by its id, which leads nowhere else."""


@contextmanager
def snapshot(context: Context) -> Iterator[None]:
    """Let all look-ups inside the block see one state of each store."""
    with ExitStack() as stack:
        for part in context.stores:
            stack.enter_context(part.catalog.read())
        yield


@contextmanager
def changing(context: Context, part: Context, verb: str, *, durable: bool = False) -> Iterator[WriteTransaction]:
    """Change records of one store that those of another one may name, or that name one there.

    Where images are in a store of their own, whoever changes it holds the main store's writer lock as well: what was
    looked up there, that no container is made of an image, or that a layer is still there, stays true up to the commit.
    The main store's lock comes first, always.

    Args:
        context: the store as a whole.
        part: the one whose records change.
        verb: what is done.
        durable: see :meth:`lading.catalog.database.Catalog.write`.

    Raises:
        Busy: another writer held a lock for too long.
    """
    with ExitStack() as stack:
        if part is not context:
            stack.enter_context(context.catalog.exclusive(verb))
        yield stack.enter_context(part.catalog.write(verb, durable=durable))


def home(context: Context, record: Layer | Image) -> Context:
    """The store that holds a record."""
    return context.stores[record.origin]


def layer_at(context: Context, conn: Connection, origin: int, layer_id: str) -> Layer | None:
    """Read a layer of one store by its exact id."""
    found = catalog_layers.get_layer(conn, layer_id)
    return None if found is None else marked_layer(context, found, origin)


def marked_layer(context: Context, layer: Layer, origin: int) -> Layer:
    """A layer that knows its origin."""
    return replace(layer, origin=origin, read_only=origin >= context.writable_stores) if origin else layer


def marked_image(context: Context, image: Image, origin: int) -> Image:
    """An image that knows its origin."""
    return replace(image, origin=origin, read_only=origin >= context.writable_stores) if origin else image


def find_layer(context: Context, ref: str, *, writable: bool = False) -> Layer | None:
    """Look a layer up: the main store first, then the others in order.

    Args:
        context: the store.
        ref: id, name or prefix.
        writable: look only where layers can be changed.
    """
    for origin, part in enumerate(context.stores[: context.writable_stores] if writable else context.stores):
        with part.catalog.read() as conn:
            found = catalog_names.resolve(conn, "layer", ref)
            if found is not None:
                return layer_at(context, conn, origin, found)
    return None


def layer_by_id(context: Context, layer_id: str, near: int = 0) -> Layer | None:
    """Find a layer by its exact id, first in the store that asks for it."""
    for origin in (near, *(number for number in range(len(context.stores)) if number != near)):
        with context.stores[origin].catalog.read() as conn:
            found = layer_at(context, conn, origin, layer_id)
        if found is not None:
            return found
    return None


def find_image(context: Context, ref: str, *, writable: bool = False) -> Image | None:
    """Look an image up: the main store first, then the others in order.

    A record that was pulled up into a writable store hides the one it came from: what answers there alone is
    a name that the image has lost.
    """
    order = context.image_origins
    for position, origin in enumerate(order):
        if writable and origin >= context.writable_stores:
            continue
        with context.stores[origin].catalog.read() as conn:
            found = catalog_names.resolve(conn, "image", ref)
            image = catalog_images.get_image(conn, found) if found is not None else None
        if image is None or any(_has_image(context, earlier, image.id) for earlier in order[:position]):
            continue
        return marked_image(context, image, origin)
    return None


def _has_image(context: Context, origin: int, image_id: str) -> bool:
    with context.stores[origin].catalog.read() as conn:
        return catalog_names.seq_of(conn, "image", image_id) is not None


def image_by_id(context: Context, image_id: str) -> Image | None:
    """Find an image by its exact id."""
    for origin in context.image_origins:
        with context.stores[origin].catalog.read() as conn:
            found = catalog_images.get_image(conn, image_id)
        if found is not None:
            return marked_image(context, found, origin)
    return None


def find_any(context: Context, ref: str, order: Sequence[RecordKind]) -> tuple[RecordKind, int, str] | None:
    """Resolve a reference over several kinds and all stores.

    Returns:
        Kind, origin and id; the first kind that knows it wins. Containers are only those of the main store.
    """
    with snapshot(context):
        for kind in order:
            for origin in origins(context, kind):
                with context.stores[origin].catalog.read() as conn:
                    found = catalog_names.resolve(conn, kind, ref)
                if found is not None:
                    return kind, origin, found
    return None


def origins(context: Context, kind: RecordKind) -> Sequence[int]:
    """The stores that have records of a kind, in the order of looking."""
    match kind:
        case "layer":
            return range(len(context.stores))
        case "image":
            return context.image_origins
        case "container":
            return (0,)


def chain(context: Context, layer: Layer) -> list[Layer]:
    """List a layer and its ancestors, the layer first.

    Raises:
        LayerUnknown: a parent's record is gone, or the parents run in a circle.
    """
    found = [layer]
    seen = {layer.id}
    while found[-1].parent:
        parent = layer_by_id(context, found[-1].parent, found[-1].origin)
        if parent is None or parent.id in seen:
            raise LayerUnknown(f"parent {found[-1].parent} of layer {found[-1].id}")
        seen.add(parent.id)
        found.append(parent)
    return found


@contextmanager
def epochs(context: Context) -> Iterator[int]:
    """Hold the newest epoch of every store, so that no collection takes away what is relied on.

    Returns:
        The main store's.
    """
    with ExitStack() as stack:
        held = [stack.enter_context(part.epochs.shared()) for part in context.stores]
        yield held[0]


class Objects:
    """The objects of several stores, as one source. See ``values.ContentSource``."""

    def __init__(self, parts: Sequence[Context]) -> None:
        self._parts = parts

    def contents(self, digests: Iterable[bytes], *, verify: bool = True) -> Iterator[Iterator[bytes]]:
        """Open many objects, in order, each from the first store that has it."""
        if len(self._parts) == 1:
            yield from self._parts[0].reader.contents(digests, verify=verify)
            return
        source = iter(digests)
        while batch := list(islice(source, LOOKUP)):
            places = self._places(batch)
            start = 0
            while start < len(batch):
                end = start
                while end < len(batch) and places[end] == places[start]:
                    end += 1
                yield from self._parts[places[start]].reader.contents(batch[start:end], verify=verify)
                start = end

    def _places(self, digests: Sequence[bytes]) -> list[int]:
        """For each digest the number of the first part that has it; the main one when none has."""
        found: dict[bytes, int] = {}
        for number, part in enumerate(self._parts):
            missing = [digest for digest in digests if digest not in found]
            if not missing:
                break
            with part.catalog.read() as conn:
                found.update(dict.fromkeys(catalog_content.locate(conn, missing), number))
        return [found.get(digest, 0) for digest in digests]
