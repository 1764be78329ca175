"""A relaxed store: which commits are synced, and what is made of what a power loss leaves.

Power losses are made by hand here: a copy of the database from before, a journal cut or with holes.
`tests/powerloss` makes them out of recorded writes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lading.catalog import journal, layers, names
from lading.catalog.chain import read_chain
from lading.catalog.database import Catalog
from lading.catalog.engine import sqlite
from lading.catalog.journal import Journal, head
from lading.errors import Busy, Corrupt, LadingError
from lading.values import Layer
from tests.catalog.conftest import open_catalog


def relaxed_catalog(folder: Path) -> Catalog:
    """Open a relaxed catalog, making it when it is not there."""
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    return Catalog.open(folder / "catalog.db", folder / "journal", folder / "lock", create=True, relaxed=True)


@pytest.fixture
def relaxed(tmp_path: Path) -> Iterator[Catalog]:
    """An empty relaxed catalog."""
    opened = relaxed_catalog(tmp_path / "c")
    yield opened
    opened.close()


def create(catalog: Catalog, *layer_ids: str, durable: bool = False) -> None:
    for layer_id in layer_ids:
        with catalog.write("create-layer", durable=durable) as tx:
            layers.create_layer(tx, Layer(layer_id))


def ids(catalog: Catalog) -> list[str]:
    with catalog.read() as conn:
        return [layer.id for layer in layers.list_layers(conn)]


def journalled(catalog: Catalog) -> list[str]:
    """Ids of the records that the journal alone would give."""
    changes = [change for line in read_chain(catalog.journal_folder) for change in line.body["changes"]]
    states = {record_id: state for _, record_id, state in changes}
    return [record_id for record_id, state in states.items() if state is not None]


def interrupted(catalog: Catalog, *, durable: bool) -> None:
    """Write a line that no commit follows."""
    with catalog.write("x", durable=durable) as tx:
        layers.create_layer(tx, Layer("never"))
        line = {"at": 1, "verb": "x", "changes": [["layer", "never", {}]]}
        Journal(catalog.journal_folder).append(tx.conn, line, durable=durable)
        raise InterruptedError


def segment(catalog: Catalog, number: int = 1) -> Path:
    return catalog.journal_folder / f"{number:08d}.log"


def reopened(catalog: Catalog) -> Catalog:
    catalog.close()
    return relaxed_catalog(catalog.path.parent)


def goes_back(catalog: Catalog, act: Callable[[], None]) -> Catalog:
    """Do something, and let a power loss take its commits, but not its lines."""
    kept = catalog.path.with_name("kept.db")
    catalog.close()
    shutil.copy(catalog.path, kept)
    act()
    catalog.close()
    shutil.move(kept, catalog.path)
    return relaxed_catalog(catalog.path.parent)


@pytest.mark.parametrize("durable", [False, True])
def test_only_durable_commits_are_synced(relaxed: Catalog, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    """The line is synced, and the commit is full, or neither."""
    create(relaxed, "first", durable=True)
    syncs: list[int] = []
    levels: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    with relaxed.write("create-layer", durable=durable) as tx:
        levels.append(tx.conn.execute("PRAGMA synchronous").fetchone()[0])
        layers.create_layer(tx, Layer("second"))

    assert (len(syncs), levels) == ((1, [2]) if durable else (0, [1]))
    assert head(relaxed.connection()).is_durable is durable
    assert relaxed.connection().execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_commit_is_synced_once_many_lines_are_not(relaxed: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a power loss takes no more than so much."""
    monkeypatch.setattr(journal, "UNSYNCED_SIZE", 2000)
    durable = []
    for number in range(20):
        create(relaxed, str(number))
        durable.append(head(relaxed.connection()).is_durable)

    assert 2 <= durable.count(True) <= 10


def test_lines_of_a_full_store_are_as_they_always_were(catalog: Catalog) -> None:
    """No member is added to a line or to the head."""
    create(catalog, "a", "b")
    last = json.loads(segment(catalog).read_bytes().splitlines()[-1].rsplit(b" ", 1)[0])
    kept = json.loads(catalog.connection().execute("SELECT value FROM meta WHERE key = 'journal'").fetchone()[0])

    assert list(last) == ["seq", "prev", "at", "verb", "changes"]
    assert sorted(kept) == ["digest", "offset", "segment", "seq"]


@pytest.mark.parametrize("left", ["cut", "empty", "hole", "tail"])
def test_lines_that_went_with_the_power_are_said_anew(relaxed: Catalog, left: str) -> None:
    """Cut at a line, cut to nothing since the last sync, a hole in the middle, or the last line torn."""
    create(relaxed, "a", "b", durable=True)
    synced = segment(relaxed).stat().st_size
    create(relaxed, "c", "d", "e")
    data = segment(relaxed).read_bytes()
    lines = data.splitlines(keepends=True)
    segment(relaxed).write_bytes(
        {
            "cut": b"".join(lines[:3]),
            "empty": data[:synced],
            "hole": data[:synced] + bytes(len(lines[2])) + b"".join(lines[3:]),
            "tail": data[:-40] + bytes(40),
        }[left]
    )
    again = reopened(relaxed)

    create(again, "f")

    assert ids(again) == journalled(again) == ["a", "b", "c", "d", "e", "f"]
    create(again, "g")
    with again.write("delete-layer", durable=True) as tx:
        layers.delete_layer(tx, "b")
    assert ids(again) == journalled(again) == ["a", "c", "d", "e", "f", "g"]
    again.close()


def test_synced_lines_that_are_missing_are_damage(relaxed: Catalog) -> None:
    """Also in a relaxed store; nothing is written over it."""
    create(relaxed, "a", durable=True)
    create(relaxed, "b")
    os.truncate(segment(relaxed), 40)

    for durable in (False, True):
        with pytest.raises(Corrupt, match="shorter than the catalog says"):
            create(relaxed, "c", durable=durable)


def test_commits_that_went_with_the_power_are_as_if_never_made(relaxed: Catalog) -> None:
    """Their lines are passed over, by the next writer and by a reader of the chain."""
    create(relaxed, "a", durable=True)
    create(relaxed, "b")
    again = goes_back(relaxed, lambda: create(relaxed, "c", "d", "e"))

    assert ids(again) == ["a", "b"]
    create(again, "c", "f")
    assert ids(again) == journalled(again) == ["a", "b", "c", "f"]
    again.close()


def test_a_durable_commit_that_is_missing_is_damage(relaxed: Catalog) -> None:
    """The lines after it say so."""
    create(relaxed, "a")

    def act() -> None:
        create(relaxed, "b", "c")
        create(relaxed, "d", durable=True)
        create(relaxed, "e")

    again = goes_back(relaxed, act)
    with pytest.raises(Corrupt, match="older than its journal"):
        create(again, "f")
    again.close()


def test_saying_anew_that_was_not_committed_is_repeated(relaxed: Catalog) -> None:
    """A kill between its line and its commit leaves a segment that the next writer removes."""
    create(relaxed, "a", durable=True)
    create(relaxed, "b", "c")
    os.truncate(segment(relaxed), segment(relaxed).stat().st_size - 1)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            interrupted(relaxed, durable=True)
        assert segment(relaxed, 2).exists()

    create(relaxed, "d")
    assert ids(relaxed) == journalled(relaxed) == ["a", "b", "c", "d"]


def test_a_full_store_that_was_relaxed_makes_all_of_it_durable(relaxed: Catalog) -> None:
    """By its first commit."""
    create(relaxed, "a", "b")
    relaxed.close()
    full = open_catalog(relaxed.path.parent)

    create(full, "c")

    assert head(full.connection()).is_durable
    assert journalled(full) == ["a", "b", "c"]
    full.close()


def test_making_durable_closes_loose_ends(relaxed: Catalog) -> None:
    """Relaxed lines, and a line that no commit followed; a second time there is nothing to do."""
    create(relaxed, "a", "b")
    relaxed.make_durable("gc")
    assert head(relaxed.connection()).is_durable
    with pytest.raises(InterruptedError):
        interrupted(relaxed, durable=False)
    assert journalled(relaxed) == ["a", "b", "never"]

    relaxed.make_durable("gc")
    size = segment(relaxed).stat().st_size
    relaxed.make_durable("gc")

    assert journalled(relaxed) == ids(relaxed) == ["a", "b"]
    assert segment(relaxed).stat().st_size == size


def test_a_snapshot_of_a_relaxed_store_is_durable(relaxed: Catalog) -> None:
    """The segments before it are removed on the strength of it."""
    create(relaxed, "a", "b")
    with relaxed.write_rows("snapshot") as conn:
        Journal(relaxed.journal_folder).start_segment(conn, "00" * 32, 1)

    assert head(relaxed.connection()).is_durable
    create(relaxed, "c")
    assert journalled(relaxed) == ["a", "b", "c"]


def test_what_a_failed_sync_may_have_dropped_is_written_again(
    relaxed: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second sync alone would succeed and mean nothing."""
    create(relaxed, "a", durable=True)
    synced = segment(relaxed).stat().st_size
    create(relaxed, "b", "c")
    dropped = segment(relaxed).read_bytes()[synced:]
    written: list[bytes] = []
    real = os.pwrite

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output"):
            create(relaxed, "d", durable=True)

    def noted(descriptor: int, data: Any, offset: int) -> int:
        written.append(bytes(data))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    create(relaxed, "e", durable=True)

    assert ids(relaxed) == journalled(relaxed) == ["a", "b", "c", "e"]
    assert dropped in written


def test_a_new_segment_whose_folder_was_not_synced_is_synced_by_the_next(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its name could be lost after a commit was acknowledged."""
    synced: list[Path] = []

    def failing(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(journal, "_sync_folder", failing)
        with pytest.raises(OSError, match="Input/output"):
            create(catalog, "a")
    monkeypatch.setattr(journal, "_sync_folder", synced.append)
    create(catalog, "b", "c")

    assert synced == [catalog.journal_folder]


class Failing:
    """A connection whose next commit fails as when the log cannot be synced."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.commits = 0
        self.moved: list[tuple[int, int, int]] = []

    def execute(self, sql: str, *parameters: Any) -> Any:
        """Run a statement; note what is moved."""
        if sql == "COMMIT":
            self.commits += 1
            if self.commits == 1:
                raise sqlite.OperationalError("disk I/O error")
        if "wal_checkpoint" in sql:
            found = self.real.execute(sql, *parameters).fetchone()
            self.moved.append(found)
            return self.real.execute("SELECT ?, ?, ?", found)
        return self.real.execute(sql, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_after_a_log_could_not_be_synced_a_new_one_is_begun(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else is acknowledged; a reader that keeps the old one makes the writer busy."""
    create(catalog, "a")
    failing = Failing(catalog.connection())
    with monkeypatch.context() as patched:
        patched.setattr(catalog, "connection", lambda: failing)
        with pytest.raises((LadingError, OSError), match="Input/output error"):
            create(catalog, "b")
    failing.real.execute("PRAGMA busy_timeout = 0")
    reader = sqlite.connect(str(catalog.path), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM layer").fetchone()
    other = sqlite.connect(str(catalog.path), isolation_level=None)

    monkeypatch.setattr(catalog, "connection", lambda: failing)
    with pytest.raises(Busy, match="a write failed"):
        create(catalog, "c")
    reader.close()
    other.close()
    create(catalog, "d")
    create(catalog, "e")

    assert ids(catalog) == ["a", "d", "e"]
    assert len(failing.moved) == 2
    assert failing.moved[-1][0] == 0


def test_names_are_as_of_one_state(relaxed: Catalog) -> None:
    """What is said anew has the change that was under way."""
    create(relaxed, "a", durable=True)
    create(relaxed, "b")
    os.truncate(segment(relaxed), segment(relaxed).stat().st_size - 5)
    with relaxed.write("name") as tx:
        names.set_names(tx, "layer", "a", ["n"])

    chain = read_chain(relaxed.journal_folder)
    assert len(chain) == 1
    assert [(change[1], change[2]["names"]) for change in chain[0].body["changes"]] == [("a", ["n"]), ("b", [])]
