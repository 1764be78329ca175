"""Rot, bad disks, hands in the catalog: only what needs the bytes fails, by name, and a check notices."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lading import Store
from lading.catalog import records
from lading.catalog.journal import Journal
from lading.errors import Corrupt, InvalidInput, LadingError
from lading.flows import journaling
from tests.flows.test_layers import taken_out
from tests.tarmake import tree

pytestmark = pytest.mark.damages


def layer_tar(seed: int) -> bytes:
    """A layer that shares nothing with others."""
    draw = random.Random(seed)
    return tree({f"d/{seed}/{number}": draw.randbytes(3000) for number in range(30)})


@pytest.fixture
def tars(store: Store) -> dict[str, bytes]:
    """Three layers, each in a pack of its own, with an image on each."""
    tars = {f"l{seed}": layer_tar(seed) for seed in range(3)}
    for layer_id, data in tars.items():
        store.layers.import_(io.BytesIO(data), id=layer_id)
        store.images.create(layer_id, id="i" + layer_id[1:])
    return tars


def pack_of(store: Store, path: str) -> tuple[Path, int]:
    """The pack of a file's content, and where it begins in it."""
    query = (
        "SELECT p.name, o.offset FROM object o JOIN pack p ON p.id = o.pack_id JOIN inode i ON i.object_id = o.id "
        "JOIN entry e ON e.inode_id = i.id JOIN path t ON t.id = e.path_id WHERE t.path = ?"
    )
    ((name, offset),) = store.query(query, (path,))[1]
    return store.root / "objects/packs" / name[:2] / f"{name}.pack", offset


def flipped(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset + 100)
        (byte,) = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte ^ 1]))


def cut(path: Path, offset: int) -> None:
    os.truncate(path, offset + 50)


def missing(path: Path, offset: int) -> None:
    path.unlink()


def hole(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(512))


@pytest.mark.parametrize("harm", [flipped, cut, missing, hole])
def test_only_what_needs_damaged_bytes_fails_and_says_whose_they_are(
    store: Store, tars: dict[str, bytes], harm: Callable[[Path, int], None], tmp_path: Path
) -> None:
    """By the diff, a tree, a mount; other layers go on, and check and diff agree."""
    harm(*pack_of(store, "d/1/7"))
    store.close()
    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        assert taken_out(again, "l0") == tars["l0"]
        assert taken_out(again, "l2") == tars["l2"]
        with pytest.raises(Corrupt) as refused:
            taken_out(again, "l1")
        assert "object" in str(refused.value) or "pack" in str(refused.value)
        with pytest.raises(LadingError):
            again.checkout("l1", tmp_path / "out1")
        assert not (tmp_path / "out1").exists()
        again.checkout("l2", tmp_path / "out2")
        assert (tmp_path / "out2/d/2/7").stat().st_size == 3000
        report = again.check(content=True)
        assert "l1" in report.ids("layer")
        assert "i1" in report.ids("image")
        assert not {"l0", "l2", "i0", "i2"} & {finding.id for finding in report.findings}
        with pytest.raises(Corrupt):
            taken_out(again, "l1")  # as often as it is asked for


def test_an_unreadable_sector_fails_what_lies_there_alone(
    store: Store, tars: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is told with the pack; a retry after the disk has come back works."""
    path, offset = pack_of(store, "d/1/7")
    inode, read = path.stat().st_ino, os.pread

    def bad_sector(descriptor: int, size: int, at: int, /) -> bytes:
        if os.fstat(descriptor).st_ino == inode and at <= offset < at + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size, at)

    monkeypatch.setattr(os, "pread", bad_sector)
    assert taken_out(store, "l0") == tars["l0"]
    with pytest.raises((LadingError, OSError), match=r"(?i)input/output error"):
        taken_out(store, "l1")
    assert taken_out(store, "l2") == tars["l2"]
    monkeypatch.undo()
    assert taken_out(store, "l1") == tars["l1"]


#: Tables in which no row may be missing, with what to delete. The others hold what can be made again, or is only told.
ROWS = {
    "layer": "id = 'l1'", "image": "id = 'i1'", "content": "rowid IN (SELECT id FROM content LIMIT 1)", "layer_content": "rowid IN (SELECT rowid FROM layer_content LIMIT 1)",
    "entry": "path_id = (SELECT max(path_id) FROM entry)", "inode": "id = (SELECT max(id) FROM inode)", "object": "id = (SELECT object_id FROM inode WHERE object_id IS NOT NULL LIMIT 1)",
    "path": "path = 'd'", "pack": "id = (SELECT min(id) FROM pack)",
}  # fmt: skip


@pytest.mark.parametrize("table", ROWS)
def test_a_check_notices_rows_that_somebody_deleted(
    store: Store, tars: dict[str, bytes], tmp_path: Path, table: str
) -> None:
    """Constraints, counts and the journal say what should be there."""
    store.images.set_data("i1", "k", io.BytesIO(b"v"))
    assert store.check(content=True).findings == ()
    store.close()
    connection = sqlite3.connect(tmp_path / "root/catalog.db")
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        gone = connection.execute(f"DELETE FROM {table} WHERE {ROWS[table]}").rowcount
    except sqlite3.OperationalError:  # a table without row numbers
        gone = connection.execute(
            f"DELETE FROM {table} WHERE (content_id) IN (SELECT max(content_id) FROM {table})"
        ).rowcount
    connection.commit()
    connection.close()
    assert gone > 0

    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        report = again.check()
        assert report.findings or report.incomplete


#: What hands have done to rows of records alone, and what a check says of it. No constraint is hurt by most.
CHANGES = {
    "DELETE FROM layer WHERE id = 'bare'": "layer bare: recorded in the journal, missing in the catalog",
    "DELETE FROM image WHERE id = 'bare'": "image bare: recorded in the journal, missing in the catalog",
    "DELETE FROM container WHERE id = 'c0'": "container c0: recorded in the journal, missing in the catalog",
    "DELETE FROM layer_name": r"layer l0: its record differs from the journal \(names\)",
    "DELETE FROM image_name": r"image i0: its record differs from the journal \(names\)",
    "DELETE FROM container_name": r"container c0: its record differs from the journal \(names\)",
    "UPDATE image_name SET owner_id = (SELECT seq FROM image WHERE id = 'i1')": r"image i1: its record differs .*\(names\)",
    "DELETE FROM layer_data": r"layer l0: its record differs from the journal \(big_data_names, big_data\)",
    "DELETE FROM image_data": r"image i0: its record differs from the journal \(big_data\)",
    "DELETE FROM container_data": r"container c0: its record differs from the journal \(big_data\)",
    "UPDATE image_data SET digest = 'x'": r"image i0: its record differs from the journal \(big_data\)",
    "UPDATE layer SET metadata = 'forged'": r"layer l2: its record differs from the journal \(metadata\)",
    "UPDATE image SET metadata = 'forged'": r"image i2: its record differs from the journal \(metadata\)",
    "UPDATE container SET metadata = 'forged'": r"container c0: its record differs from the journal \(metadata\)",
    "UPDATE layer SET parent = 'l0' WHERE id = 'l2'": r"layer l2: its record differs from the journal \(parent\)",
    "UPDATE image SET layer = 'l1' WHERE id = 'i2'": r"image i2: its record differs from the journal \(layer\)",
    "UPDATE image SET id = 'other' WHERE id = 'bare'": "image other: in the catalog, and not recorded in the journal",
    "INSERT INTO image VALUES (99, 'new', '', 'l0', '[]', '[]', '', 0, '{}')": "image new: in the catalog, and not recorded in the journal",
}  # fmt: skip


@pytest.fixture(params=["lines", "snapshot"])
def recorded(
    request: pytest.FixtureRequest, store: Store, tars: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Store:
    """Records of every kind, with names and data; the journal holds their lines, or begins with a snapshot of most."""
    store.layers.create(id="bare")
    store.images.create("", id="bare")
    store.containers.create("i0", id="c0", names=["container"])
    store.set_names("l0", ["layer"])
    store.set_names("i0", ["image"])
    for kind, record_id in ((store.layers, "l0"), (store.images, "i0"), (store.containers, "c0")):
        kind.set_data(record_id, "k", io.BytesIO(b"v"))
    if request.param == "snapshot":
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "needs_snapshot", lambda self, conn: True)
            assert journaling.snapshot_if_needed(store._context)
        store.set_metadata("l0", "later")
    return store


def by_hand(store: Store, *statements: str) -> None:
    """Change the catalog behind the store's back."""
    store.close()
    connection = sqlite3.connect(store.root / "catalog.db")
    for statement in statements:
        assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()


@pytest.mark.parametrize("change", CHANGES)
def test_a_check_notices_records_that_somebody_changed(recorded: Store, tmp_path: Path, change: str) -> None:
    """By the journal; a repair deletes nothing, and a rebuild brings back what was committed."""
    before = everything(recorded)
    assert recorded.check(content=True).findings == ()
    by_hand(recorded, change)

    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        report = again.check()
        said = [finding.message for finding in report.findings if finding.id == "records"]
        assert any(re.match(CHANGES[change], words) for words in said), report.findings
        assert all("run `lading catalog rebuild`" in words for words in said)
        assert not report.incomplete
        with pytest.raises(InvalidInput, match="nothing is deleted"):
            again.repair(report, containers_too=True)
    Store.rebuild(tmp_path / "root", run=tmp_path / "run")
    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        assert everything(again) == before
        assert again.check(content=True).findings == ()


def everything(store: Store) -> list[object]:
    """All records, with their data."""
    with store._context.catalog.read() as conn:
        return list(records.live(conn))


def test_what_somebody_changed_is_not_made_the_truth_by_a_snapshot(
    recorded: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal's lines stay until a rebuild, or whoever wants the catalog as it is makes the journal anew."""
    by_hand(recorded, "DELETE FROM container_name", "DELETE FROM layer WHERE id = 'bare'")
    monkeypatch.setattr(Journal, "needs_snapshot", lambda self, conn: True)

    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        again.gc()
        assert [finding.id for finding in again.check().findings] == ["records", "records"]
        again.rejournal()
        assert again.check().findings == ()
        with pytest.raises(InvalidInput, match="agrees with the catalog"):
            again.rejournal()


def test_a_record_that_was_changed_since_by_the_store_is_sound(recorded: Store, tmp_path: Path) -> None:
    """A line holds the whole state, so that it says anew whatever somebody had changed of it."""
    by_hand(recorded, "UPDATE container SET metadata = 'forged'")
    with Store.open(tmp_path / "root", run=tmp_path / "run") as again:
        again.set_metadata("c0", "own")
        assert again.check().findings == ()
