"""Images and containers made of a container as it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lading import Store
from lading.errors import ContainerUnknown, DuplicateName
from tests.tarmake import END, directory, file

BASE = directory(b"d/") + file(b"d/kept", b"k" * 5000) + file(b"d/gone", b"g") + END


@pytest.fixture(params=["", "vfs"])
def either(request: pytest.FixtureRequest, store: Store, vfs_store: Store) -> Store:
    """A store of either kind."""
    return vfs_store if request.param else store


def started(store: Store) -> str:
    """A container that something was written to; still mounted."""
    image = store.images.create(store.layers.import_(io.BytesIO(BASE)).id, names=["base"])
    container = store.containers.create(image.id, names=["first"], metadata="m", big_data={"config": b"{}"})
    path = store.mount(container.id)
    (path / "new").write_bytes(b"n" * 3000)
    (path / "d/gone").unlink()
    return container.id


def read(store: Store, ref: str) -> dict[str, bytes]:
    """Files of a layer as they are seen."""
    path = store.mount(ref)
    try:
        return {str(item.relative_to(path)): item.read_bytes() for item in Path(path).rglob("*") if item.is_file()}
    finally:
        store.unmount(ref)


EXPECTED = {"d/kept": b"k" * 5000, "new": b"n" * 3000}


def test_an_image_of_a_running_container(either: Store) -> None:
    """What is written later is not in it; the container goes on."""
    container = started(either)
    image = either.commit(container, names=["made"], metadata="text")
    path = either._context.mount_table.get(either.containers.get(container).layer).path  # type: ignore[union-attr]
    (path / "later").write_bytes(b"l")
    either.unmount(container)

    assert (image.names, image.metadata) == (("made",), "text")
    assert read(either, image.layer) == EXPECTED
    assert read(either, container) == {**EXPECTED, "later": b"l"}
    assert either.layers.get(image.layer).parent == either.images.get("base").layer
    again = either.containers.create("made")
    assert read(either, again.id) == EXPECTED
    assert not either.check(content=True).findings


def test_a_clone_has_the_writes_and_the_data(either: Store) -> None:
    """Each goes on for itself."""
    container = started(either)
    either.unmount(container)
    copy = either.clone(container, names=["second"])

    assert (copy.names, copy.metadata, copy.image) == (("second",), "m", either.images.get("base").id)
    assert b"".join(either.containers.data(copy.id, "config")) == b"{}"
    assert read(either, copy.id) == EXPECTED
    path = either.mount(copy.id)
    (path / "mine").write_bytes(b"x")
    either.unmount(copy.id)
    assert "mine" not in read(either, container)
    either.containers.delete(container)
    assert read(either, copy.id) == {**EXPECTED, "mine": b"x"}
    either.gc()
    assert not either.check(content=True).findings


def test_only_changed_files_are_stored(store: Store) -> None:
    """A large image costs a snapshot nothing."""
    import os

    image = store.images.create(store.layers.import_(io.BytesIO(file(b"large", os.urandom(3 << 20)) + END)).id)
    container = store.containers.create(image.id)
    path = store.mount(container.id)
    (path / "small").write_bytes(os.urandom(1000))
    before = store.balance().classes["packs: live"]
    store.commit(container.id)
    assert store.balance().classes["packs: live"] - before < 4000
    store.unmount(container.id)


def test_what_cannot_be_made_leaves_nothing(store: Store) -> None:
    """Unknown containers, taken names."""
    with pytest.raises(ContainerUnknown):
        store.commit("nobody")
    container = started(store)
    layers = len(store.layers.all())
    with pytest.raises(DuplicateName):
        store.commit(container, names=["base"])
    with pytest.raises(DuplicateName):
        store.clone(container, names=["first"])
    assert len(store.layers.all()) == layers
    store.unmount(container)
