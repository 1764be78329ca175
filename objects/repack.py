"""Rewriting packs: frames that are still needed go into new packs, verified, without compressing again."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from blake3 import blake3

from lading.errors import Corrupt
from lading.objects.backend import PackBackend
from lading.objects.durable import Staging
from lading.objects.frame import decompress
from lading.objects.layout import PACK_SUFFIX
from lading.objects.pack import PackWriter, frames_of, new_pack_name
from lading.values import Location, PackContents


class Unmovable(Corrupt):
    """An object could not be read whole from where it lies, so its pack cannot be rewritten."""

    def __init__(self, location: Location, why: object) -> None:
        super().__init__(f"object {location.digest.hex()}: {why}")
        self.location = location


def repack(backend: PackBackend, staging: Staging, locations: Sequence[Location]) -> PackContents:
    """Copy objects into one new pack, in this order, and publish it.

    Each object is read, decompressed and hashed on the way: damage is not carried on.

    Raises:
        Unmovable: an object is damaged, missing or unreadable; nothing is published.
        Full, ReadOnly: as told by the filesystem.
    """
    path, descriptor = staging.new_file(PACK_SUFFIX)
    writer = PackWriter(path, descriptor, new_pack_name())
    try:
        for location in locations:
            _copy(backend, writer, location)
        contents = writer.finish()
    finally:
        writer.abort()
    backend.publish(path, contents.name)
    return contents


def _copy(backend: PackBackend, writer: PackWriter, location: Location) -> None:
    state = blake3()
    sizes = []
    for offset, stored_size, size in frames_of(location):
        try:
            stored = backend.read(location.pack, offset, stored_size)
            state.update(decompress(location.codec, stored, size))
        except (OSError, Corrupt) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            raise Unmovable(location, error) from error
        writer.append(stored)
        sizes.append(stored_size)
    if state.digest() != location.digest:
        raise Unmovable(location, "has other bytes than it should")
    writer.note(location.digest, location.kind, location.codec, location.size, sizes)
