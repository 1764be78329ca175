"""Images, containers, names, metadata and big data."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lading import Store
from lading.errors import (
    ContainerUnknown,
    DataUnknown,
    DigestUnknown,
    DuplicateName,
    ImageUnknown,
    ImageUsedByContainer,
    InvalidBigDataName,
    InvalidInput,
    LayerUnknown,
    NotAnID,
    NotAnImage,
    SizeUnknown,
)
from lading.values import Record
from tests.tarmake import tree

LAYER = tree({"f": b"x" * 1000})


def test_references_are_ids_then_names_then_prefixes(store: Store) -> None:
    """An id wins over an equal name; an ambiguous prefix finds nothing."""
    store.layers.create(id="abc", names=["abd-name"])
    store.layers.create(id="abd", names=["abc"])

    assert store.layers.get("abc").id == "abc"
    assert store.layers.get("abd-name").id == "abc"
    assert not store.layers.exists("ab")
    assert not store.layers.exists("")
    store.layers.delete("abc")
    assert store.layers.get("abc").id == "abd"
    assert store.layers.get("ab").id == "abd"


def test_generated_ids_are_32_hex_digits(store: Store) -> None:
    """Of every kind, and never the start of a decimal number."""
    made: list[Record] = [store.layers.create(), store.images.create(), store.containers.create()]

    for record in made:
        assert len(record.id) == 32
        assert set(record.id) <= set("0123456789abcdef")
        assert not record.id[:12].isdigit()


def test_names_move_silently_but_not_at_creation(store: Store) -> None:
    """Set and add take names away; add puts new ones in front."""
    first = store.images.create(names=["one", "two"])
    second = store.images.create(names=["three"])

    assert store.add_names(second.id, ["two", "four", "two"]) == ("two", "four", "three")
    assert store.names(first.id) == ("one",)
    with pytest.raises(DuplicateName, match=f'image name "one" is already associated with image "{first.id}"'):
        store.images.create(names=["one"])
    assert store.remove_names(second.id, ["two", "none"]) == ("four", "three")
    assert store.set_names(second.id, []) == ()
    assert not store.images.exists("four")


def test_an_images_history_of_names(store: Store) -> None:
    """Newest first, without repetitions, kept when a name is lost."""
    image = store.images.create(names=["0"])

    store.set_names(image.id, ["1", "2"])
    assert store.images.get(image.id).names_history == ("2", "1")
    store.set_names(store.images.create().id, ["2"])
    assert store.images.get(image.id).names_history == ("2", "1")
    store.set_names(image.id, ["1", "2", "3", "4"])
    store.add_names(image.id, ["5"])
    assert store.images.get(image.id).names_history == ("4", "3", "2", "1", "5")


def test_any_text_is_a_name_or_metadata(store: Store) -> None:
    """Empty, white space, newlines, SQL; not what is no UTF-8."""
    odd = ["", " ", "a\nb", "'; DROP TABLE layer; --", "\x1b[31m", "é"]
    layer = store.layers.create(names=odd)

    store.set_metadata(layer.id, "line\nline\n")

    assert store.names(layer.id) == tuple(odd)
    assert all(store.layers.get(name).id == layer.id for name in odd)
    assert store.metadata(layer.id) == "line\nline\n"
    with pytest.raises(InvalidInput, match="not valid UTF-8"):
        store.add_names(layer.id, ["\udcff"])
    with pytest.raises(NotAnID):
        store.set_metadata("nothing", "x")


def test_lookup_goes_through_all_kinds(store: Store) -> None:
    """Layers first; existence can be asked of a kind."""
    layer = store.layers.create(id="same")
    store.images.create(id="same")
    container = store.containers.create(id="c")

    assert store.lookup("same") == layer
    assert store.exists("same", ["layer", "image"])
    assert not store.exists("same", ["container"])
    assert store.containers.get(container.layer) == container
    with pytest.raises(LayerUnknown, match="layer not known"):
        store.lookup("nothing")


def test_big_data_is_kept_in_order_and_replaced_in_place(store: Store) -> None:
    """Also empty items, and items of many bytes."""
    image = store.images.create(big_data={"config": b"{}"})
    blob = os.urandom(9_000_000)

    for key, data in (("b", b"1"), ("a", b""), ("b", blob)):
        store.images.set_data(image.id, key, io.BytesIO(data))

    assert store.images.data_names(image.id) == ("config", "b", "a")
    assert b"".join(store.images.data(image.id, "b")) == blob
    assert b"".join(store.images.data(image.id, "a")) == b""
    assert store.images.data_size(image.id, "b") == len(blob)
    assert store.images.data_digest(image.id, "b") == "sha256:" + hashlib.sha256(blob).hexdigest()


def test_what_is_missing_is_told_in_the_contracts_words(store: Store) -> None:
    """Items and records, of each kind."""
    image, container, layer = store.images.create(id="i"), store.containers.create(id="c"), store.layers.create(id="l")

    with pytest.raises(
        DataUnknown, match=r'locating item named "k" for image with ID "i" \(consider removing the image'
    ):
        list(store.images.data(image.id, "k"))
    with pytest.raises(DataUnknown, match='locating item named "k" for layer with ID "l": file does not exist'):
        list(store.layers.data(layer.id, "k"))
    with pytest.raises(DataUnknown, match="no such file or directory"):
        list(store.containers.data(container.id, "k"))
    with pytest.raises(SizeUnknown, match="size is not known"):
        store.images.data_size("i", "k")
    with pytest.raises(DigestUnknown, match="could not compute digest of item"):
        store.containers.data_digest("c", "k")
    with pytest.raises(InvalidBigDataName, match="can't set empty name for layer big data item: not a valid name"):
        store.layers.set_data("l", "", io.BytesIO(b""))
    with pytest.raises(ImageUnknown, match='locating image with ID "n": image not known'):
        store.images.data_names("n")
    with pytest.raises(ContainerUnknown, match="container not known"):
        store.containers.get("n")


def test_an_image_is_found_by_its_digests(store: Store) -> None:
    """The first manifest's digest sticks; any manifest's finds it."""
    image = store.images.create(big_data={"manifest": b"first", "manifest-2": b"second"})
    first, second, third = ("sha256:" + hashlib.sha256(data).hexdigest() for data in (b"first", b"second", b"third"))

    store.images.set_data(image.id, "manifest", io.BytesIO(b"third"))

    assert store.images.get(image.id).digest == first
    for digest in (first, second, third):
        assert [found.id for found in store.images.by_digest(digest)] == [image.id]
    assert store.images.by_digest("sha256:" + "0" * 64) == []
    for bad in ("bogus", "sha256:123", "sha1:" + "0" * 40):
        assert store.images.by_digest(bad) == []
        with pytest.raises(InvalidInput, match="digest"):
            store.images.by_digest(bad, strict=True)


def test_deleting_an_image_takes_the_layers_that_only_it_needs(store: Store) -> None:
    """A shared base goes with the second image; the dry run says the same."""
    base = store.layers.import_(io.BytesIO(LAYER))
    left, right = store.layers.create(base.id), store.layers.create(base.id)
    one, two = store.images.create(left.id), store.images.create(right.id)
    container = store.containers.create(one.id)

    with pytest.raises(ImageUsedByContainer, match=f"image used by {container.id}"):
        store.images.delete(one.id)
    store.containers.delete(container.id)
    assert store.images.delete(one.id, dry_run=True) == [left.id]
    assert store.images.delete(one.id) == [left.id]
    assert store.images.delete(two.id) == [right.id, base.id]
    assert store.layers.all() == []
    with pytest.raises(NotAnImage):
        store.images.delete(one.id)


def test_sizes(store: Store) -> None:
    """Of images with and without layers, and of containers."""
    layer = store.layers.import_(io.BytesIO(LAYER))
    image = store.images.create(layer.id, big_data={"config": b"12345"})
    container = store.containers.create(image.id)
    (store.containers.directory(container.id) / "state").write_bytes(b"123")

    assert store.layers.size(layer.id) == len(LAYER)
    assert store.images.size(image.id) == len(LAYER) + 5
    assert store.images.size(store.images.create().id) == 0
    assert store.containers.size(container.id) == 3
    store.containers.delete(container.id)
    assert not (store.root / "containers" / container.id).exists()


def test_unchecked_deletion_takes_containers_first(store: Store) -> None:
    """By the layer's id, the container goes."""
    image = store.images.create(store.layers.create(id="base").id)
    container = store.containers.create(image.id)

    store.delete(container.layer)

    assert store.containers.all() == []
    store.delete("base")
    assert [finding.message for finding in store.check().findings] == [
        f"image {image.id}: layer base: image layer is missing"
    ]


def test_every_change_is_in_the_audit_log(store: Store) -> None:
    """With the state before and after."""
    layer = store.layers.create(names=["n"])
    store.set_names(layer.id, ["m"])
    store.layers.delete("m")

    events = list(
        store.query("SELECT verb, before IS NULL, after IS NULL FROM v_event WHERE record_id = ?", [layer.id])[1]
    )

    assert events == [("create-layer", 1, 0), ("set-names", 0, 0), ("delete-layer", 0, 1)]


def test_a_thousand_layers_and_images_cost_a_constant_number_of_queries(store: Store) -> None:
    """Listing does not ask for each record."""
    for number in range(30):
        store.images.create(store.layers.create(names=[f"l{number}"]).id, names=[f"i{number}"], big_data={"k": b"v"})
    asked: list[str] = []
    connection = store._context.catalog.connection()
    connection.set_trace_callback(asked.append)

    assert len(store.images.all()) == len(store.layers.all()) == 30
    assert len(asked) < 15


WRITER = """
import sys
from lading import Store
with Store.open(sys.argv[1], run=sys.argv[2]) as store:
    for number in range(20):
        layer = store.layers.create(names=[f"{sys.argv[3]}-{number}"])
        store.add_names("shared", [f"extra-{sys.argv[3]}-{number}"])
        store.layers.all()
"""


def test_several_processes_lose_no_update(store: Store) -> None:
    """Eight writers of one store and of one record."""
    store.layers.create(id="shared")
    command = [sys.executable, "-c", WRITER, str(store.root), str(store.root.parent / "run")]
    processes = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in range(8)]
    errors = [process.communicate()[1].decode() for process in processes]

    assert errors == [""] * 8
    assert len(store.layers.all()) == 161
    assert len(store.names("shared")) == 160


def test_a_second_store_of_one_process_is_another_store(tmp_path: Path) -> None:
    """Nothing is global."""
    with Store.open(tmp_path / "a", run=tmp_path / "r") as one, Store.open(tmp_path / "b", run=tmp_path / "r") as two:
        one.layers.create(id="x")
        assert two.layers.all() == []
        assert one.id != two.id
