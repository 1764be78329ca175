"""``store.images``: the verbs of images, each a line into a flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lading import flows
from lading.values import Image, Readable

if TYPE_CHECKING:
    from lading.flows.context import Context


class Images:
    """A store's images. A ``ref`` is an id, a name or a unique prefix of an id."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __iter__(self) -> Iterator[Image]:
        return iter(self.all())

    def all(self) -> list[Image]:
        """List all images, oldest first; those of other stores come behind the main one's."""
        return flows.images.list_all(self._context)

    def get(self, ref: str) -> Image:
        """Look an image up.

        Raises:
            ImageUnknown: nothing answers to the reference.
        """
        return flows.images.get(self._context, ref)

    def exists(self, ref: str) -> bool:
        """Tell whether an image answers to the reference."""
        return flows.records.exists_as(self._context, ref, "image")

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
        names_history: Sequence[str] = (),
    ) -> Image:
        """Make an image, with all its data in one commit.

        An image of the same id in a store that is only read gives what is not said here.

        Args:
            layer: reference of the top layer; empty for an image without layers.
            id: the id to use; empty to draw one.
            names: names, none of which another image may have.
            digest: ``algorithm:hex`` by which the image is found, too.
            metadata: the caller's text.
            big_data: items to store with it.
            created_ns: creation time to record; None for now.
            flags: the caller's JSON object.
            names_history: names it once had, newest first.
        """
        wanted = flows.images.NewImage(
            layer, id=id, names=names, digest=digest, metadata=metadata, big_data=big_data or {},
            created_ns=created_ns, flags=flags or {}, names_history=names_history,
        )  # fmt: skip
        return flows.images.create(self._context, wanted)

    def by_digest(self, digest: str, *, strict: bool = False) -> list[Image]:
        """List the images that have this digest, as their own or as a manifest's.

        Args:
            digest: ``algorithm:hex``.
            strict: refuse a malformed digest; without it, it finds nothing.
        """
        return flows.images.by_digest(self._context, digest, strict=strict)

    def by_top_layer(self, ref: str) -> list[Image]:
        """List the images whose top layer, or a mapped copy of it, a layer is.

        Raises:
            LayerUnknown: no such layer.
        """
        return flows.images.by_top_layer(self._context, ref)

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

    def mount(self, ref: str, *, label: str = "", options: Sequence[str] = (), flatten: bool = False) -> Path:
        """Mount an image's top layer, read-only.

        Args:
            ref: the image.
            label: SELinux mount label.
            options: mount options; ``rw`` is refused.
            flatten: show all layers as one, so that look-ups do not depend on how many there are.
        """
        return flows.mounting.mount_image(self._context, ref, label=label, options=options, flatten=flatten)

    def unmount(self, ref: str, *, force: bool = False) -> bool:
        """Give one mount of an image back; ``force`` gives all back.

        Returns:
            False when others still have it mounted.
        """
        return flows.mounting.unmount_image(self._context, ref, force=force)

    def directory(self, ref: str) -> Path:
        """Return the image's persistent directory, made 0700 when missing."""
        return flows.directories.persistent(self._context, "image", ref)

    def run_directory(self, ref: str) -> Path:
        """Return the image's directory of this boot, made 0700 when missing."""
        return flows.directories.of_this_boot(self._context, "image", ref)

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

    def set_data(
        self, ref: str, key: str, stream: Readable, *, digest_of: Callable[[bytes], str] | None = None
    ) -> None:
        """Store or replace a big data item.

        Args:
            ref: the image.
            key: the item's name; one that begins with ``manifest`` gives a digest the image is found by.
            stream: its bytes.
            digest_of: computes that digest; None for the sha256 of the bytes.
        """
        flows.bigdata.store(self._context, "image", ref, key, stream, digest_of=digest_of)
