"""The three collections of a store. Each method is one line into a flow; the flows keep the order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from lading import flows
from lading.values import Change, Container, IDMap, Image, Layer, Readable

if TYPE_CHECKING:
    from lading.flows.context import Context, Progress
    from lading.flows.export import DiffStream


class Layers:
    """A store's layers. A ``ref`` is an id, a name or a unique prefix of an id."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.all())

    def all(self) -> list[Layer]:
        """List all layers, oldest first."""
        return flows.layers.list_all(self._context)

    def get(self, ref: str) -> Layer:
        """Look a layer up.

        Raises:
            LayerUnknown: nothing answers to the reference.
        """
        return flows.layers.get(self._context, ref)

    def exists(self, ref: str) -> bool:
        """Tell whether a layer answers to the reference."""
        return flows.layers.find(self._context, ref) is not None

    def create(
        self,
        parent: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        label: str = "",
        metadata: str = "",
        uidmap: Sequence[IDMap] = (),
        gidmap: Sequence[IDMap] = (),
    ) -> Layer:
        """Make an empty layer.

        Args:
            parent: reference of the layer below; empty for none.
            id: the id to use; empty to draw 32 hex digits.
            names: names, none of which another layer may have.
            label: mount label kept in the record.
            metadata: the caller's text.
            uidmap: owner map of the layer, recorded.
            gidmap: group map of the layer, recorded.

        Raises:
            LayerUnknown, ParentIsContainer, DuplicateID, DuplicateName, InvalidInput.
        """
        return flows.layers.create(
            self._context, parent, id=id, names=names, label=label, metadata=metadata, uidmap=uidmap, gidmap=gidmap
        )

    def import_(
        self,
        stream: Readable,
        parent: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        label: str = "",
        metadata: str = "",
        expected: str = "",
        progress: Progress | None = None,
    ) -> Layer:
        """Make a layer and apply a diff to it in one step; a failure leaves no layer behind.

        Args:
            stream: a layer tar, plain or compressed with gzip, bzip2, xz or zstd.
            parent: as in :meth:`create`, like ``id``, ``names``, ``label`` and ``metadata``.
            id: see above.
            names: see above.
            label: see above.
            metadata: see above.
            expected: ``sha256:…`` that the stream must have, as presented or uncompressed.
            progress: called with the bytes read so far.
        """
        return flows.layers.import_layer(
            self._context, stream, parent, id=id, names=names, label=label, metadata=metadata,
            expected=expected, progress=progress,
        )  # fmt: skip

    def apply(self, ref: str, stream: Readable, *, expected: str = "", progress: Progress | None = None) -> Layer:
        """Apply a diff on top of what the layer holds.

        Raises:
            LayerUnknown: no such layer.
            InvalidInput: the stream is no layer tar, is cut or damaged, or is not the ``expected`` one;
                the layer is as it was.
        """
        return flows.layers.apply(self._context, ref, stream, expected=expected, progress=progress)

    def diff(
        self, ref: str, against: str | None = None, *, compression: int | None = None
    ) -> AbstractContextManager[DiffStream]:
        """Open the layer's diff as a tar stream; iterate over it for chunks of bytes.

        Args:
            ref: the layer.
            against: a layer to compare with; None for the parent.
            compression: index into ``values.COMPRESSIONS``; None for the recorded one.
        """
        return flows.export.diff(self._context, ref, against, compression=compression)

    def changes(self, ref: str, against: str | None = None) -> list[Change]:
        """List what differs from another layer, by default from the parent."""
        return flows.export.changes(self._context, ref, against)

    def diffsize(self, ref: str, against: str | None = None) -> int:
        """Estimate the bytes of the files in the diff."""
        return flows.export.diffsize(self._context, ref, against)

    def size(self, ref: str) -> int:
        """Tell the recorded uncompressed size of the diff, or -1 when none was applied."""
        return flows.layers.size(self._context, ref)

    def seal(self, ref: str) -> Layer:
        """Turn what was written through a mount into an immutable content of the layer.

        Raises:
            InUse: the layer is mounted.
        """
        return flows.sealing.seal(self._context, ref)

    def delete(self, ref: str) -> None:
        """Delete a layer that nothing uses.

        Raises:
            NotALayer, LayerHasChildren, LayerUsedByImage, LayerUsedByContainer.
        """
        flows.layers.delete(self._context, ref)

    def data_names(self, ref: str) -> tuple[str, ...]:
        """List the keys of the layer's big data, in the order they were first set."""
        return flows.bigdata.names(self._context, "layer", ref)

    def data(self, ref: str, key: str) -> Iterator[bytes]:
        """Read a big data item as chunks."""
        return flows.bigdata.read(self._context, "layer", ref, key)

    def set_data(self, ref: str, key: str, stream: Readable) -> None:
        """Store or replace a big data item."""
        flows.bigdata.store(self._context, "layer", ref, key, stream)


class Images:
    """A store's images."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __iter__(self) -> Iterator[Image]:
        return iter(self.all())

    def all(self) -> list[Image]:
        """List all images, oldest first."""
        return flows.images.list_all(self._context)

    def get(self, ref: str) -> Image:
        """Look an image up.

        Raises:
            ImageUnknown: nothing answers to the reference.
        """
        return flows.images.get(self._context, ref)

    def exists(self, ref: str) -> bool:
        """Tell whether an image answers to the reference."""
        return flows.images.find(self._context, ref) is not None

    def create(
        self,
        layer: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        digest: str = "",
        metadata: str = "",
        big_data: Mapping[str, bytes] | None = None,
        created_ns: int | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Image:
        """Make an image, with all its data in one commit.

        Args:
            layer: reference of the top layer; empty for an image without layers.
            id: the id to use; empty to draw one.
            names: names, none of which another image may have.
            digest: ``algorithm:hex`` by which the image is found, too.
            metadata: the caller's text.
            big_data: items to store with it.
            created_ns: creation time to record; None for now.
            flags: the caller's JSON object.
        """
        return flows.images.create(
            self._context, layer, id=id, names=names, digest=digest, metadata=metadata,
            big_data=big_data or {}, created_ns=created_ns, flags=flags or {},
        )  # fmt: skip

    def by_digest(self, digest: str) -> list[Image]:
        """List the images that have this digest, as their own or as a manifest's."""
        return flows.images.by_digest(self._context, digest)

    def size(self, ref: str) -> int:
        """Tell an image's size: recorded diff sizes of its layers plus its big data."""
        return flows.images.size(self._context, ref)

    def delete(self, ref: str, *, dry_run: bool = False) -> list[str]:
        """Delete an image and the layers that only it needs.

        Returns:
            Ids of the layers removed (or that would be), topmost first.

        Raises:
            NotAnImage, ImageUsedByContainer.
        """
        return flows.images.delete(self._context, ref, dry_run=dry_run)

    def data_names(self, ref: str) -> tuple[str, ...]:
        """List the keys of the image's big data, in the order they were first set."""
        return flows.bigdata.names(self._context, "image", ref)

    def data(self, ref: str, key: str) -> Iterator[bytes]:
        """Read a big data item as chunks."""
        return flows.bigdata.read(self._context, "image", ref, key)

    def data_size(self, ref: str, key: str) -> int:
        """Tell the bytes of a big data item."""
        return flows.bigdata.size(self._context, "image", ref, key)

    def data_digest(self, ref: str, key: str) -> str:
        """Tell the digest of a big data item."""
        return flows.bigdata.digest(self._context, "image", ref, key)

    def set_data(self, ref: str, key: str, stream: Readable) -> None:
        """Store or replace a big data item."""
        flows.bigdata.store(self._context, "image", ref, key, stream)


class Containers:
    """A store's containers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __iter__(self) -> Iterator[Container]:
        return iter(self.all())

    def all(self) -> list[Container]:
        """List all containers, oldest first."""
        return flows.containers.list_all(self._context)

    def get(self, ref: str) -> Container:
        """Look a container up, also by the id of its layer.

        Raises:
            ContainerUnknown: nothing answers to the reference.
        """
        return flows.containers.get(self._context, ref)

    def exists(self, ref: str) -> bool:
        """Tell whether a container answers to the reference."""
        return flows.containers.find(self._context, ref) is not None

    def create(
        self,
        image: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        layer_id: str = "",
        metadata: str = "",
        volatile: bool = False,
        uidmap: Sequence[IDMap] = (),
        gidmap: Sequence[IDMap] = (),
        flags: Mapping[str, object] | None = None,
    ) -> Container:
        """Make a container with a writable layer of its own on an image's top layer.

        Args:
            image: reference of the image; empty for none.
            id: the id to use; empty to draw one.
            names: names, none of which another container may have.
            layer_id: id of the new layer; empty to draw one.
            metadata: the caller's text.
            volatile: mount without syncing; recorded as a flag.
            uidmap: owner map, recorded.
            gidmap: group map, recorded.
            flags: the caller's JSON object.
        """
        return flows.containers.create(
            self._context, image, id=id, names=names, layer_id=layer_id, metadata=metadata, volatile=volatile,
            uidmap=uidmap, gidmap=gidmap, flags=flags or {},
        )  # fmt: skip

    def size(self, ref: str) -> int:
        """Tell a container's size: its layer's diff size, its big data and its userdata files."""
        return flows.containers.size(self._context, ref)

    def delete(self, ref: str) -> None:
        """Delete a container with its layer.

        Raises:
            NotAContainer.
        """
        flows.containers.delete(self._context, ref)

    def directory(self, ref: str) -> Path:
        """Return the container's persistent directory, made 0700 when missing."""
        return flows.containers.directory(self._context, ref)

    def run_directory(self, ref: str) -> Path:
        """Return the container's directory of this boot, made 0700 when missing."""
        return flows.containers.run_directory(self._context, ref)

    def data_names(self, ref: str) -> tuple[str, ...]:
        """List the keys of the container's big data, in the order they were first set."""
        return flows.bigdata.names(self._context, "container", ref)

    def data(self, ref: str, key: str) -> Iterator[bytes]:
        """Read a big data item as chunks."""
        return flows.bigdata.read(self._context, "container", ref, key)

    def data_size(self, ref: str, key: str) -> int:
        """Tell the bytes of a big data item."""
        return flows.bigdata.size(self._context, "container", ref, key)

    def data_digest(self, ref: str, key: str) -> str:
        """Tell the digest of a big data item."""
        return flows.bigdata.digest(self._context, "container", ref, key)

    def set_data(self, ref: str, key: str, stream: Readable) -> None:
        """Store or replace a big data item."""
        flows.bigdata.store(self._context, "container", ref, key, stream)
