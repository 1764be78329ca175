"""``store.containers``: the verbs of containers, each a line into a flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lading import flows
from lading.idmaps import NO_REQUEST, MapRequest
from lading.values import Container, Readable

if TYPE_CHECKING:
    from lading.flows.context import Context
    from lading.flows.owners import ParentOwners


class Containers:
    """A store's containers. A ``ref`` is an id, a name, the id of its layer or a unique prefix of its id."""

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
        return flows.records.exists_as(self._context, ref, "container")

    def by_layer(self, ref: str) -> Container:
        """Look up the container whose own layer this is.

        Raises:
            ContainerUnknown: it is no container's.
        """
        return flows.containers.by_layer(self._context, ref)

    def create(
        self,
        image: str = "",
        *,
        id: str = "",
        names: Sequence[str] = (),
        layer_id: str = "",
        metadata: str = "",
        volatile: bool = False,
        idmap: MapRequest = NO_REQUEST,
        mount_options: Sequence[str] = (),
        storage_options: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
        big_data: Mapping[str, bytes] | None = None,
    ) -> Container:
        """Make a container with a writable layer of its own on an image's top layer.

        Args:
            image: reference of the image; empty for none.
            id: the id to use; empty to draw one.
            names: names, none of which another container may have.
            layer_id: id of the new layer; empty to draw one.
            metadata: the caller's text.
            volatile: mount without syncing; recorded as a flag.
            idmap: owner maps, or the wish for automatic ones.
            mount_options: options for every mount of it, recorded as a flag.
            storage_options: ``size`` and ``inodes``; refused where the filesystem has no quotas.
            flags: the caller's JSON object.
            big_data: items to store with it.

        Raises:
            ImageUnknown, LayerUnknown, DuplicateID, DuplicateName, InvalidMappings, NoAvailableIDs, InvalidInput.
        """
        wanted = flows.containers.NewContainer(
            image, id=id, names=names, layer_id=layer_id, metadata=metadata, volatile=volatile, request=idmap,
            mount_options=mount_options, storage_options=storage_options or {}, flags=flags or {}, big_data=big_data or {},
        )  # fmt: skip
        return flows.containers.create(self._context, wanted)

    def size(self, ref: str) -> int:
        """Tell a container's size: its layer's diff size, its big data and its userdata files."""
        return flows.containers.size(self._context, ref)

    def delete(self, ref: str) -> None:
        """Delete a container with its layer.

        Raises:
            NotAContainer.
        """
        flows.containers.delete(self._context, ref)

    def parent_owners(self, ref: str) -> ParentOwners:
        """List the owners of the folders above a mounted container that its layer's maps do not cover.

        Raises:
            LayerNotMounted: the layer has maps and is not mounted.
        """
        return flows.owners.of_container(self._context, ref)

    def directory(self, ref: str) -> Path:
        """Return the container's persistent directory, made 0700 when missing."""
        return flows.directories.persistent(self._context, "container", ref)

    def run_directory(self, ref: str) -> Path:
        """Return the container's directory of this boot, made 0700 when missing."""
        return flows.directories.of_this_boot(self._context, "container", ref)

    def write_file(self, ref: str, name: str, data: bytes, *, run: bool = False) -> None:
        """Write a file below the container's directory, whole or not at all, mode 0600.

        Args:
            ref: the container.
            name: relative path; folders on the way are made 0700.
            data: the file's bytes.
            run: below the directory of this boot.
        """
        flows.directories.write_file(self._context, ref, name, data, run=run)

    def read_file(self, ref: str, name: str, *, run: bool = False) -> bytes:
        """Read a file below the container's directory, or with ``run`` below the one of this boot.

        Raises:
            NotFound: there is none of this name.
        """
        return flows.directories.read_file(self._context, ref, name, run=run)

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
