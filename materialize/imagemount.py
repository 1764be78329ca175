"""EROFS images as mounts that are attached nowhere: straight from the file, or through a loop device."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from lading import locks, private
from lading.errors import Unsupported
from lading.materialize import syscalls
from lading.materialize.erofsformat import BLOCK

#: Nobody runs a device or a setuid file of an image by way of the cache; the mount on top has flags of its own.
_ATTRIBUTES: Final = syscalls.MOUNT_ATTR_RDONLY

#: Begins the names of folders where images are attached for a moment; the lock tells whether anybody is at it.
_ATTACHED_PREFIX: Final = ".image-"
_LOCK: Final = ".images.lock"


class ImageAbilities(Protocol):
    """What mounting an image needs to know of the machine."""

    @property
    def erofs_file(self) -> bool:
        """The kernel mounts an image from its file."""

    @property
    def erofs_loop(self) -> bool:
        """The kernel mounts an image from a loop device."""


def open_image(image: Path, abilities: ImageAbilities) -> int:
    """Mount an image, attached nowhere.

    Returns:
        A descriptor; the mount goes when it is closed and nothing is stacked on it.

    Raises:
        Unsupported: the kernel refuses the image, or there is no way to mount one here.
    """
    with _source(image, abilities) as source:
        descriptor = syscalls.fsopen(b"erofs")
        try:
            syscalls.fsconfig_string(descriptor, b"source", source)
            syscalls.fsconfig_flag(descriptor, b"ro")
            syscalls.fsconfig_create(descriptor)
            return syscalls.fsmount(descriptor, _ATTRIBUTES)
        except OSError as error:
            raise Unsupported(f"image {image} cannot be mounted: {(error.strerror or '').lower()}") from error
        finally:
            os.close(descriptor)


@contextmanager
def _source(image: Path, abilities: ImageAbilities) -> Iterator[bytes]:
    """What the kernel is told to mount: the file itself, or a loop device that lives as long as the mount."""
    if abilities.erofs_file:
        yield os.fsencode(image)
        return
    if not abilities.erofs_loop:
        raise Unsupported("this kernel mounts no EROFS images here")
    from lading.materialize import loop

    file = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        device, path = loop.attach(file, block_size=BLOCK)
    finally:
        os.close(file)
    try:
        yield os.fsencode(path)
    finally:
        os.close(device)


@contextmanager
def _tidied(scratch: Path) -> Iterator[None]:
    """Hold a lock that says that somebody attaches images; whoever is alone removes what a kill left."""
    descriptor = private.opened(scratch / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(scratch):
                if name.startswith(_ATTACHED_PREFIX):
                    with suppress(OSError):  # killed before the mount
                        syscalls.umount2(os.fsencode(scratch / name), syscalls.MNT_DETACH)
                    os.rmdir(scratch / name)
        locks.take(descriptor, fcntl.LOCK_SH, "attaching of images")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def attached_images(images: Sequence[Path], scratch: Path, abilities: ImageAbilities) -> Iterator[dict[Path, Path]]:
    """Mount images in folders of their own while something is stacked on them: for kernels without detached mounts.

    Args:
        images: what to mount.
        scratch: an existing private folder.
        abilities: what works here.

    Returns:
        The folder of each. The folders go at the end; whatever is stacked on them keeps the mounts.
    """
    import tempfile

    found: dict[Path, Path] = {}
    with ExitStack() as stack:
        if images:
            stack.enter_context(_tidied(scratch))
        for image in images:
            folder = Path(tempfile.mkdtemp(prefix=_ATTACHED_PREFIX, dir=scratch))
            stack.callback(os.rmdir, folder)
            source = stack.enter_context(_source(image, abilities))
            try:
                syscalls.mount(source, os.fsencode(folder), b"erofs", syscalls.MS_RDONLY, b"")
            except OSError as error:
                raise Unsupported(f"image {image} cannot be mounted: {(error.strerror or '').lower()}") from error
            stack.callback(syscalls.umount2, os.fsencode(folder), syscalls.MNT_DETACH)
            found[image] = folder
        yield found
