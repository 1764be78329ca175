"""Rot, bad disks, hands in the catalog: only what needs the bytes fails, by name, and a check notices."""

from __future__ import annotations

import errno
import io
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lading import Store
from lading.errors import Corrupt, LadingError
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
