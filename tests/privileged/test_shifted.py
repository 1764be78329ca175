"""Owners shown through ID maps: by id-mapped mounts where the kernel has them, by translated copies elsewhere."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lading import Store
from lading.idmaps import MapRequest, Maps
from lading.materialize import cache
from lading.values import IDMap
from tests.flows.test_layers import taken_out
from tests.tarmake import END, directory, file

pytestmark = pytest.mark.privileged

MAPS = Maps((IDMap(0, 100_000, 65_536),), (IDMap(0, 200_000, 65_536),))
TREE = (
    directory(b"d/", uid=b"0000007", gid=b"0000010") + file(b"d/f", b"x" * 5000, uid=b"0000007", gid=b"0000010") + END
)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Store]:
    """A store whose layers are shown by overlay."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", driver="overlay") as opened:
        yield opened
        for mount in opened.mounts():
            opened.unmount(mount.layer, force=True)


def owner(path: Path) -> tuple[int, int]:
    """Owner and group."""
    found = os.lstat(path)
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("by_mount", [True, False])
def test_owners_are_shifted_both_ways(overlay: Store, *, by_mount: bool) -> None:
    """What is seen, what is copied up, what is read back."""
    abilities = overlay._context.abilities
    overlay._context.__dict__["abilities"] = replace(abilities, shifted_lowers=by_mount and abilities.shifted_lowers)
    image = overlay.images.create(overlay.layers.import_(io.BytesIO(TREE)).id)
    container = overlay.containers.create(image.id, idmap=MapRequest(MAPS))

    point = overlay.mount(container.id)
    assert owner(point) == (100_000, 200_000)
    assert owner(point / "d/f") == owner(point / "d") == (100_007, 200_008)
    with (point / "d/f").open("ab") as copied_up:
        copied_up.write(b"more")
    assert owner(point / "d/f") == (100_007, 200_008)
    (point / "new").write_text("n")
    os.chown(point / "new", 100_009, 200_009)
    (point / "by-root").write_text("n")
    overlay.unmount(container.id)

    listed = {entry.path: entry.inode for entry in _written(overlay, container.layer) if entry.inode is not None}
    assert {path: (inode.uid, inode.gid) for path, inode in listed.items()} == {
        b"by-root": (0, 0), b"d": (7, 8), b"d/f": (7, 8), b"new": (9, 9),
    }  # fmt: skip
    assert taken_out(overlay, image.layer) == TREE


def _written(store: Store, layer_id: str) -> list:  # type: ignore[type-arg]
    from lading.flows import views

    live = views.LiveFiles(store._context.objects)
    return views.stack(store._context, store.layers.get(layer_id), live).changes()


def test_a_mapped_container_copies_nothing(overlay: Store) -> None:
    """Every map shares one farm and one pool."""
    if not overlay._context.abilities.shifted_lowers:
        pytest.fail("this kernel should shift lowerdirs")
    image = overlay.images.create(overlay.layers.import_(io.BytesIO(TREE)).id)
    overlay.mount(overlay.containers.create(image.id).id)
    before = cache.measure(overlay.root / "cache")
    for number in range(1, 4):
        maps = Maps((IDMap(0, number * 100_000, 65_536),), (IDMap(0, number * 100_000, 65_536),))
        point = overlay.mount(overlay.containers.create(image.id, idmap=MapRequest(maps)).id)
        assert owner(point / "d/f") == (number * 100_000 + 7, number * 100_000 + 8)
    assert cache.measure(overlay.root / "cache") == before


def test_owners_without_a_place(overlay: Store) -> None:
    """They are shown as nobody's, can be copied up, and come back as they were where nobody touched them."""
    small = Maps((IDMap(0, 1000, 5),), (IDMap(0, 1000, 5),))
    image = overlay.images.create(overlay.layers.import_(io.BytesIO(TREE)).id)
    container = overlay.containers.create(image.id, idmap=MapRequest(small))
    point = overlay.mount(container.id)
    assert owner(point / "d/f") == (65534, 65534)
    with (point / "d/f").open("ab") as copied_up:
        copied_up.write(b"y")
    assert owner(point / "d/f") == (65534, 65534)
    assert taken_out(overlay, image.layer) == TREE


def test_what_was_written_under_one_map_is_not_shown_under_another(
    overlay: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with the way out."""
    image = overlay.images.create(overlay.layers.import_(io.BytesIO(TREE)).id)
    container = overlay.containers.create(image.id, idmap=MapRequest(MAPS))
    (overlay.mount(container.id) / "x").write_text("x")
    overlay.unmount(container.id)
    monkeypatch.setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
    with pytest.raises(ValueError, match="shifting not enabled"):
        overlay.mount(container.id)
    monkeypatch.delenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP")
    assert (overlay.mount(container.id) / "x").read_text() == "x"
