"""What a collection relies on: notes made by triggers, accounts of packs, and what happens when it is cut short."""

from __future__ import annotations

import io
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lading import Settings, Store
from lading.catalog import layers, migrations, reach
from lading.catalog.database import Catalog
from lading.errors import Corrupt, NotFound
from lading.flows import ingest, leftovers
from lading.objects.epoch import Epochs
from lading.objects.folder import FolderBackend
from lading.objects.repack import repack
from tests.flows.test_gc import layer_of
from tests.flows.test_layers import taken_out
from tests.tarmake import END, file


def findings(store: Store) -> list[str]:
    """What the catalog's depth of a check says."""
    with store._context.catalog.read() as conn:
        return reach.unreferenced_rows(conn)


def everything(store: Store) -> dict[str, int]:
    """Numbers of rows that a collection may delete, and bytes of packs."""
    tables = ("content", "content_object", "entry", "inode", "path", "object", "pack", "suspect", "content_suspect")
    counts = {name: int(next(store.query(f"SELECT count(*) FROM {name}")[1])[0]) for name in tables}
    return counts | {name: size for name, size in store.balance().classes.items() if name.startswith("packs")}


#: Notes and working tables: a collection may go through all of them.
_NOTES = {"content_suspect", "suspect", "stale_view", "taken", "doomed_content", "doomed_inode", "doomed_object"}

#: Indexes that hold nothing of what is whole and in use.
_BOUNDED = ("pack_worn", "pack_small", "pack_unsettled", "object_condemned", "object_damaged", "content_hidden")


def statements(store: Store, act: Callable[[], object]) -> Iterator[tuple[str, str]]:
    """The statements that something runs on the catalog, each with how SQLite goes about it."""
    seen: dict[str, None] = {}
    conn = store._context.catalog.connection()
    for name in ("doomed_content", "doomed_inode", "doomed_object", "taken"):  # so that they outlive the reading
        conn.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} (id INTEGER PRIMARY KEY)")
    conn.set_trace_callback(seen.setdefault)
    act()
    conn.set_trace_callback(None)
    for sql in seen:
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)", sql):
            yield sql, "\n".join(str(row[3]) for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}"))


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_collection_goes_through_no_table_that_grows_with_the_store(store: Store, dry_run: bool) -> None:
    """Only through notes, and through rows by indexes that hold nothing that is whole."""
    for seed in range(1, 5):
        store.images.create(
            store.layers.import_(io.BytesIO(layer_of(seed)), id=f"l{seed}").id,
            id=f"i{seed}",
            big_data={"k": b"%d" % seed},
        )
    store.gc()
    store.images.delete("i1")

    full = {
        (sql, step)
        for sql, plan in statements(store, lambda: store.gc(dry_run=dry_run))
        for step in plan.splitlines()
        if step.startswith("SCAN")
        and not any(name in step for name in _BOUNDED)
        and _table(sql, step.split()[1]) not in _NOTES
    }

    # Names of packs are compared with the folder's: the one list that is read whole.
    assert {sql for sql, _ in full} == {"SELECT name, size FROM pack"}


def _table(sql: str, alias: str) -> str:
    """The table that a plan calls by an alias; a subquery is none that grows."""
    found = re.search(rf"(?:FROM|JOIN|UPDATE|INTO) (\w+) (?:AS )?{alias}\b", sql)
    return found[1] if found else alias


@pytest.mark.damages
def test_what_is_not_noted_is_found_by_a_check(store: Store) -> None:
    """Each note that a collection relies on has its recount."""
    store.layers.import_(io.BytesIO(layer_of(1)), id="goes")
    store.layers.import_(io.BytesIO(layer_of(2)), id="stays")
    store.gc()
    store.layers.delete("goes")
    catalog = store._context.catalog
    assert findings(store) == []

    with catalog.write_rows() as conn:
        conn.execute("DELETE FROM content_suspect")
    assert findings(store) == ["1 contents that no layer has and no collection would look at"]
    with catalog.write_rows() as conn:
        conn.execute("UPDATE pack SET live = live + 1")
    assert findings(store)[1:] == ["2 packs whose account is wrong"]
    with catalog.write_rows() as conn:
        conn.execute("UPDATE pack SET live = live - 1")
        conn.execute("UPDATE content SET recipe_id = NULL WHERE key = (SELECT diff_digest FROM layer)")
    assert findings(store) == [
        "1 contents that no layer has and no collection would look at",
        "1 objects that nothing refers to and no collection would look at",
    ]  # fmt: skip


@pytest.mark.damages
def test_every_way_to_lose_a_content_is_noted(store: Store) -> None:
    """Deleting, replacing, by the library or by hand."""
    one, two = (file(b"f", b"%d" % number) + END for number in (1, 2))
    layer = store.layers.create().id

    def noted() -> list[str]:
        query = "SELECT c.size FROM content_suspect s JOIN content c ON c.id = s.content_id"
        return sorted(str(row[0]) for row in store.query(query)[1])

    store.layers.apply(layer, io.BytesIO(one))
    store.gc()
    assert noted() == []
    store.layers.apply(layer, io.BytesIO(two))
    assert len(noted()) == 2  # the new one, and the one that is no longer what `diff` gives
    store.gc()
    assert noted() == []
    with store._context.catalog.write_rows() as conn:
        conn.execute("DELETE FROM layer")

    assert len(noted()) == 2
    store.gc()
    assert everything(store)["content"] == 0


def older(store: Store) -> None:
    """Take a catalog back to schema 3."""
    with store._context.catalog.write_rows() as conn:
        for kind in ("trigger", "view"):
            for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = ?", (kind,)).fetchall():
                conn.execute(f"DROP {kind} {name}")
        for index in ("pack_worn", "pack_small"):
            conn.execute(f"DROP INDEX {index}")
        for column in ("live", "objects"):
            conn.execute(f"ALTER TABLE pack DROP COLUMN {column}")
        for table in ("content_suspect", "stale_view"):
            conn.execute(f"DROP TABLE {table}")
        conn.execute("DELETE FROM meta WHERE key = 'views'")
        conn.execute("PRAGMA user_version = 3")


def test_an_older_catalog_has_its_garbage_noted(tmp_path: Path) -> None:
    """A content without a layer, an object that was forgotten, a worn pack: all go with the first collection."""
    settings = Settings(repack_share=0.2)
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings) as store:
        store.layers.import_(io.BytesIO(layer_of(1, files=50, shared=30)), id="goes")
        store.layers.import_(io.BytesIO(layer_of(2, files=1, shared=30)), id="stays")
        image = store.images.create(big_data={"k": os.urandom(5000)})
        store.gc()
        store.layers.delete("goes")
        store.images.delete(image.id)
        with store._context.catalog.write_rows() as conn:
            conn.execute("DELETE FROM suspect")
        older(store)

    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings) as store:
        assert migrations.version(store._context.catalog.connection()) == migrations.VERSION
        assert findings(store) == []
        dry = store.gc(dry_run=True)
        assert store.gc() == dry

        assert (dry.contents, dry.packs_rewritten) == (1, 1)
        assert store.balance().classes["packs: dead"] == 0
        assert taken_out(store, "stays") == layer_of(2, files=1, shared=30)
        assert store.check(content=True).findings == ()


class Cut(BaseException):
    """Ends a collection where it stands."""


def cutting(at: int) -> tuple[pytest.MonkeyPatch, list[str]]:
    """End what runs before, or after, its N-th change: a commit, an epoch, a pack's file."""
    patch = pytest.MonkeyPatch()
    passed: list[str] = []

    def change(what: str) -> None:
        passed.append(what)
        if len(passed) == at:
            raise Cut(what)

    def around(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            change(f"before {name}")
            result = original(*args, **kwargs)
            change(f"after {name}")
            return result

        patch.setattr(owner, name, replacement)

    transaction = Catalog._transaction

    class Stepping:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __enter__(self) -> Any:
            return self.inner.__enter__()

        def __exit__(self, *error: Any) -> Any:
            if error[0] is None:
                try:
                    change("in a transaction")
                except Cut as cut:
                    self.inner.__exit__(Cut, cut, None)
                    raise
            result = self.inner.__exit__(*error)
            change("after a commit")
            return result

    def stepping(*args: Any, **options: Any) -> Stepping:
        return Stepping(transaction(*args, **options))

    patch.setattr(Catalog, "_transaction", stepping)
    around(Epochs, "advance")
    around(Epochs, "_retire")
    around(FolderBackend, "publish")
    around(FolderBackend, "delete")
    return patch, passed


def reopened(folder: Path) -> Store:
    """A scene's store, once more."""
    return Store.open(folder / "root", run=folder / "run", settings=Settings(repack_share=0.2))


def scene(folder: Path) -> Store:
    """A store with every kind of garbage, and a pack that is rewritten."""
    store = reopened(folder)
    store.layers.import_(io.BytesIO(layer_of(1, files=12, shared=8)), id="goes")
    store.layers.import_(io.BytesIO(layer_of(2, files=1, shared=8)), id="stays")
    store.layers.import_(io.BytesIO(layer_of(3, files=2, shared=0)), id="alone")
    image = store.images.create(big_data={"k": os.urandom(3000)})
    store.gc()
    for layer in ("goes", "alone"):
        store.layers.delete(layer)
    store.images.set_data(image.id, "k", io.BytesIO(b"last"))
    return store


def test_a_collection_that_is_cut_anywhere_is_finished_by_the_next(memory: Path) -> None:
    """At each of its own changes: what stays is whole, what goes is gone in the end, and nothing is missed."""
    with scene(memory / "whole") as store:
        store.gc()
        wanted = everything(store)
    at = 0
    while True:
        at += 1
        folder = memory / str(at)
        with scene(folder) as store:
            patch, passed = cutting(at)
            try:
                store.gc()
                ended = True
            except Cut:
                ended = False
            finally:
                patch.undo()
            assert findings(store) == []
            assert taken_out(store, "stays") == layer_of(2, files=1, shared=8)
            if not ended:
                dry = store.gc(dry_run=True)
                assert store.gc() == dry, passed[-1]
            assert everything(store) == wanted, passed[-1]
            assert store.check(content=True).findings == (), passed[-1]
            if ended:
                break
    assert at > 40  # it has as many changes, each cut once


def held_up(at: int, other: Store) -> tuple[pytest.MonkeyPatch, list[str]]:
    """Run another collection whole before this thread's N-th transaction."""
    patch = pytest.MonkeyPatch()
    main = threading.get_ident()
    writing = Catalog._writing
    passed: list[str] = []

    def replacement(self: Catalog, verb: str) -> Any:
        if threading.get_ident() == main:
            passed.append(verb)
            if len(passed) == at:
                thread = threading.Thread(target=other.gc)
                thread.start()
                thread.join()
        return writing(self, verb)

    patch.setattr(Catalog, "_writing", replacement)
    return patch, passed


def test_two_collections_at_once_do_the_work_of_one(memory: Path) -> None:
    """One is held up before each of its transactions in turn, and the other runs through meanwhile."""
    with scene(memory / "whole") as store:
        store.gc()
        wanted = everything(store)
    at = 0
    passed = [""]
    while len(passed) >= at:
        at += 1
        folder = memory / str(at)
        with scene(folder) as store, reopened(folder) as other:
            patch, passed = held_up(at, other)
            report = store.gc()
            patch.undo()
            assert report.warnings == ()
            store.gc()
            assert everything(store) == wanted
            assert taken_out(store, "stays") == layer_of(2, files=1, shared=8)
            assert store.check(content=True).findings == ()
    assert at > 10


def test_a_pack_that_another_collection_rewrote_is_let_be(tmp_path: Path) -> None:
    """Its new copy goes at once, and no damage is made of a file that is not there any more."""
    with (
        scene(tmp_path) as store,
        Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(repack_share=0.2)) as other,
    ):

        def late(*args: Any) -> Any:
            made = repack(*args)
            patch.undo()
            thread = threading.Thread(target=other.gc)
            thread.start()
            thread.join()
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lading.flows.collect.repack", late)
            report = store.gc()

        assert report.warnings == ()
        assert store.balance().classes["packs: unrecorded"] == 0
        assert list(store.query("SELECT count(*) FROM object WHERE damaged_at IS NOT NULL")[1]) == [(0,)]
        assert store.check(content=True).findings == ()


def test_a_damaged_pack_is_told_of_once_and_rewritten_when_it_is_repaired(tmp_path: Path) -> None:
    """In between collections leave it alone, and the dry run says so."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(repack_share=0.1)) as store:
        store.layers.import_(io.BytesIO(layer_of(1, files=50, shared=30)), id="goes")
        store.layers.import_(io.BytesIO(layer_of(2, files=1, shared=30)), id="stays")
        query = "SELECT p.name, o.offset FROM object o JOIN pack p ON p.id = o.pack_id JOIN inode i ON i.object_id = o.id JOIN entry e ON e.inode_id = i.id JOIN path t ON t.id = e.path_id WHERE t.path = 'shared/3' LIMIT 1"
        ((name, offset),) = store.query(query)[1]
        path = store.root / "objects/packs" / name[:2] / f"{name}.pack"
        raw = bytearray(path.read_bytes())
        raw[offset + 9] ^= 1
        path.write_bytes(raw)
        store.layers.delete("goes")

        warnings = [store.gc().warnings for _ in range(3)]
        dry = store.gc(dry_run=True)

        assert [len(found) for found in warnings] == [1, 0, 0]
        assert dry.packs_rewritten == 0
        with pytest.raises(Corrupt):
            taken_out(store, "stays")
        data = random.Random(0)
        shared = [data.randbytes(3000) for _ in range(4)]
        store.layers.import_(io.BytesIO(file(b"again", shared[3]) + END))
        assert taken_out(store, "stays") == layer_of(2, files=1, shared=30)
        dry = store.gc(dry_run=True)
        assert store.gc() == dry
        assert dry.packs_rewritten >= 1
        assert not path.exists()
        assert store.check(content=True).findings == ()


def test_a_content_found_before_it_was_condemned_is_taken_back(store: Store) -> None:
    """An ingest that relies on it commits; the next collection leaves it alone."""
    data = layer_of(1)
    context = store._context
    first = store.layers.import_(io.BytesIO(data))
    store.layers.delete(first.id)

    with ingest.ingesting(context, io.BytesIO(data)) as ingested:
        assert ingested.content_id is None
        store.gc()
        assert list(store.query("SELECT state FROM content")[1]) == [("condemned",)]
        with context.catalog.write("test") as tx:
            key = ingested.commit(tx)
            layers.create_layer(tx, replace(first, id="again", names=(), contents=(key,), replay=key))

    store.gc()
    assert taken_out(store, "again") == data
    assert store.check(content=True).findings == ()


def test_a_content_whose_rows_are_going_is_not_taken_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knew its key without holding an epoch is refused, and no layer has half a content."""
    layer = store.layers.import_(io.BytesIO(layer_of(1)))
    store.layers.delete(layer.id)
    refused = []

    def between(catalog: Catalog, content_id: int) -> bool:
        monkeypatch.undo()
        try:
            with catalog.write("test") as tx:
                layers.create_layer(tx, layer)
        except Corrupt as error:
            refused.append(str(error))
        return reach._delete_entries(catalog, content_id)

    monkeypatch.setattr(reach, "_delete_entries", between)
    store.gc()

    assert refused == [f"content {layer.contents[0]} is not stored"]
    with pytest.raises(NotFound):
        store.layers.get(layer.id)
    assert everything(store)["content"] == 0


def test_what_is_found_while_a_collection_waits_for_its_turn_is_safe(store: Store) -> None:
    """Another collection opens the next epoch meanwhile, and an ingest that holds it finds what is about to be condemned."""
    data = layer_of(1)
    context = store._context
    first = store.layers.import_(io.BytesIO(data))
    store.layers.delete(first.id)
    writing = Catalog._writing
    held = ExitStack()
    found: list[ingest.Ingested] = []

    def late(catalog: Catalog, verb: str) -> Any:
        if verb == "gc: condemn contents" and not found:
            patch.undo()
            leftovers.next_epoch(context)
            found.append(held.enter_context(ingest.ingesting(context, io.BytesIO(data))))
        return writing(catalog, verb)

    with held:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Catalog, "_writing", late)
            store.gc()
        store.gc()
        assert found[0].content_id is None
        with context.catalog.write("test") as tx:
            key = found[0].commit(tx)
            layers.create_layer(tx, replace(first, id="again", names=(), contents=(key,), replay=key))

    store.gc()
    assert taken_out(store, "again") == data
    assert store.check(content=True).findings == ()


def test_a_content_that_gets_the_number_of_one_that_went_keeps_its_rows(tmp_path: Path) -> None:
    """Two collections delete one content; before the slower one is done, a new content has its row number."""
    data = layer_of(2)
    delete_entries = reach._delete_entries
    with (
        Store.open(tmp_path / "root", run=tmp_path / "run") as slow,
        Store.open(tmp_path / "root", run=tmp_path / "run") as fast,
    ):
        slow.layers.delete(slow.layers.import_(io.BytesIO(layer_of(1))).id)
        numbers: list[int] = []

        def late(catalog: Catalog, content_id: int) -> bool:
            patch.undo()
            fast.gc()
            fast.layers.import_(io.BytesIO(data), id="new")
            numbers.append(content_id)
            return delete_entries(catalog, content_id)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reach, "_delete_entries", late)
            slow.gc()

        assert list(slow.query("SELECT id FROM content")[1]) == [(numbers[0],)]
        assert taken_out(slow, "new") == data
        assert slow.check(content=True).findings == ()
