"""What a collection finds by comparing names: views of contents that are gone, folders of records that are gone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from lading import Store
from lading.catalog import layers
from lading.flows import areas, lowers
from lading.materialize import cache
from tests.tarmake import END, file

TARS = [file(b"f", b"%d" % number) + END for number in range(3)]


def view(store: Store, name: str) -> None:
    """A tree in the cache, as a mount leaves it."""
    folder = store.root / "cache/trees" / name
    folder.mkdir(parents=True, mode=0o700)
    (folder / "f").write_bytes(b"12345")
    (folder.parent / f"{name}.json").write_bytes(b"{}")


def present(store: Store) -> set[str]:
    """Names of the views that are there."""
    return set(cache.present(store.root / "cache"))


@pytest.mark.parametrize("compared", [False, True])
def test_views_go_with_their_contents(store: Store, compared: bool) -> None:
    """Also those that inherit from below; in a cache that was never compared with the catalog, and by notes alone."""
    stems = []
    for number, tar in enumerate(TARS):
        stems.append(lowers.name_of(store.layers.import_(io.BytesIO(tar), id=f"l{number}").diff_digest))
        for name in (stems[-1], f"{stems[-1]}-inherited"):
            view(store, name)
    if compared:
        store.gc()
        assert len(present(store)) == 6
    view(store, "shown-once")
    store.layers.delete("l0")
    store.layers.delete("l1")

    dry = store.gc(dry_run=True)
    report = store.gc()

    assert report == dry
    assert report.cache_bytes == 5 * 7
    assert present(store) == {stems[2], f"{stems[2]}-inherited"}
    assert list(store.query("SELECT key FROM stale_view UNION ALL SELECT value FROM meta WHERE key = 'views'")[1]) == []


def test_a_mounted_view_goes_with_the_collection_after_its_mount(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note stays until then, in a cache that was compared and in one that was not."""
    for number, tar in enumerate(TARS[:2]):
        layer = store.layers.import_(io.BytesIO(tar), id="gone")
        name = lowers.name_of(layer.diff_digest)
        view(store, name)
        store.layers.delete("gone")
        with monkeypatch.context() as patch:
            patch.setattr(lowers, "mounted_views", lambda context: {name})  # noqa: B023 - called within the loop
            for _ in range(2):
                assert store.gc().cache_bytes == 0
            assert present(store) == {name}, number

        assert store.gc().cache_bytes == 7
        assert present(store) == set()


def test_a_content_that_is_stored_again_keeps_its_views(store: Store) -> None:
    """Although it was condemned in between, while somebody held an epoch."""
    store.gc()
    layer = store.layers.import_(io.BytesIO(TARS[0]), id="first")
    view(store, lowers.name_of(layer.diff_digest))
    store.layers.delete("first")
    with store._context.epochs.shared(), store._context.catalog.write_rows() as conn:
        conn.execute("INSERT INTO stale_view (key) VALUES (?)", (layer.diff_digest,))
    store.layers.import_(io.BytesIO(TARS[0]), id="second")

    assert store.gc().cache_bytes == 0
    assert len(present(store)) == 1


def area(store: Store, layer: str, number: int) -> Path:
    """A write area with a byte in it."""
    folder = store.root / "layers" / layer / str(number)
    folder.mkdir(parents=True)
    (folder / "f").write_bytes(b"x")
    return folder


def test_areas_that_no_record_names_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers that are gone, and older ones of a sealed layer. Other layers' locks are not even taken."""
    for number in range(3):
        store.layers.create(id=f"open{number}")
        area(store, f"open{number}", 0)
    sealed = store.layers.create(id="sealed")
    with store._context.catalog.write("test") as tx:
        layers.update_layer(tx, replace(sealed, write_area=2))
    for number in (0, 1, 2):
        area(store, sealed.id, number)
    area(store, "gone", 0)
    (store.root / "layers" / "not\nours").mkdir()
    locked = []
    lock = areas.locked

    def noting(context: object, layer_ids: list[str], verb: str) -> object:
        locked.extend(layer_ids)
        return lock(context, layer_ids, verb)  # type: ignore[arg-type]

    monkeypatch.setattr(areas, "locked", noting)
    dry = store.gc(dry_run=True)

    assert store.gc() == dry
    assert dry.debris_bytes == 3
    assert set(locked) == {"gone", "sealed"}
    found = {str(path.relative_to(store.root / "layers")) for path in (store.root / "layers").glob("*/*")}
    assert found == {"open0/0", "open1/0", "open2/0", "sealed/2"}
    assert not (store.root / "layers/gone").exists()


def test_directories_of_records_that_are_gone_go(store: Store) -> None:
    """And no others."""
    image = store.images.create(id="here")
    for kind, name in (("images", image.id), ("images", "gone"), ("containers", "gone")):
        folder = store.root / kind / name / "userdata"
        folder.mkdir(parents=True)
        (folder / "f").write_bytes(b"12")

    dry = store.gc(dry_run=True)

    assert store.gc() == dry
    assert dry.debris_bytes == 4
    assert (store.root / "images/here/userdata/f").exists()
    assert not (store.root / "images/gone").exists()
    assert not (store.root / "containers/gone").exists()
