"""Crews of processes, and what every test here ends with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lading import Store
from tests.concurrency.processes import Crew


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """Workers on an empty store; at the end nothing is mounted, damaged, or left that a collection does not take."""
    root, run = tmp_path / "root", tmp_path / "run"
    Store.open(root, run=run).close()
    hired = Crew(root, run)
    yield hired
    hired.close()
    with Store.open(root, run=run) as store:
        for mount in store.mounts():
            store.unmount(mount.layer, force=True)
        store.gc()
        store.gc()
        found = [finding.message for finding in store.check(content=True).findings]
        assert [words for words in found if not words.endswith("layer content modified")] == []  # tests do modify some
        assert list((root / "objects/staging").iterdir()) == []
        names = {row[0] for row in store.query("SELECT name FROM pack")[1]}
        assert {path.stem for path in (root / "objects/packs").rglob("*.pack")} == names
        assert list(store.query("SELECT count(*) FROM content WHERE state <> 'ready'")[1]) == [(0,)]
        assert list(store.query("SELECT count(*) FROM object WHERE condemned IS NOT NULL")[1]) == [(0,)]
