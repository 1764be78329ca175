"""What a journal is good for: making the records again; and what befalls it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lading.catalog import bigdata, containers, images, layers, names, records
from lading.catalog.chain import find_chain, read_chain
from lading.catalog.database import Catalog, WriteTransaction
from lading.catalog.journal import Head, Journal, head
from lading.errors import Corrupt
from lading.values import Container, IDMap, Image, Layer
from tests.catalog.conftest import add_content, add_object, item, open_catalog


def everything(catalog: Catalog) -> list[Any]:
    with catalog.read() as conn:
        data = [bigdata.list_big_data(conn, "layer", layer.id) for layer in layers.list_layers(conn)]
        return [layers.list_layers(conn), data, images.list_images(conn), containers.list_containers(conn)]


def change_much(catalog: Catalog) -> None:
    keys = (add_content(catalog, "sha256:1"), add_content(catalog, "native:2"))
    maps = (IDMap(0, 1000, 10), IDMap(10, 5000, 1))
    full = Layer(
        "layer", names=("n", "ñ\n"), parent="elsewhere", metadata='m"\\', mount_label="l", created_ns=5,
        compressed_digest="sha256:c", compressed_size=3, diff_digest="sha256:1", diff_size=9, toc_digest="sha256:t",
        compression=2, uids=(0, 7), gids=(1,), flags={"a": [1, {"b": None}]}, uidmap=maps, gidmap=maps[:1],
        contents=keys, replay=keys[0], write_area=4, write_kind="tree", root_mode=0o700, root_uid=3, root_gid=4,
    )  # fmt: skip
    with catalog.write("create") as tx:
        layers.create_layer(tx, full)
        layers.create_layer(tx, Layer("gone"))
    first, second, empty = item(catalog, "k", b"1"), item(catalog, "manifest", b"2"), item(catalog, "e", b"")
    with catalog.write("more") as tx:
        for data in (first, second):
            bigdata.put_big_data(tx, "layer", "layer", data)
        images.create_image(tx, Image("image", names=("i",), layer="layer", mapped_layers=("gone", "x"), created_ns=1))
        for data in (second, first, empty):
            bigdata.put_big_data(tx, "image", "image", data)
        containers.create_container(
            tx, Container("c", names=("c1",), image="image", layer="layer", flags={"MountLabel": ""}, uidmap=maps)
        )
        bigdata.put_big_data(tx, "container", "c", first)
    with catalog.write("rename") as tx:
        names.set_names(tx, "image", "image", ["i", "j"])
        names.set_metadata(tx, "container", "c", "text")
        layers.delete_layer(tx, "gone")


def make_again(tx: WriteTransaction, kind: Any, state: dict[str, Any]) -> None:
    record, data = records.restored(kind, state)
    match record:
        case Layer():
            layers.create_layer(tx, record)
        case Image():
            images.create_image(tx, record)
        case Container():
            containers.create_container(tx, record)
    for entry in data:
        bigdata.put_big_data(tx, kind, record.id, entry)


def test_the_chain_is_enough_to_make_every_record_again(tmp_path: Path, catalog: Catalog) -> None:
    """Every field of every kind, names and data in their order."""
    change_much(catalog)
    states: dict[tuple[Any, str], dict[str, Any]] = {}
    for line in read_chain(catalog.journal_folder):
        for kind, record_id, state in line.body["changes"]:
            states[kind, record_id] = state

    again = open_catalog(tmp_path / "again")
    for data in (b"1", b"2", b""):
        add_object(again, data)
    for key in ("sha256:1", "native:2"):
        add_content(again, key)
    with again.write("rebuild") as tx:
        for (kind, _), state in states.items():
            if state is not None:
                make_again(tx, kind, state)

    assert everything(again) == everything(catalog)
    again.close()


def create(catalog: Catalog, layer_id: str) -> None:
    with catalog.write("create-layer") as tx:
        layers.create_layer(tx, Layer(layer_id))


def chain_ids(catalog: Catalog) -> list[str]:
    return [change[1] for line in read_chain(catalog.journal_folder) for change in line.body["changes"]]


def rotate(catalog: Catalog, *, fail: bool = False) -> None:
    with catalog.write_rows("snapshot") as conn:
        Journal(catalog.journal_folder).start_segment(conn, "00" * 32, 1)
        if fail:
            raise InterruptedError


def test_a_segment_whose_beginning_was_not_committed_hides_nothing(catalog: Catalog) -> None:
    """It goes with the next line, and a later rotation works."""
    create(catalog, "a")
    with pytest.raises(InterruptedError):
        rotate(catalog, fail=True)
    assert chain_ids(catalog) == ["a"]
    create(catalog, "b")
    create(catalog, "c")

    assert chain_ids(catalog) == ["a", "b", "c"]
    rotate(catalog)
    create(catalog, "d")
    assert chain_ids(catalog) == ["a", "b", "c", "d"]
    assert sorted(os.listdir(catalog.journal_folder)) == ["00000001.log", "00000002.log"]


def test_rotating_again_after_a_rotation_that_was_not_committed(catalog: Catalog) -> None:
    """With nothing in between."""
    create(catalog, "a")
    for _ in range(2):
        with pytest.raises(InterruptedError):
            rotate(catalog, fail=True)
    rotate(catalog)
    create(catalog, "b")

    assert [(line.segment, line.seq) for line in read_chain(catalog.journal_folder)] == [(1, 1), (2, 2), (2, 3)]


def set_back(catalog: Catalog, at: Head) -> None:
    value = json.dumps({"segment": at.segment, "offset": at.offset, "seq": at.seq, "digest": at.digest})
    with catalog.write_rows() as conn:
        conn.execute("UPDATE meta SET value = ? WHERE key = 'journal'", (value,))


def test_a_catalog_from_before_a_rotation_is_noticed(catalog: Catalog) -> None:
    """The next segment holds more than its beginning, and stays as it is."""
    create(catalog, "a")
    old = head(catalog.connection())
    rotate(catalog)
    create(catalog, "b")
    before = (catalog.journal_folder / "00000002.log").read_bytes()
    set_back(catalog, old)

    with pytest.raises(Corrupt, match="older than its journal"):
        create(catalog, "c")
    with pytest.raises(Corrupt, match="older than its journal"):
        rotate(catalog)
    assert (catalog.journal_folder / "00000002.log").read_bytes() == before


@pytest.mark.parametrize("kept", [0, 40])
def test_a_journal_that_lost_its_end_is_noticed(catalog: Catalog, kept: int) -> None:
    """Going on would leave a hole in the chain."""
    create(catalog, "a")
    os.truncate(catalog.journal_folder / "00000001.log", kept)

    with pytest.raises(Corrupt, match="shorter than the catalog says"):
        create(catalog, "b")


def test_a_flipped_bit_is_a_hole_and_no_end(catalog: Catalog) -> None:
    """What comes before and after it still counts, since states are whole; what is missing is told."""
    for layer_id in "abc":
        create(catalog, layer_id)
    path = catalog.journal_folder / "00000001.log"
    data = bytearray(path.read_bytes())
    data[data.index(b'"b"') + 1] ^= 1
    path.write_bytes(data)

    assert chain_ids(catalog) == ["a", "c"]
    (hole,) = find_chain(catalog.journal_folder).holes
    assert hole.startswith("line 2 of the journal is damaged or missing")


def test_a_line_that_was_not_committed_is_passed_over_also_beside_a_hole(catalog: Catalog) -> None:
    """It has the number of the missing one, and is not taken for it."""
    create(catalog, "a")
    with suppress(InterruptedError), catalog.write("create-layer") as tx:
        layers.create_layer(tx, Layer("never"))
        Journal(catalog.journal_folder).append(tx.conn, records.changes(tx) or {})
        raise InterruptedError
    for layer_id in "bc":
        create(catalog, layer_id)
    path = catalog.journal_folder / "00000001.log"
    assert chain_ids(catalog) == ["a", "b", "c"]
    path.write_bytes(path.read_bytes().replace(b'["layer","b"', b'["layer","x"'))

    assert chain_ids(catalog) == ["a", "c"]


def test_a_snapshot_ends_the_way_back_only_when_it_is_stored(catalog: Catalog) -> None:
    """Else older segments are needed, and when they are gone that is told."""
    create(catalog, "a")
    rotate(catalog)
    create(catalog, "b")

    assert [line.seq for line in find_chain(catalog.journal_folder, lambda digest: digest == "00" * 32).places] == [
        2,
        3,
    ]
    assert [line.seq for line in find_chain(catalog.journal_folder).places] == [1, 2, 3]
    (catalog.journal_folder / "00000001.log").unlink()
    assert "every record from before" in find_chain(catalog.journal_folder).holes[0]


def test_a_damaged_end_is_told_and_a_torn_one_is_not(catalog: Catalog) -> None:
    """A kill leaves the beginning of a line; a whole line that is wrong may have been a commit."""
    create(catalog, "a")
    path = catalog.journal_folder / "00000001.log"
    whole = path.read_bytes()

    for torn in (whole[:-20], whole[:-20] + b"\n", whole[:50] + b"\n"):
        path.write_bytes(whole + torn)
        assert not find_chain(catalog.journal_folder).damaged_end
    path.write_bytes(whole + whole.replace(b'"a"', b'"b"'))
    assert find_chain(catalog.journal_folder).damaged_end


def test_a_name_with_a_newline_stays_on_one_line(catalog: Catalog) -> None:
    """Nobody forges a line with it."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a", names=('n\n{"seq":9} 00',), metadata="\u2028\x00"))
    create(catalog, "b")

    assert (catalog.journal_folder / "00000001.log").read_bytes().count(b"\n") == 2
    assert chain_ids(catalog) == ["a", "b"]
