"""A rebuilt catalog says what the lost one said, row by row, whatever went before; and the store goes on with it."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading import Settings, Store
from lading.flows.checking import Finding
from lading.materialize.beneath import remove_tree
from tests.properties.history import EXCLUDED, QUERIES, STEPS, History, compared_columns, diffs, facts, lose

#: Small enough that a collection closes a segment every few changes.
SEGMENT_SIZE = 4000

#: Histories to try; more of them find more.
HISTORIES = int(os.environ.get("LADING_HISTORIES", "10"))


def test_every_column_is_compared_or_left_out_with_a_reason(tmp_path: Path) -> None:
    """A new column must not escape the comparison."""
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store, store._context.catalog.read() as conn:
        shown = {
            f"{table}.{item[0]}" for table, query in QUERIES.items() for item in conn.execute(query).description or ()
        }

    assert shown | set(EXCLUDED) == compared_columns()
    assert shown & set(EXCLUDED) <= {"entry.seq"}


Seen = tuple[dict[str, list[Any]], dict[str, bytes], tuple[Finding, ...]]


def snapshot_of(store: Store) -> Seen:
    """What the catalog says, every diff, and what a check finds: a history may leave records that miss others."""
    found = store.check(modifications=False).findings
    with store._context.catalog.read() as conn:
        return facts(conn), diffs(store), found


def assert_same(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> None:
    """Compare table by table. The audit log is only known back to the journal's last snapshot."""
    count = len(after["event"])
    before["event"] = before["event"][len(before["event"]) - count :]
    for table, rows in before.items():
        assert after[table] == rows, table


def rebuilt(folder: Path, opened: Settings, before: Seen) -> None:
    """Lose the catalog, make it again, and compare."""
    lose(folder / "root")
    report = Store.rebuild(folder / "root", run=folder / "run", driver="vfs", settings=opened)
    assert (report.notes, report.findings) == ((), before[2])
    with Store.open(folder / "root", run=folder / "run", driver="vfs", settings=opened) as store:
        after = snapshot_of(store)
        assert_same(before[0], after[0])
        assert after[1] == before[1]
        assert store.check(content=True, modifications=False).findings == before[2]


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, len(STEPS) - 1), min_size=5, max_size=45), st.lists(st.integers(0, len(STEPS) - 1), max_size=12),
    st.integers(0, 1 << 32), st.booleans(),
)  # fmt: skip
@pytest.mark.slow
def test_any_history_is_brought_back(first: list[int], second: list[int], seed: int, transient: bool) -> None:
    """Twice, with more of the history in between, and garbage still becomes space."""
    folder = Path(tempfile.mkdtemp(prefix="lading-rebuild-"))
    chosen = Settings(repack_share=0.1, transient=transient, pack_size=30_000)
    patch = pytest.MonkeyPatch()
    patch.setattr("lading.catalog.journal.SEGMENT_SIZE", SEGMENT_SIZE)
    try:
        drawn = random.Random(seed)
        for prefix, steps in (("a", first), ("b", second)):
            with Store.open(folder / "root", run=folder / "run", driver="vfs", settings=chosen) as store:
                history = History(store, drawn, prefix)
                store.layers.create(id=f"{prefix}0")  # packs without any line of the journal are refused
                for number in steps:
                    history.step(number)
                before = snapshot_of(store)
            rebuilt(folder, chosen, before)
        with Store.open(folder / "root", run=folder / "run", driver="vfs", settings=chosen) as store:
            kept = diffs(store)
            store.gc()
            assert diffs(store) == kept
            assert store.check(content=True, modifications=False).findings == before[2]
            store.wipe()
            store.gc()
            store.gc()
            balance = store.balance().classes
            assert (balance["packs: dead"], balance["packs: unrecorded"]) == (0, 0)
            assert balance["packs: live"] == _snapshot_size(store)
    finally:
        patch.undo()
        remove_tree(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _snapshot_size(store: Store) -> int:
    """Stored bytes of the object that the journal rests on."""
    with store._context.catalog.read() as conn:
        row = conn.execute(
            "SELECT o.stored_size FROM meta m JOIN object o ON lower(hex(o.digest)) = m.value WHERE m.key = 'snapshot'"
        ).fetchone()
    return int(row[0]) if row else 0
