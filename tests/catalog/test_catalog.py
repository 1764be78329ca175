"""The catalog's database, journal, views and questions."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import peewee
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading import Store
from lading.catalog import migrations
from lading.catalog.chain import read_chain
from lading.catalog.encoding import pack_pairs, pack_regions, unpack_pairs, unpack_regions
from lading.catalog.engine import Connection
from lading.catalog.journal import Journal, head
from lading.catalog.models import TABLES
from lading.catalog.paths import path_to_text, text_to_path
from lading.errors import Busy, Corrupt, InvalidInput, Unsupported
from tests.tarmake import END, directory, file, link, tree


@given(st.binary())
def test_every_path_has_one_text_and_back(path: bytes) -> None:
    """Also what is no UTF-8, and what looks like an escape."""
    assert text_to_path(path_to_text(path)) == path


@given(st.binary(), st.binary())
def test_two_paths_never_share_a_text(one: bytes, two: bytes) -> None:
    """The text is a key."""
    assert (path_to_text(one) == path_to_text(two)) == (one == two)


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200))),
    st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**60))),
)
def test_attributes_and_regions_come_back(pairs: list[tuple[bytes, bytes]], regions: list[tuple[int, int]]) -> None:
    """Any bytes, any numbers."""
    assert list(unpack_pairs(pack_pairs(pairs))) == pairs
    assert list(unpack_regions(pack_regions(regions))) == regions


def schema(connection: sqlite3.Connection) -> set[str]:
    """Tables and indexes, as SQLite keeps them."""
    rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND type <> 'view'")
    return {" ".join(row[0].replace(" IF NOT EXISTS", "").split()) for row in rows}


def test_the_migrated_schema_is_the_models() -> None:
    """The frozen statements and the models say the same."""
    database = peewee.SqliteDatabase(":memory:")
    with database.bind_ctx(TABLES):
        database.create_tables(TABLES)
        wanted = schema(database.connection())  # type: ignore[no-untyped-call]
    migrated = sqlite3.connect(":memory:", isolation_level=None)
    migrations.migrate(migrated)

    assert schema(migrated) == wanted
    assert migrations.version(migrated) == migrations.VERSION


@pytest.mark.parametrize("done", range(1, migrations.VERSION))
def test_an_older_catalog_becomes_current(done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step it comes to the same as a new one."""
    fresh, older = (sqlite3.connect(":memory:", isolation_level=None) for _ in range(2))
    migrations.migrate(fresh)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", migrations.STEPS[:done])
        patch.setattr(migrations, "VERSION", done)
        migrations.migrate(older)

    migrations.migrate(older)

    assert schema(older) == schema(fresh)
    assert migrations.version(older) == migrations.VERSION


def test_the_database_is_as_safe_as_it_can_be(store: Store) -> None:
    """Every commit synced, foreign keys on, checkpoints under our lock."""
    connection = store._context.catalog.connection()
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0, "wal_autocheckpoint": 0}

    assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted} == wanted


@pytest.mark.damages
def test_a_newer_schema_or_format_is_refused(store: Store, tmp_path: Path) -> None:
    """With the version it has; nothing is written to it."""
    store._context.catalog.connection().execute("PRAGMA user_version = 99")
    with pytest.raises(Unsupported, match="schema 99"):
        Store.open(store.root, run=tmp_path / "run")
    marker = json.loads((store.root / "format.json").read_text())
    for change, message in (({"version": 9}, "format 9"), ({"incompatible": ["magic"]}, "magic")):
        (store.root / "format.json").write_text(json.dumps({**marker, **change}))
        with pytest.raises(Unsupported, match=message):
            Store.open(store.root, run=tmp_path / "run")


def test_a_folder_of_another_program_is_refused(tmp_path: Path) -> None:
    """Nothing is made in it."""
    (tmp_path / "foreign/overlay-layers").mkdir(parents=True)
    (tmp_path / "foreign/overlay-layers/layers.json").write_text("[]")

    with pytest.raises(Unsupported, match="belongs to containers/storage"):
        Store.open(tmp_path / "foreign", run=tmp_path / "run")
    assert os.listdir(tmp_path / "foreign") == ["overlay-layers"]


def test_whoever_waits_too_long_is_told_for_whom(store: Store) -> None:
    """The lock says who holds it, and dies with them."""
    hold = (
        "import sys, time\nfrom lading import Store\nwith Store.open(sys.argv[1], run=sys.argv[2]) as store:\n"
        "    with store._context.catalog.write('hold'):\n        print('held', flush=True)\n        time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(store.root), str(store.run.parent)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    store._context.catalog._wait_s = 0.2
    with pytest.raises(Busy, match=rf"process {process.pid} \(hold\)"):
        store.layers.create()
    assert store.layers.all() == []
    process.kill()
    process.wait()

    store.layers.create()


def test_the_journal_holds_every_records_last_state(store: Store) -> None:
    """Enough to make it again; a tombstone for what is gone."""
    layer = store.layers.import_(io.BytesIO(tree({"f": b"1"})), names=["n"])
    image = store.images.create(layer.id, names=["i"], big_data={"k": b"v"})
    gone = store.layers.create()
    store.layers.delete(gone.id)

    states = {
        (kind, name): state for line in read_chain(store.root / "journal") for kind, name, state in line.body["changes"]
    }

    assert states["layer", layer.id]["contents"] == list(layer.contents)
    assert states["image", image.id]["names"] == ["i"]
    assert states["image", image.id]["big_data"][0][0] == "k"
    assert states["layer", gone.id] is None


def _append_and_stop(folder: Path, conn: Connection) -> None:
    """A line goes out, and the transaction fails."""
    Journal(folder).append(conn, {"at": 1, "verb": "lost", "changes": []})
    raise RuntimeError("stop")


def test_a_line_whose_transaction_did_not_commit_is_passed_over(store: Store) -> None:
    """Whole or torn; the chain goes on from the last committed line."""
    store.layers.create(id="a")
    path = store.root / "journal/00000001.log"
    committed = path.read_bytes()
    catalog = store._context.catalog
    with pytest.raises(RuntimeError, match="stop"), catalog.write("x") as tx:
        _append_and_stop(catalog.journal_folder, tx.conn)
    assert len(path.read_bytes()) > len(committed)
    store.layers.create(id="b")
    with path.open("ab") as torn:
        torn.write(b'{"seq": 9, "half')
    store.layers.create(id="c")

    assert [line.body["verb"] for line in read_chain(store.root / "journal")] == ["create-layer"] * 3


@pytest.mark.damages
def test_a_catalog_older_than_its_journal_is_noticed(store: Store) -> None:
    """Commits were lost: nothing more is written."""
    store.layers.create(id="a")
    catalog = store._context.catalog
    old = head(catalog.connection())
    store.layers.create(id="b")
    store.layers.create(id="c")
    with catalog.write_rows() as conn:
        value = json.dumps({"segment": old.segment, "offset": old.offset, "seq": old.seq, "digest": old.digest})
        conn.execute("UPDATE meta SET value = ? WHERE key = 'journal'", (value,))

    with pytest.raises(Corrupt, match="older than its journal"):
        store.layers.create(id="d")
    assert not store.layers.exists("d")


def test_a_long_journal_becomes_a_snapshot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All live records in one object that stays; older segments go."""
    monkeypatch.setattr("lading.catalog.journal.SEGMENT_SIZE", 2000)
    for number in range(10):
        store.layers.create(id=f"l{number}")
    store.gc()
    store.gc()

    lines = read_chain(store.root / "journal")
    snapshot = bytes.fromhex(lines[0].body["snapshot"])
    records = [json.loads(line) for line in store._context.reader.read(snapshot).splitlines()]

    assert [path.name for path in (store.root / "journal").glob("*.log")] == ["00000002.log"]
    assert [record[1] for record in records] == [f"l{number}" for number in range(10)]
    store.layers.create(id="after")
    assert read_chain(store.root / "journal")[-1].body["verb"] == "create-layer"


def test_snapshots_stay_in_proportion_to_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal is closed when it is longer than all that there is to say, not whenever it has some length."""
    monkeypatch.setattr("lading.catalog.journal.SEGMENT_SIZE", 2000)
    for number in range(30):
        store.layers.create(id=f"l{number}")
    store.gc()
    (snapshot,) = next(store.query("SELECT size FROM object")[1])
    assert snapshot > 4000
    segment = store.root / "journal/00000002.log"
    for number in range(30):
        if segment.stat().st_size > snapshot:
            break
        store.gc()
        assert segment.exists()
        store.set_names("l0", [f"name {number}"])
    assert segment.stat().st_size > snapshot
    store.gc()
    assert not segment.exists()


@pytest.fixture
def stacked(store: Store) -> str:
    """An image whose layers hide things from each other."""
    base = store.layers.import_(
        io.BytesIO(directory(b"d/") + file(b"d/a", b"1") + file(b"d/b", b"22") + file(b"o/x", b"333") + file(b"w", b"4") + link(b"h", b"w")
                   + file(b"dir/in", b"5") + END)
    )  # fmt: skip
    top = store.layers.import_(
        io.BytesIO(
            file(b"d/a", b"new")
            + directory(b"o/")
            + file(b"o/.wh..wh..opq")
            + file(b".wh.w")
            + file(b"dir", b"now a file")
            + END
        ),
        base.id,
    )
    return store.images.create(top.id, names=["image"]).id


def test_v_file_says_what_shows_and_what_is_hidden(store: Store, stacked: str) -> None:
    """Replaced, removed, below an opaque directory, below a file."""
    rows = store.query(
        "SELECT path, visible, shadowed, whiteout FROM v_file WHERE image = ? ORDER BY path, visible", [stacked]
    )[1]

    assert [(path, *map(bool, rest)) for path, *rest in rows] == [
        ("d", False, True, False), ("d", True, False, False), ("d/a", False, True, False), ("d/a", True, False, False),
        ("d/b", True, False, False), ("dir", False, True, False), ("dir", True, False, False), ("dir/in", False, True, False),
        ("h", True, False, False), ("o", False, True, False), ("o", True, False, False), ("o/x", False, True, False),
        ("w", False, False, True), ("w", False, True, False),
    ]  # fmt: skip


def test_costs_add_up(store: Store, stacked: str) -> None:
    """Unique bytes are what deleting frees; amortised ones sum to what is stored."""
    other = store.images.create(
        store.layers.import_(io.BytesIO(tree({"n": os.urandom(3000)})), store.images.get(stacked).layer).id
    )

    costs = {
        row[0]: row[1:]
        for row in store.query("SELECT image, logical, unique_bytes, shared_bytes, amortised_bytes FROM v_image_cost")[
            1
        ]
    }
    live = store.balance().classes["packs: live"]

    assert costs[other.id][1] > 3000
    assert costs[stacked][1] == 0
    assert costs[stacked][2] == costs[other.id][2]
    assert abs(sum(row[3] for row in costs.values()) - live) <= 2


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM layer", "UPDATE layer SET id = 'x'", "DROP TABLE layer", "ATTACH '/tmp/x.db' AS x", "PRAGMA user_version = 5",
        "SELECT load_extension('x')", "CREATE TABLE t (x)", "SELECT 1; DELETE FROM layer", "VACUUM INTO '/tmp/x.db'", "nonsense", "",
        "SELECT * FROM nothing", "SELECT writefile('/tmp/x', 'y')", "INSERT INTO meta VALUES ('a', 'b')",
    ],
)  # fmt: skip
def test_a_question_can_only_read(store: Store, statement: str) -> None:
    """One line, whatever was tried."""
    store.layers.create(id="x")

    with pytest.raises(InvalidInput) as caught:
        list(store.query(statement)[1])

    assert "\n" not in str(caught.value)
    assert store.layers.exists("x")


DOCS = Path(__file__).parents[2] / "docs"


def test_every_column_of_every_view_is_documented(store: Store) -> None:
    """And nothing that does not exist."""
    text = (DOCS / "catalog.md").read_text()
    sections = re.findall(r"^### `(v_\w+)`\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    documented = {name: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE) for name, body in sections}
    views = {row[0] for row in store.query("SELECT name FROM sqlite_master WHERE type = 'view'")[1]}

    assert documented == {name: store.query(f"SELECT * FROM {name}")[0] for name in views}


def test_the_worked_queries_run(store: Store, stacked: str) -> None:
    """All ten, on a store with something in it, quickly."""
    store.containers.create(stacked, names=["c"])
    queries = re.findall(r"```sql\n(.*?)```", (DOCS / "queries.md").read_text(), re.DOTALL)

    answers = []
    for query in queries:
        started = time.monotonic()
        answers.append(list(store.query(query)[1]))
        assert time.monotonic() - started < 5

    assert len(queries) == 10
    assert sum(bool(rows) for rows in answers) >= 8
