"""A name moves, or a record is made anew, between the moment it is looked up and the change that relies on it."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from lading import Store
from lading.catalog.journal import Journal
from lading.config import Settings
from lading.errors import Full, LayerUnknown, NotAContainer, NotAnID
from tests.concurrency.processes import Crew, Line, stopping_at

#: Looked up, and nothing changed yet.
BEFORE_CHANGE = "lading.catalog.database:Catalog.write"

#: The same, and no lock of a layer held.
BEFORE_LOCK = ("lading.flows.areas:released", "lading.flows.stores:changing", BEFORE_CHANGE)


def call(store: Store, line: Line, verb: str, args: tuple[object, ...], *targets: str) -> object:
    """Call a verb of the store by its dotted name, stopping at the first of the targets, or at its first change."""
    found: object = store
    for step in verb.split("."):
        found = getattr(found, step)
    with stopping_at(line, *targets or (BEFORE_CHANGE,)):
        result = found(*args)  # type: ignore[operator]
    return getattr(result, "id", result)


def put_data(store: Store, line: Line) -> None:
    with stopping_at(line, BEFORE_CHANGE):
        store.images.set_data("n", "k", io.BytesIO(b"v"))


@pytest.fixture
def both(crew: Crew) -> Crew:
    """Images "old", which has the name "n", and "new"."""
    with Store.open(crew.root, run=crew.run) as store:
        for id in ("lo", "ln"):
            store.layers.create(id=id)
        store.images.create("lo", id="old", names=["n"])
        store.images.create("ln", id="new")
    return crew


def moved_meanwhile(crew: Crew, verb: str, *args: object) -> object:
    """Do something to "n", which moves to the new image just before."""
    worker = crew.hire().start(call, verb, args)
    assert worker.heard() == "there"
    with Store.open(crew.root, run=crew.run) as store:
        store.set_names("new", ["n"])
    worker.go_on()
    return worker.result()


def test_metadata_goes_to_the_record_that_has_the_name(both: Crew) -> None:
    moved_meanwhile(both, "set_metadata", "n", "text")
    with Store.open(both.root, run=both.run) as store:
        assert (store.metadata("old"), store.metadata("new")) == ("", "text")


def test_names_are_added_to_the_record_that_has_the_name(both: Crew) -> None:
    assert moved_meanwhile(both, "add_names", "n", ["m"]) == ("m", "n")
    with Store.open(both.root, run=both.run) as store:
        assert (store.names("old"), store.names("new")) == ((), ("m", "n"))


def test_data_goes_to_the_record_that_has_the_name(both: Crew) -> None:
    worker = both.hire().start(put_data)
    assert worker.heard() == "there"
    with Store.open(both.root, run=both.run) as store:
        store.set_names("new", ["n"])
        worker.go_on()
        worker.result()
        assert (store.images.data_names("old"), store.images.data_names("new")) == ((), ("k",))


@pytest.mark.parametrize("verb", ["images.delete", "delete"])
def test_the_record_that_has_the_name_is_deleted(both: Crew, verb: str) -> None:
    """Never the one that had it."""
    moved_meanwhile(both, verb, "n")
    with Store.open(both.root, run=both.run) as store:
        assert [image.id for image in store.images.all()] == ["old"]


def test_a_layer_that_has_the_name_is_deleted(crew: Crew) -> None:
    with Store.open(crew.root, run=crew.run) as store:
        store.layers.create(id="old", names=["n"])
        store.layers.create(id="new")
    moved_meanwhile(crew, "layers.delete", "n")
    with Store.open(crew.root, run=crew.run) as store:
        assert [layer.id for layer in store.layers.all()] == ["old"]


def test_a_container_that_has_the_name_is_deleted(crew: Crew) -> None:
    with Store.open(crew.root, run=crew.run) as store:
        store.containers.create(id="old", names=["n"])
        store.containers.create(id="new")
    moved_meanwhile(crew, "containers.delete", "n")
    with Store.open(crew.root, run=crew.run) as store:
        assert [container.id for container in store.containers.all()] == ["old"]


@pytest.mark.parametrize(
    ("verb", "targets"),
    [
        ("delete", ("lading.flows.{kind}s:{delete}",)),
        ("delete", BEFORE_LOCK),
        ("{kind}s.delete", BEFORE_LOCK),
    ],
)
@pytest.mark.parametrize(
    ("kind", "delete", "unknown"),
    [
        ("layer", "delete_unchecked", "NotALayer"),
        ("image", "delete_record", "NotAnImage"),
        ("container", "delete_found", "NotAContainer"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_what_another_process_deleted_is_not_deleted_again(
    crew: Crew, tmp_path: Path, verb: str, targets: tuple[str, ...], kind: str, delete: str, unknown: str, apart: bool
) -> None:
    """The second one is told what it would have been told of a thing that never was."""
    settings: dict[str, Any] = {"image_store": str(tmp_path / "images")} if apart else {}
    with Store.open(crew.root, run=crew.run, settings=Settings(**settings)) as store:
        store.layers.create(id="layer")
        store.images.create("", id="image")
        store.containers.create(id="container")
        stops = [target.format(kind=kind, delete=delete) for target in targets]
        worker = crew.hire(**settings).start(call, verb.format(kind=kind), (kind,), *stops)
        assert worker.heard() == "there"
        store.delete(kind)
        worker.go_on()
        assert worker.outcome() == ("LayerUnknown" if verb == "delete" else unknown)


@pytest.mark.parametrize("apart", [False, True])
def test_an_image_that_got_a_container_meanwhile_stays(crew: Crew, tmp_path: Path, apart: bool) -> None:
    """Also where images are in a store of their own, and containers are not."""
    settings: dict[str, Any] = {"image_store": str(tmp_path / "images")} if apart else {}
    with Store.open(crew.root, run=crew.run, settings=Settings(**settings)) as store:
        store.layers.create(id="layer", read_only=True)
        store.images.create("layer", id="image")
        worker = crew.hire(**settings).start(call, "images.delete", ("image",), *BEFORE_LOCK)
        assert worker.heard() == "there"
        store.containers.create("image", id="container")
        worker.go_on()
        assert worker.outcome() == "ImageUsedByContainer"
        assert store.layers.get(store.containers.get("container").layer).parent == "layer"
        assert store.check().findings == ()
        store.wipe()


@pytest.mark.parametrize(
    ("verb", "args", "target"),
    [
        ("images.delete", ("image",), "lading.catalog.images:delete_image"),
        ("layers.delete", ("bare",), "lading.flows.layers:delete_rows"),
    ],
)
def test_nothing_is_made_on_what_is_being_deleted_from_an_image_store(
    crew: Crew, tmp_path: Path, verb: str, args: tuple[str], target: str
) -> None:
    """What names a record of another store waits for whoever is about to delete it, and is refused."""
    settings: dict[str, Any] = {"image_store": str(tmp_path / "images")}
    with Store.open(crew.root, run=crew.run, settings=Settings(**settings)) as store:
        for id in ("layer", "bare"):
            store.layers.create(id=id, read_only=True)
        store.images.create("layer", id="image")
        deleter = crew.hire(**settings).start(call, verb, args, target)
        assert deleter.heard() == "there"
        makers = [
            crew.hire(**settings).start(call_at_once, *job)
            for job in (("containers.create", ("image",)), ("layers.create", ("bare",)), ("images.create", ("bare",)))
        ]
        for maker in makers:
            assert maker.heard() == "began"
        time.sleep(0.2)  # they have looked up what they build on, and wait
        deleter.go_on()
        assert deleter.outcome() == "done"
        failed = [maker.outcome() for maker in makers]
        assert failed == (
            ["ImageUnknown", "done", "done"] if verb == "images.delete" else ["done", *["LayerUnknown"] * 2]
        )
        assert store.check().findings == ()
        store.wipe()


def call_at_once(store: Store, line: Line, verb: str, args: tuple[object, ...]) -> None:
    line.tell("began")
    found: object = store
    for step in verb.split("."):
        found = getattr(found, step)
    found(*args)  # type: ignore[operator]


@pytest.mark.parametrize("verb", ["delete", "containers.delete"])
def test_a_container_in_what_is_used_as_an_image_store_is_not_seen(crew: Crew, tmp_path: Path, verb: str) -> None:
    """Containers are those of the main store alone, for deleting as well."""
    images = tmp_path / "images"
    with Store.open(images, run=crew.run) as store:
        store.containers.create(id="container")
    with Store.open(crew.root, run=crew.run, settings=Settings(image_store=str(images))) as store:
        found: object = store
        for step in verb.split("."):
            found = getattr(found, step)
        with pytest.raises(LayerUnknown if verb == "delete" else NotAContainer):
            found("container")  # type: ignore[operator]
        with pytest.raises(NotAnID):
            store.set_metadata("container", "text")
    with Store.open(images, run=crew.run) as store:
        assert store.containers.get("container").metadata == ""


def test_a_container_is_made_on_the_image_as_it_is(both: Crew) -> None:
    """The image was deleted and made anew, on another layer, since it was looked up."""
    worker = both.hire().start(call, "containers.create", ("old",))
    assert worker.heard() == "there"
    with Store.open(both.root, run=both.run) as store:
        store.images.delete("old")
        store.images.create("ln", id="old")
        worker.go_on()
        made = store.containers.get(str(worker.result()))
        assert store.layers.get(made.layer).parent == "ln"


def test_two_images_on_one_layer_are_deleted_at_once(crew: Crew) -> None:
    """Each sees the other when it begins; the layer goes with the second all the same."""
    with Store.open(crew.root, run=crew.run) as store:
        store.layers.create(id="below")
        store.layers.create("below", id="top")
        for id in ("one", "other"):
            store.images.create("top", id=id)
    workers = [crew.hire().start(call, "images.delete", (id,)) for id in ("one", "other")]
    for worker in workers:
        assert worker.heard() == "there"
    for worker in workers:
        worker.go_on()
    assert sorted((worker.result() for worker in workers), key=len) == [[], ["top", "below"]]
    with Store.open(crew.root, run=crew.run) as store:
        assert store.layers.all() == []


def test_a_name_that_moves_is_never_unknown(both: Crew) -> None:
    """A reader finds a record and reads it in one snapshot: also when that record goes in between."""
    reader = both.hire().start(call, "metadata", ("n",), "lading.flows.records:fetch")
    assert reader.heard() == "there"
    with Store.open(both.root, run=both.run) as store:
        store.set_metadata("old", "was")
        store.set_names("new", ["n"])
        store.images.delete("old")
    reader.go_on()
    assert reader.result() == ""


def test_a_full_disk_between_the_commits_of_two_stores_ends_nothing(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image store has committed, the main one has no room: with what the reserve gives, it goes on."""
    with Store.open(crew.root, run=crew.run, settings=Settings(image_store=str(tmp_path / "images"))) as store:
        store.layers.create(id="below")
        store.layers.create("below", id="top", read_only=True)
        store.images.create("top", id="image")
        real, calls = Journal.append, []

        def append(self: Journal, *args: Any, **options: Any) -> None:
            calls.append(self)
            if len(calls) == 2:
                raise Full("no space left on device")
            real(self, *args, **options)

        monkeypatch.setattr(Journal, "append", append)
        assert store.images.delete("image") == ["top", "below"]
        monkeypatch.undo()
        assert (store.layers.all(), store.images.all()) == ([], [])
        assert len(calls) == 3
        assert store.check().findings == ()
