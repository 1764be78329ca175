"""References, and names that move."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.catalog import containers, images, layers, names
from lading.catalog.database import Catalog
from lading.errors import DuplicateID, DuplicateName
from lading.values import Container, Image, Layer, RecordKind


def plan(catalog: Catalog, sql: str, *values: Any) -> str:
    rows = catalog.connection().execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    return " / ".join(row[-1] for row in rows)


def resolve(catalog: Catalog, ref: str, kind: RecordKind = "layer") -> str | None:
    with catalog.read() as conn:
        return names.resolve(conn, kind, ref)


def test_an_id_wins_over_a_name_and_a_name_over_a_prefix(catalog: Catalog) -> None:
    """Prefixes only when they are unique; nothing answers to an empty one."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("abc", names=("xyz", "abd", "a")))
        layers.create_layer(tx, Layer("abd"))
        layers.create_layer(tx, Layer("xyz1"))
        layers.create_layer(tx, Layer("has space"))

    wanted = {
        "abc": "abc", "abd": "abd", "xyz": "abc", "xyz1": "xyz1", "xy": "xyz1", "ab": None, "a": "abc", "": None, "ABC": None,
        "abcd": None, "has": None, "has space": "has space", "a%": None, "xyz_": None, "\udcff": None,
    }  # fmt: skip
    assert {ref: resolve(catalog, ref) for ref in wanted} == wanted


def test_an_empty_name_is_a_name(catalog: Catalog) -> None:
    """Any text is."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a", names=("", " ", "new\nline", "nul\x00")))

    assert [resolve(catalog, ref) for ref in ("", " ", "new\nline", "nul\x00", "nul")] == ["a", "a", "a", "a", None]


def test_a_container_answers_to_its_layer_but_not_to_a_prefix_of_it(catalog: Catalog) -> None:
    """After its own id and names, before prefixes of ids."""
    with catalog.write("x") as tx:
        containers.create_container(tx, Container("one", layer="layer1", names=("n",)))
        containers.create_container(tx, Container("layer12", layer=""))
        containers.create_container(tx, Container("two", layer="one"))

    found = [resolve(catalog, ref, "container") for ref in ("layer1", "layer", "one", "", "n")]
    assert found == ["one", "layer12", "one", None, "one"]


@given(
    st.lists(st.text("abÿ\U0010fffe", min_size=1, max_size=4), unique=True, max_size=12),
    st.text("abÿ\U0010fffe", max_size=3),
)
def test_prefixes_are_found_as_by_looking_at_every_id(ids: list[str], prefix: str) -> None:
    """The range of the index is exactly the prefix's."""
    from lading.catalog.engine import sqlite

    conn = sqlite.connect(":memory:")
    conn.execute("CREATE TABLE layer (seq INTEGER PRIMARY KEY, id TEXT UNIQUE)")
    conn.execute("CREATE TABLE layer_name (name TEXT, owner_id INTEGER)")
    conn.executemany("INSERT INTO layer (id) VALUES (?)", [(one,) for one in ids])
    matches = [one for one in ids if prefix and one.startswith(prefix)]
    wanted = prefix if prefix in ids else matches[0] if len(matches) == 1 else None

    assert names.resolve(conn, "layer", prefix) == wanted
    conn.close()


def test_no_look_up_walks_a_table(catalog: Catalog) -> None:
    """Whether there are ten records or fifty thousand."""
    statements: list[str] = []
    connection = catalog.connection()
    connection.set_trace_callback(statements.append)
    with catalog.write("create") as tx:
        layers.create_layer(tx, Layer(names.new_id(tx.conn, "layer"), names=("n", "m"), parent="p"))
        images.create_image(tx, Image("i", names=("n",), layer="l"))
        containers.create_container(tx, Container("c", names=("n",), layer="l", image="i"))
        for kind in ("layer", "image", "container"):
            names.resolve(tx.conn, kind, "nothing")
            names.set_names(tx, kind, names.resolve(tx.conn, kind, "n") or "", ["n", "o"])
        images.images_by_digest(tx.conn, "sha256:0")
        layers.children(tx.conn, "x")
        layers.layers_by_digest(tx.conn, "diff_digest", "sha256:0")
        containers.container_of_layer(tx.conn, "x")
        containers.containers_of_image(tx.conn, "x")
    connection.set_trace_callback(None)

    asked = [text for text in statements if text.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")]
    scans = {text: plan(catalog, text) for text in asked if "SCAN" in plan(catalog, text)}
    assert len(asked) > 30
    assert scans == {}


@pytest.mark.parametrize(
    ("kind", "name_words", "id_words"),
    [
        ("layer", "that name is already in use", "that ID is already in use"),
        (
            "image",
            'image name "n" is already associated with image "one": that name is already in use',
            'an image with ID "one" already exists: that ID is already in use',
        ),
        (
            "container",
            "the container name \"n\" is already in use by one. You have to remove that container to be able to reuse that name: "
            "that name is already in use",
            "that ID is already in use",
        ),
    ],
)  # fmt: skip
def test_a_taken_id_or_name_fails_at_creation(
    catalog: Catalog, kind: RecordKind, name_words: str, id_words: str
) -> None:
    """In the words scripts look for; other kinds may have the same."""

    def create(record_id: str, own: tuple[str, ...]) -> None:
        with catalog.write("create") as tx:
            match kind:
                case "layer":
                    layers.create_layer(tx, Layer(record_id, names=own))
                case "image":
                    images.create_image(tx, Image(record_id, names=own))
                case "container":
                    containers.create_container(tx, Container(record_id, names=own))

    create("one", ("n",))
    with pytest.raises(DuplicateName) as by_name:
        create("two", ("m", "n"))
    with pytest.raises(DuplicateID) as by_id:
        create("one", ())

    assert (str(by_name.value), str(by_id.value)) == (name_words, id_words)
    assert [resolve(catalog, ref, kind) for ref in ("two", "m")] == [None, None]


def test_setting_names_takes_them_from_others_of_the_kind(catalog: Catalog) -> None:
    """Both records are journalled; the old names stop answering."""
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("a", names=("1", "2", "3")))
        layers.create_layer(tx, Layer("b", names=("4",)))
        images.create_image(tx, Image("i", names=("2",)))
    with catalog.write("set-names") as tx:
        names.set_names(tx, "layer", "b", ["2", "5", "2"])

    with catalog.read() as conn:
        assert [layer.names for layer in layers.list_layers(conn)] == [("1", "3"), ("2", "5")]
        touched = conn.execute("SELECT record_id FROM event WHERE verb = 'set-names' ORDER BY record_id").fetchall()
    assert (resolve(catalog, "4"), resolve(catalog, "2", "image")) == (None, "i")
    assert [row[0] for row in touched] == ["a", "b"]


def test_an_images_history_of_names(catalog: Catalog) -> None:
    """Newest first, without repetitions; neither loss nor removal shortens it; creation adds nothing."""
    with catalog.write("x") as tx:
        images.create_image(tx, Image("a", names=("0",)))
        images.create_image(tx, Image("b"))
    histories = []
    for image_id, wanted in (("a", "12"), ("b", "2"), ("a", "1234"), ("a", "51234"), ("a", "34"), ("a", "")):
        with catalog.write("x") as tx:
            names.set_names(tx, "image", image_id, list(wanted))
        with catalog.read() as conn:
            image = images.get_image(conn, "a")
        assert image is not None
        histories.append("".join(image.names_history))

    assert histories == ["21", "21", "4321", "43215", "43215", "43215"]


def test_drawn_ids_do_not_look_like_numbers(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor like one that is there already."""
    draws = [bytes.fromhex(text) for text in ("123456789012" + "ab" * 10, "ab" * 16, "12345678901f" + "cd" * 10)]
    with catalog.write("x") as tx:
        layers.create_layer(tx, Layer("ab" * 16))
        monkeypatch.setattr(names.os, "urandom", lambda _: draws.pop(0))  # type: ignore[attr-defined]
        assert names.new_id(tx.conn, "layer") == "12345678901f" + "cd" * 10
