"""Upkeep of the whole store: wipe, shutdown, status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from lading import private
from lading.errors import InvalidInput, LayerUsedByContainer, NotAContainer, NotALayer
from lading.flows import areas, containers, images, layers, mounting
from lading.flows.context import Context
from lading.locks import file_lock
from lading.values import printable


def wipe(context: Context) -> None:
    """Delete containers, then images, then layers, youngest first. Bytes go with the next collection.

    What another process deletes meanwhile is as gone as it should be.
    """
    context.need_writable()
    for container in containers.list_all(context):
        with suppress(NotAContainer):
            containers.delete(context, container.id)
    for image in images.list_all(context):
        if not image.read_only:
            images.delete_record(context, image.id)
    for layer in reversed(layers.list_all(context)):
        if not layer.read_only:
            with suppress(NotALayer):
                layers.delete_unchecked(context, layer.id)
    areas.collect_debris(context, dry_run=False)


def shutdown(context: Context, *, force: bool) -> list[str]:
    """Unmount what is mounted if told to.

    Raises:
        LayerUsedByContainer: something was mounted; with ``force`` it no longer is.
    """
    mounted = [mount.layer for mount in mounting.mounts(context)]
    if not mounted:
        return []
    if force:
        for layer_id in mounted:
            mounting.unmount(context, layer_id, force=True)
    raise LayerUsedByContainer("a layer is mounted")


@contextmanager
def digest_lock(context: Context, digest: str) -> Iterator[None]:
    """Hold a lock that all processes of this boot share, named by a digest; it dies with its owner.

    Raises:
        InvalidInput: an empty digest.
        Busy: somebody else held it for longer than the wait allows.
    """
    if not digest:
        raise InvalidInput("a digest lock needs a digest")
    folder = context.mount_table.folder / "digests"
    private.make_folders(folder)
    name = blake3(digest.encode()).hexdigest(16)
    with file_lock(folder / name, f"digest {printable(digest)}", "digest lock", wait_s=context.settings.wait_s):
        yield


def status(context: Context) -> list[tuple[str, str]]:
    """Describe roots, driver and abilities."""
    pairs = [
        ("Root", str(context.root)),
        ("Run Root", str(context.run_root)),
        ("Driver Name", context.driver),
        ("Driver Options", f"[{' '.join(context.settings.driver_options)}]"),
    ]
    if context.driver == "overlay":
        pairs += [
            ("Backing Filesystem", backing_filesystem(context.root)),
            ("Supports d_type", "true"),
            ("Native Overlay Diff", "true"),
            ("Using metacopy", "false"),
            ("Supports shifting", _word(context.shifts)),
            ("Supports volatile", _word(context.abilities.overlay)),
        ]
    return pairs


def _word(value: bool) -> str:
    return "true" if value else "false"


def backing_filesystem(path: Path) -> str:
    """Name the filesystem a path lies on, in the words status has always used."""
    from lading.materialize.mounts import mountinfo

    resolved = str(path.resolve())
    best, kind = "", "unknown"
    for mount in mountinfo():
        point = str(mount.path)
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, mount.fstype
    return {"ext2": "extfs", "ext3": "extfs", "ext4": "extfs"}.get(kind, kind)
