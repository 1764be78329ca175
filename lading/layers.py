"""``store.layers``: the verbs of layers, each a line into a flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lading import flows
from lading.idmaps import NO_REQUEST, MapRequest
from lading.values import Change, Layer, Readable

if TYPE_CHECKING:
    from lading.flows.context import Context, Progress
    from lading.flows.export import DiffStream
    from lading.flows.layerstore import AdditionalLayer
    from lading.flows.owners import ParentOwners
    from lading.flows.staging import Differ, StagedLayer


class Layers:
    """A store's layers. A ``ref`` is an id, a name or a unique prefix of an id."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.all())

    def all(self) -> list[Layer]:
        """List all layers, oldest first; those of other stores come behind the main one's."""
        return flows.layers.list_all(self._context)

    def get(self, ref: str) -> Layer:
        """Look a layer up.

        Raises:
            LayerUnknown: nothing answers to the reference.
        """
        return flows.layers.get(self._context, ref)

    def exists(self, ref: str) -> bool:
        """Tell whether a layer answers to the reference."""
        return flows.records.exists_as(self._context, ref, "layer")

    def by_compressed_digest(self, digest: str) -> list[Layer]:
        """List the layers whose last diff had this digest as it was presented.

        Raises:
            InvalidInput: the digest is malformed.
            LayerUnknown: no layer has it.
        """
        return flows.layers.by_digest(self._context, "compressed_digest", digest)

    def by_diff_digest(self, digest: str) -> list[Layer]:
        """List the layers whose last diff had this digest uncompressed; errors as in :meth:`by_compressed_digest`."""
        return flows.layers.by_digest(self._context, "diff_digest", digest)

    def by_toc_digest(self, digest: str) -> list[Layer]:
        """List the layers whose table of contents has this digest; errors as in :meth:`by_compressed_digest`."""
        return flows.layers.by_digest(self._context, "toc_digest", digest)

    def create(
        self,
        parent: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        label: str = "",
        metadata: str = "",
        idmap: MapRequest = NO_REQUEST,
        read_only: bool = False,
        template: str = "",
        flags: Mapping[str, Any] | None = None,
        big_data: Mapping[str, bytes] | None = None,
    ) -> Layer:
        """Make an empty layer, or a copy of a template.

        Args:
            parent: reference of the layer below; empty for none.
            id: the id to use; empty to draw 32 hex digits.
            names: names, none of which another layer may have.
            label: mount label kept in the record.
            metadata: the caller's text.
            idmap: owner maps; the parent's when nothing is said. Where owners are shifted at mount time, layers
                have none.
            read_only: keep it in the split-off image store, if there is one.
            template: a layer on the same parent whose content, digests and metadata are copied.
            flags: the caller's JSON object.
            big_data: items to store with it.

        Raises:
            LayerUnknown, ParentIsContainer, DuplicateName, InvalidInput.
            DuplicateID: ``existing`` is the layer that has the id.
        """
        wanted = flows.layers.NewLayer(
            parent, id=id, names=names, label=label, metadata=metadata, request=idmap, read_only=read_only,
            template=template, flags=flags or {}, big_data=big_data or {},
        )  # fmt: skip
        return flows.layers.create(self._context, wanted)

    def import_(
        self,
        stream: Readable,
        parent: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        label: str = "",
        metadata: str = "",
        idmap: MapRequest = NO_REQUEST,
        read_only: bool = False,
        expected: str = "",
        original_digest: str = "",
        original_size: int = 0,
        flags: Mapping[str, Any] | None = None,
        big_data: Mapping[str, bytes] | None = None,
        progress: Progress | None = None,
    ) -> Layer:
        """Make a layer and apply a diff to it in one step; a failure leaves no layer behind.

        Args:
            stream: a layer tar, plain or compressed with gzip, bzip2, xz or zstd.
            parent: as in :meth:`create`, like ``id`` to ``read_only``, ``flags`` and ``big_data``.
            id: see above.
            names: see above.
            label: see above.
            metadata: see above.
            idmap: see above.
            read_only: see above.
            expected: ``sha256:…`` that the stream must have, as presented or uncompressed.
            original_digest: to record as the digest of the diff as presented, when the caller has unpacked it.
            original_size: its bytes.
            flags: see above.
            big_data: see above.
            progress: called with the bytes read so far.
        """
        wanted = flows.layers.NewLayer(
            parent, id=id, names=names, label=label, metadata=metadata, request=idmap, read_only=read_only,
            original_digest=original_digest, original_size=original_size, flags=flags or {}, big_data=big_data or {},
        )  # fmt: skip
        return flows.layers.import_layer(self._context, stream, wanted, expected=expected, progress=progress)

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

    def parent_owners(self, ref: str) -> ParentOwners:
        """List the owners of the folders above a mounted layer that its maps do not cover.

        Raises:
            LayerNotMounted: the layer has maps and is not mounted.
        """
        return flows.owners.of_layer(self._context, ref)

    def data_names(self, ref: str) -> tuple[str, ...]:
        """List the keys of the layer's big data, in the order they were first set."""
        return flows.bigdata.names(self._context, "layer", ref)

    def data(self, ref: str, key: str) -> Iterator[bytes]:
        """Read a big data item as chunks."""
        return flows.bigdata.read(self._context, "layer", ref, key)

    def set_data(self, ref: str, key: str, stream: Readable) -> None:
        """Store or replace a big data item."""
        flows.bigdata.store(self._context, "layer", ref, key, stream)

    def stage(self, differ: Differ) -> StagedLayer:
        """Prepare a layer's content aside, without any lock.

        Args:
            differ: called with an empty folder to fill; says what it made.

        Returns:
            What :meth:`apply_staged` or :meth:`discard_staged` takes; one of the two must follow.

        Raises:
            NotSupported: the driver is not overlay.
        """
        return flows.staging.prepare(self._context, differ)

    def apply_staged(
        self, staged: StagedLayer, ref: str = "", *, parent: str = "", id: str = "", names: Sequence[str] = ()
    ) -> Layer:
        """Make a layer of what was staged, or put it in place of what a layer holds.

        Args:
            staged: from :meth:`stage`; used up.
            ref: an existing layer; empty to make one.
            parent: as in :meth:`create`, like ``id`` and ``names``; for a new layer.
            id: see above.
            names: see above.
        """
        return flows.staging.apply(self._context, staged, ref, parent=parent, id=id, names=names)

    def discard_staged(self, staged: StagedLayer) -> None:
        """Remove what was staged. Twice is harmless."""
        flows.staging.discard(staged)

    def differ_target(self, ref: str) -> Path:
        """Return the folder that a layer's own content is written to: its write area.

        Raises:
            LayerUnknown: no such layer.
            NotSupported: the driver is not overlay.
        """
        return flows.staging.target_of(self._context, ref)

    def apply_directory(self, ref: str, directory: Path) -> Layer:
        """Stage a folder's tree and put it into a layer, which is made when there is none of this id.

        Raises:
            InvalidInput: partial images are not enabled in the pull options.
            NotSupported: the driver is not overlay.
        """
        return flows.staging.apply_directory(self._context, ref, directory)

    def additional(self, toc_digest: str, reference: str = "") -> AdditionalLayer:
        """Look a layer up in the additional layer stores, by the digest of its table of contents.

        Raises:
            LayerUnknown: none of them has it.
        """
        return flows.layerstore.lookup(self._context, toc_digest, reference)
