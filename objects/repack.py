"""Rewriting packs: frames that are still needed go into new packs, verified, without compressing again."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from lading.objects.backend import PackBackend
from lading.objects.durable import Staging
from lading.objects.frame import decompress
from lading.objects.layout import PACK_SUFFIX
from lading.objects.pack import PackWriter, frames_of, new_pack_name
from lading.objects.reader import DigestMismatch
from lading.values import Location, PackContents


def repack(backend: PackBackend, staging: Staging, locations: Sequence[Location]) -> PackContents:
    """Copy objects into one new pack, in this order, and publish it.

    Each object is read, decompressed and hashed on the way: damage is not carried on.

    Raises:
        DigestMismatch: an object is damaged; nothing is published.
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
        stored = backend.read(location.pack, offset, stored_size)
        state.update(decompress(location.codec, stored, size))
        writer.append(stored)
        sizes.append(stored_size)
    if state.digest() != location.digest:
        raise DigestMismatch(location.digest, "has other bytes than it should")
    writer.note(location.digest, location.kind, location.codec, location.size, sizes)
