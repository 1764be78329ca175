"""Real processes that ingest, read, delete and collect at once, as fast as they can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.flows.test_layers import taken_out
from tests.interleave.test_schedules import TARS
from tests.interleave.worker import opened

#: Ingests, over all processes.
INGESTS = int(os.environ.get("LADING_INTERLEAVINGS", "150"))
WRITERS, COLLECTORS = 3, 2


def started(*words: object) -> subprocess.Popen[str]:
    """A worker process."""
    command = [sys.executable, "-m", "tests.interleave.worker", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> Any:
    """What a worker printed."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(output)


def test_no_process_loses_an_object(memory: Path) -> None:
    """Every layer that was acknowledged and not deleted is there, and in the end all space comes back."""
    root, run, stop = memory / "root", memory / "run", memory / "stop"
    opened(str(root), str(run)).close()
    collectors = [started("collect", root, run, stop) for _ in range(COLLECTORS)]
    writers = [started("ingest", root, run, seed, INGESTS // WRITERS) for seed in range(WRITERS)]
    try:
        kept = [pair for writer in writers for pair in answer(writer)]
    finally:
        stop.touch()
    collections = sum(answer(collector) for collector in collectors)

    assert collections >= COLLECTORS
    with opened(str(root), str(run)) as store:
        assert sorted(layer.id for layer in store.layers.all()) == sorted(layer for layer, _ in kept)
        for layer, number in kept:
            assert taken_out(store, layer) == TARS[number]
        assert store.check(content=True, modifications=False).findings == ()
        for layer, _ in kept:
            store.layers.delete(layer)
        store.gc()
        counts = store.query(
            "SELECT (SELECT count(*) FROM content), (SELECT count(*) FROM object), (SELECT count(*) FROM pack), "
            "(SELECT count(*) FROM meta WHERE key = 'snapshot')"
        )
        ((contents, objects, packs, snapshots),) = counts[1]  # what a long journal rests on is kept
        assert (contents, objects, packs) == (0, snapshots, snapshots)
        assert store.balance().classes["packs: unrecorded"] == 0
    print(f"{INGESTS} ingests beside {collections} collections")
