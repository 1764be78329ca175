"""Thirty-two processes at once on one store, while images come in.

``LADING_CROWD_SECONDS`` sets for how long; ``LADING_CROWD_REPORT`` names a file for the figures.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lading import Store
from tests.contract.crowd import SHARED
from tests.tarmake import END, file

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

PROCESSES = 32
SECONDS = float(os.environ.get("LADING_CROWD_SECONDS", "8"))


def imports(store: Store, stop: threading.Event) -> int:
    """Import layers of some megabytes until told to stop."""
    count = 0
    while not stop.is_set():
        data = b"".join(file(b"f%d" % number, random.randbytes(100_000)) for number in range(50)) + END
        store.layers.import_(io.BytesIO(data), id=f"big-{count}")
        count += 1
    return count


def test_many_processes_lose_nothing(tmp_path: Path) -> None:
    """No lost name, no record that is there and not found, no busy error; and the store is whole afterwards."""
    root, run = tmp_path / "root", tmp_path / "run"
    with Store.open(root, run=run) as store:
        store.images.create(id=SHARED)
        stop = threading.Event()
        importing = threading.Thread(target=imports, args=(store, stop))
        importing.start()
        started = time.monotonic()
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.contract.crowd", str(root), str(run), str(SECONDS), str(number)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
            )
            for number in range(PROCESSES)
        ]  # fmt: skip
        answers = [worker.communicate() for worker in workers]
        took = time.monotonic() - started
        stop.set()
        importing.join()
        assert [stderr.decode() for _, stderr in answers if stderr] == []
        reports = [json.loads(stdout) for stdout, _ in answers]
        assert [words for report in reports for words in report["wrong"]] == []
        assert all(report["done"]["turns"] > 0 for report in reports)
        given = {name for report in reports for name in report["names"]}
        assert given <= set(store.names(SHARED))
        assert [layer.id for layer in store.layers.all() if layer.id.startswith("p")] == []
        assert store.mounts() == []
        store.gc()
        assert store.check(content=True).findings == ()
    waits = sorted(wait for report in reports for wait in report["waits"])
    target = os.environ.get("LADING_CROWD_REPORT")
    if target:
        turns = sum(report["done"]["turns"] for report in reports)
        lines = {
            "seconds": round(took, 1), "processes": PROCESSES, "turns": turns, "listings": len(waits),
            "listing p50 ms": round(waits[len(waits) // 2] * 1000, 2), "listing p99 ms": round(waits[len(waits) * 99 // 100] * 1000, 2),
            "listing max ms": round(waits[-1] * 1000, 2),
        }  # fmt: skip
        Path(target).write_text(json.dumps(lines) + "\n")
