"""Packs, the writer and the reader."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading.errors import Corrupt
from lading.objects import verify
from lading.objects.durable import Staging, debris
from lading.objects.folder import FolderBackend
from lading.objects.memory import MemoryBackend
from lading.objects.pack import pack_size_of, read_index
from lading.objects.reader import DigestMismatch, ObjectReader
from lading.objects.repack import Unmovable, repack
from lading.objects.writer import ObjectWriter
from lading.values import FRAME_SIZE, KIND_BIG_DATA, KIND_RECIPE, Location, PackContents


class Shelf:
    """A backend, what was put into it, and where it lies."""

    def __init__(self, folder: Path, backend: FolderBackend | MemoryBackend | None = None) -> None:
        self.staging_folder = folder / "staging"
        self.staging_folder.mkdir(parents=True, exist_ok=True)
        self.backend = backend or FolderBackend(folder / "packs")
        self.places: dict[bytes, Location] = {}

    def write(self, datas: Sequence[bytes], **settings: Any) -> list[PackContents]:
        staging = Staging(self.staging_folder)
        with ObjectWriter(self.backend, staging, known=lambda ds: self.places.keys() & set(ds), **settings) as writer:
            for data in datas:
                writer.put(data)
            packs = writer.finish()
        staging.close()
        self.note(packs)
        return packs

    def note(self, packs: Sequence[PackContents]) -> None:
        self.places.update((item.digest, item) for pack in packs for item in pack.objects)

    @property
    def reader(self) -> ObjectReader:
        return ObjectReader(self.backend, lambda ds: {d: self.places[d] for d in ds if d in self.places})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """An empty shelf in a folder."""
    return Shelf(tmp_path)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(datas=st.lists(st.binary(min_size=1, max_size=3000), max_size=40), pack_size=st.integers(200, 20000))
def test_what_goes_in_comes_out_and_a_pack_describes_itself(tmp_path: Path, datas: list[bytes], pack_size: int) -> None:
    """Any contents, any pack bound; the index alone tells everything."""
    shelf = Shelf(tmp_path / os.urandom(4).hex(), MemoryBackend())

    packs = shelf.write(datas, pack_size=pack_size)

    assert [b"".join(chunks) for chunks in shelf.reader.contents([blake3(data).digest() for data in datas])] == datas
    assert [read_index(shelf.backend, pack.name) for pack in packs] == packs
    assert len(shelf.places) == len(set(datas))
    for pack in packs:
        assert pack_size_of(pack.objects) == pack.size == shelf.backend.size(pack.name)


def test_large_objects_have_frames_and_a_pack_of_their_own(shelf: Shelf) -> None:
    """Streamed, read in ranges, and dropped when known."""
    data = noise(3 * FRAME_SIZE + 5) + bytes(2 * FRAME_SIZE)
    staging = Staging(shelf.staging_folder)
    with ObjectWriter(shelf.backend, staging, known=lambda ds: ()) as writer:
        target = writer.stream(KIND_RECIPE)
        for start in range(0, len(data), 777_777):
            target.write(data[start : start + 777_777])
        digest = target.close()
        small = writer.put(b"beside it", KIND_BIG_DATA)
        packs = writer.finish()
    staging.close()
    shelf.note(packs)

    assert digest == blake3(data).digest()
    assert {len(pack.objects) for pack in packs} == {1}
    assert shelf.places[digest].kind == KIND_RECIPE
    assert len(shelf.places[digest].frames) == 4 * 6
    assert b"".join(next(shelf.reader.contents([digest]))) == data
    assert shelf.reader.read_range(digest, FRAME_SIZE - 3, 10) == data[FRAME_SIZE - 3 : FRAME_SIZE + 7]
    assert shelf.reader.open(small).read() == b"beside it"
    assert shelf.write([data]) == []


def test_objects_between_one_frame_and_the_threshold(shelf: Shelf) -> None:
    """They share a pack with others."""
    datas = [noise(FRAME_SIZE + 1), b"x" * 100, noise(FRAME_SIZE, 2)]

    packs = shelf.write(datas)

    assert len(packs) == 1
    assert [shelf.reader.read(blake3(data).digest()) for data in datas] == datas


@pytest.mark.parametrize("position", range(8))
def test_a_flipped_bit_is_never_handed_out(shelf: Shelf, position: int) -> None:
    """Wherever it is: the read fails and names the object, or the index is refused."""
    datas = [noise(500, 1), b"compressible " * 100, noise(3000, 2)]
    (pack,) = shelf.write(datas)
    assert isinstance(shelf.backend, FolderBackend)
    path = shelf.backend.path(pack.name)
    raw = bytearray(path.read_bytes())
    raw[len(raw) * position // 8] ^= 0x10
    path.write_bytes(raw)
    shelf.backend.close()

    found = list(verify.verify_objects(shelf.backend, pack.objects)) or list(
        verify.check_presence(shelf.backend, {pack.name: pack.size})
    )

    assert found
    for data in datas:
        assert _read_or_named(shelf, blake3(data).digest()) in (data, None)


def _read_or_named(shelf: Shelf, digest: bytes) -> bytes | None:
    """An object's bytes; None when the read says that this very object is damaged."""
    try:
        return shelf.reader.read(digest)
    except DigestMismatch as error:
        return None if error.digest == digest else b"another was named"


@pytest.mark.parametrize("cut", [1, 40, 90, 400])
def test_a_cut_pack_is_refused(shelf: Shelf, cut: int) -> None:
    """However little is missing."""
    (pack,) = shelf.write([noise(2000)])
    assert isinstance(shelf.backend, FolderBackend)
    path = shelf.backend.path(pack.name)
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(Corrupt):
        read_index(shelf.backend, pack.name)
    assert list(verify.check_presence(shelf.backend, {pack.name: pack.size}))


def test_an_index_that_claims_too_much_is_refused_before_it_is_allocated_for(shelf: Shelf) -> None:
    """A footer of a hostile pack may say anything."""
    (pack,) = shelf.write([noise(2000)])
    assert isinstance(shelf.backend, FolderBackend)
    path = shelf.backend.path(pack.name)
    raw = bytearray(path.read_bytes())
    raw[-48:-32] = b"\xff" * 16
    path.write_bytes(raw)

    with pytest.raises(Corrupt):
        read_index(shelf.backend, pack.name)


def test_a_missing_object_is_named(shelf: Shelf) -> None:
    """Nothing is known of it."""
    with pytest.raises(DigestMismatch, match="is in no pack"):
        shelf.reader.read(bytes(32))


def test_a_reader_looks_again_when_a_pack_was_replaced(shelf: Shelf) -> None:
    """A repack between look-up and read is no damage."""
    data = noise(1000)
    (pack,) = shelf.write([data])
    staging = Staging(shelf.staging_folder)
    made = repack(shelf.backend, staging, pack.objects)
    staging.close()
    asked: list[int] = []

    def locate(digests: Sequence[bytes]) -> dict[bytes, Location]:
        asked.append(len(digests))
        return {item.digest: item for item in (pack if len(asked) == 1 else made).objects}

    shelf.backend.delete(pack.name)

    assert ObjectReader(shelf.backend, locate).read(blake3(data).digest()) == data
    assert len(asked) == 2


def test_a_repack_copies_live_objects_and_no_damage(shelf: Shelf) -> None:
    """The new pack has the size that was foretold."""
    datas = [noise(500, n) for n in range(5)]
    (pack,) = shelf.write(datas)
    staging = Staging(shelf.staging_folder)

    made = repack(shelf.backend, staging, pack.objects[1:3])

    assert made.size == pack_size_of(pack.objects[1:3])
    assert [item.digest for item in made.objects] == [item.digest for item in pack.objects[1:3]]
    bad = pack.objects[0]._replace(digest=bytes(32))
    with pytest.raises(Unmovable):
        repack(shelf.backend, staging, [bad])
    staging.close()


def test_an_aborted_writer_leaves_nothing(shelf: Shelf) -> None:
    """Neither packs nor files in staging."""
    staging = Staging(shelf.staging_folder)
    with ObjectWriter(shelf.backend, staging, known=lambda ds: ()) as writer:
        for seed in range(100):
            writer.put(noise(100_000, seed))
    staging.close()

    assert list(shelf.backend) == []
    assert list(shelf.staging_folder.iterdir()) == []


def test_debris_is_what_nobody_holds(shelf: Shelf) -> None:
    """A living writer's folder is not touched."""
    living = Staging(shelf.staging_folder)
    dead = shelf.staging_folder / "dead"
    dead.mkdir()
    (dead / "lock").touch()

    assert [folder for folder, _ in debris(shelf.staging_folder)] == [dead]
    living.close()


def test_a_folder_is_its_owners_until_it_is_empty(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an owner removes its files nobody takes the folder for a dead one's."""
    staging = Staging(shelf.staging_folder)
    for _ in range(20):
        os.close(staging.new_file()[1])
    unlink = os.unlink
    left = []

    def noting(path: str) -> None:
        left.append(len(os.listdir(staging.path)))
        assert [folder for folder, _ in debris(shelf.staging_folder)] == []
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", noting)
        staging.close()

    assert left == list(range(21, 0, -1))
    assert list(shelf.staging_folder.iterdir()) == []
