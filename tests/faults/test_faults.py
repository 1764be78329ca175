"""A selection of the faults; ``make faults`` runs many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.operations import OPERATIONS

pytestmark = pytest.mark.privileged

#: Operations by tens: each process loads everything once, and every worker of the test run gets some.
GROUPS = [OPERATIONS[start::5] for start in range(5)]


def run(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """Run attempts in a process that nothing else runs in, and give what was found."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.faults.campaign", "--jobs", "1", "--report", str(report), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    if "Unavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert report.exists(), done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(report.read_text())["operations"]
    return found


@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_nothing_is_lost_torn_or_left_behind_by_a_fault(tmp_path: Path, number: int) -> None:
    """For each operation, some calls that are drawn by the seed (``LADING_FAULTS_SEED``)."""
    seed = os.environ.get("LADING_FAULTS_SEED", "0")
    tallies = run(tmp_path, "--fast", "--seed", seed, *(operation.name for operation in GROUPS[number]))

    assert [tally["violations"] for tally in tallies] == [[] for _ in GROUPS[number]]
    assert all(tally["runs"].get("kill", 0) + tally["missed"] >= 1 for tally in tallies)
