"""Damage is told with whose it is, is noted, and goes away when the same content comes in again."""

from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path

import pytest

from lading import Store
from lading.errors import Corrupt
from lading.flows.damage import DamagedObject
from lading.objects.pack import new_pack_name
from lading.values import FRAME_SIZE
from tests import damage
from tests.flows.test_importing import LAYERS, Layout
from tests.flows.test_layers import taken_out
from tests.tarmake import END, file, tree

pytestmark = pytest.mark.damages

RANDOM = random.Random(5)
SMALL = tree({"etc/a": b"some words " * 50, "etc/b": RANDOM.randbytes(3000), "etc/c": b"more words " * 70})
LARGE = tree({"large": RANDOM.randbytes(2 * FRAME_SIZE + 1000), "other": b"x" * 100})


def failing_pread(monkeypatch: pytest.MonkeyPatch, store: Store, digest: bytes, number: int) -> None:
    """Let the disk refuse the bytes of one object."""
    place, path = damage.location(store, digest), damage.pack_of(store, digest)
    inode = path.stat().st_ino
    real = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        end = place.offset + place.stored_size
        if os.fstat(descriptor).st_ino == inode and offset < end and place.offset < offset + size:
            raise OSError(number, os.strerror(number))
        return real(descriptor, size, offset)

    monkeypatch.setattr("lading.objects.folder.os.pread", pread)


def test_a_failing_diff_names_object_layers_and_images_and_notes_the_object(store: Store) -> None:
    """Whoever reads first finds it; a check without reading contents tells of it from then on."""
    layer = store.layers.import_(io.BytesIO(SMALL))
    above = store.layers.create(layer.id)
    image = store.images.create(above.id)
    digest = damage.object_at(store, "etc/b")
    damage.spoil(store, digest)
    assert store.check().findings == ()

    with pytest.raises(DamagedObject) as caught:
        taken_out(store, layer.id)

    error = caught.value
    assert (error.digest, error.layers, error.images) == (digest, (layer.id,), (image.id,))
    assert digest.hex() in str(error)
    assert f"needed by layer {layer.id}, image {image.id}" in str(error)
    words = [finding.message for finding in store.check().findings if finding.kind == "image"]
    assert words == [f'layer {layer.id}: file integrity checksum failed for "etc/b"']
    assert [row[0] for row in store.query("SELECT object FROM v_damaged")[1]] == [digest.hex()]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["one frame", "several frames"])
@pytest.mark.parametrize("how", ["spoil", "cut", "lose"])
def test_the_same_diff_applied_again_heals(store: Store, data: bytes, how: str) -> None:
    """After a failed read or a check; a pack that is missing or cut needs neither."""
    layer = store.layers.import_(io.BytesIO(data))
    digest = damage.object_at(store, "etc/b" if data is SMALL else "large")
    before = damage.records(store)
    getattr(damage, how)(store, digest)
    if how == "spoil":
        with pytest.raises(Corrupt):
            taken_out(store, layer.id)

    again = store.layers.import_(io.BytesIO(data))

    assert taken_out(store, layer.id) == taken_out(store, again.id) == data
    store.layers.delete(again.id)
    kept = damage.records(store)
    kept[14] = before[14]  # the audit log has the layer that came and went
    assert kept == before
    assert damage.broken(store) == []


def test_a_recipe_is_healed_by_its_diff_alone(store: Store) -> None:
    """Other content of the same files has another recipe."""
    layer = store.layers.import_(io.BytesIO(SMALL))
    damage.spoil(store, damage.recipe_of(store, layer.diff_digest))
    assert damage.broken(store) != []

    store.layers.import_(io.BytesIO(SMALL + bytes(512)))
    with pytest.raises(Corrupt):
        taken_out(store, layer.id)
    store.layers.import_(io.BytesIO(SMALL))

    assert taken_out(store, layer.id) == SMALL
    assert damage.broken(store) == []


def test_a_content_without_recipe_gets_one_from_its_diff(store: Store) -> None:
    """As after a rebuild that found none; what only the recipe names is recorded again."""
    twice = file(b"f", b"first of two") + file(b"f", b"second") + END
    layer = store.layers.import_(io.BytesIO(twice))
    with store._context.catalog.write_rows() as conn:
        conn.execute("UPDATE content SET recipe_id = NULL")
        conn.execute("DELETE FROM content_object")
    assert damage.broken(store) == [f"layer layer {layer.id}: content {layer.diff_digest} has no recipe"]

    store.layers.import_(io.BytesIO(twice))
    store.gc()

    assert taken_out(store, layer.id) == twice
    assert damage.rows(store, "SELECT count(*) FROM content_object") == [(1,)]
    assert damage.broken(store) == []


def test_a_recipe_that_names_what_is_not_there_is_damage(store: Store) -> None:
    """Its own bytes are sound; the diff fails, so the check does, until the diff comes in again."""
    twice = file(b"f", b"first of two") + file(b"f", b"second") + END
    layer = store.layers.import_(io.BytesIO(twice))
    with store._context.catalog.write_rows() as conn:
        ((number,),) = conn.execute("SELECT object_id FROM content_object").fetchall()
        conn.execute("DELETE FROM content_object")
        conn.execute("DELETE FROM object WHERE id = ?", (number,))
    with pytest.raises(Corrupt, match="is in no pack"):
        taken_out(store, layer.id)

    for content in (True, False):
        found = [f.message for f in store.check(content=content).findings if f.kind == "layer"]
        assert found == [f"layer {layer.id}: layer content incorrect digest"]
    assert store.heal().left == 1
    store.layers.import_(io.BytesIO(twice))

    store.gc()
    assert taken_out(store, layer.id) == twice
    assert damage.broken(store) == []


@pytest.mark.privileged
def test_a_failing_mount_tells_whose_bytes_are_damaged(store: Store) -> None:
    """And mounts nothing."""
    layer = store.layers.import_(io.BytesIO(SMALL))
    damage.spoil(store, damage.object_at(store, "etc/b"))

    with pytest.raises(DamagedObject, match=f"needed by layer {layer.id}"):
        store.mount(layer.id)

    assert store.mounts() == []
    assert store.check().damaged == 1


def test_an_image_that_is_imported_again_heals(store: Store, tmp_path: Path) -> None:
    """Its layers are there, so that nothing would be read of it otherwise."""
    layout = Layout(tmp_path / "oci")
    layout.image("v1", LAYERS)
    (image,) = store.import_image(f"oci:{layout.root}")
    damage.spoil(store, damage.object_at(store, "etc/os-release"))
    assert store.check(content=True).damaged == 1

    assert store.import_image(f"oci:{layout.root}")[0].id == image.id

    assert damage.broken(store) == []


def test_an_unreadable_pack_is_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's own errors as well as wrong bytes; only what lies there fails."""
    layer = store.layers.import_(io.BytesIO(SMALL))
    digest = damage.object_at(store, "etc/b")
    failing_pread(monkeypatch, store, digest, errno.EIO)

    with pytest.raises(DamagedObject, match="input/output error"):
        taken_out(store, layer.id)
    report = store.check(content=True)

    assert [f.message for f in report.findings if f.kind == "layer"] == [
        f'layer {layer.id}: file integrity checksum failed for "etc/b"'
    ]
    assert not report.incomplete
    assert len(list(store.query("SELECT * FROM v_damaged")[1])) == 1


@pytest.mark.parametrize("how", ["again", "heal"])
def test_what_lies_where_a_pack_cannot_even_be_looked_at_is_damage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Something else took its folder's place: the bytes are lost, and the same content gives them back."""
    layer = store.layers.import_(io.BytesIO(SMALL))
    folder = damage.pack_of(store, damage.object_at(store, "etc/b")).parent
    folder.rename(tmp_path / "elsewhere")
    folder.write_bytes(b"no folder")
    store._context.backend.close()
    # A new pack whose drawn name led there, too, would be refused by its path; the next try draws another one.
    names = (name for name in iter(new_pack_name, "") if name[:2] != folder.name)
    for module in ("writer", "repack"):
        monkeypatch.setattr(f"lading.objects.{module}.new_pack_name", lambda: next(names))

    report = store.check()

    assert (report.incomplete, report.damaged > 0) == (False, True)
    assert layer.id in {finding.id for finding in report.findings if finding.kind == "layer"}
    if how == "again":
        store.layers.import_(io.BytesIO(SMALL))
    else:
        tar = tmp_path / "layer.tar"
        tar.write_bytes(SMALL)
        assert store.heal([str(tar)]).left == 0
    assert taken_out(store, layer.id) == SMALL
    folder.unlink()


def test_what_may_not_be_read_is_no_damage_and_no_success(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that could not look says so."""
    store.layers.import_(io.BytesIO(SMALL))
    failing_pread(monkeypatch, store, damage.object_at(store, "etc/b"), errno.EACCES)

    report = store.check(content=True)

    assert report.incomplete
    assert [f.message for f in report.findings if "could not be checked: permission denied" in f.message]
    assert list(store.query("SELECT * FROM v_damaged")[1]) == []


def test_a_mark_goes_when_the_bytes_are_sound(store: Store) -> None:
    """A disk that came back: the next check looks at what was damaged."""
    store.layers.import_(io.BytesIO(SMALL))
    digest = damage.object_at(store, "etc/b")
    damage.spoil(store, digest)
    assert damage.broken(store) != []
    damage.spoil(store, digest)

    assert store.check().findings == ()
    assert list(store.query("SELECT * FROM v_damaged")[1]) == []


def test_big_data_tells_whose_it_is_and_heals(store: Store) -> None:
    """By being set once more."""
    image = store.images.create(big_data={"k": b"data" * 100})
    damage.spoil(store, store.images.get(image.id).big_data[0].object)

    with pytest.raises(DamagedObject, match=f"needed by image {image.id}"):
        b"".join(store.images.data(image.id, "k"))
    store.images.set_data(image.id, "k", io.BytesIO(b"data" * 100))

    assert b"".join(store.images.data(image.id, "k")) == b"data" * 100
    assert damage.broken(store) == []


def test_each_pack_is_looked_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingest of known content costs no look for each file."""
    data = tree({f"f/{number}": b"%d" % number * 40 for number in range(1500)})
    store.layers.import_(io.BytesIO(data))
    looked: list[str] = []
    size = store._context.backend.size

    def counted(name: str) -> int | None:
        looked.append(name)
        return size(name)

    monkeypatch.setattr(store._context.backend, "size", counted)

    store.layers.import_(io.BytesIO(data))

    assert len(looked) == len(set(looked)) == len(list(store._context.backend))
