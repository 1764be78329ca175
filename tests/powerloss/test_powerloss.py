"""Losing power: every operation, at the barriers of its own writes, on real filesystems.

The fast selection tries some of the cases. ``make powerloss`` tries all of them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading.materialize.beneath import remove_tree
from tests.powerloss.crashes import crash_everywhere, play, small
from tests.powerloss.paths import PATHS
from tests.powerloss.recording import apply, copy_sparse, mounted

pytestmark = pytest.mark.privileged

IS_DEEP = os.environ.get("LADING_POWERLOSS") == "deep"
SEED = int(os.environ.get("LADING_POWERLOSS_SEED", "1"))
REPORT = os.environ.get("LADING_POWERLOSS_REPORT", "")

SYNCS = ("full", "relaxed")
CASES = [(path, "ext4", sync) for path in PATHS for sync in SYNCS]
CASES += (
    [(path, filesystem, sync) for path in PATHS for filesystem in ("xfs", "btrfs") for sync in SYNCS]
    if IS_DEEP
    else [("ingest", "xfs", "full"), ("deletion", "btrfs", "relaxed")]
)

#: Losses of power for each case.
POINTS = int(os.environ.get("LADING_POWERLOSS_POINTS", "0"))


def points(filesystem: str) -> int:
    """The fast selection looks at few; thorough runs do most on the filesystem that most have."""
    if POINTS:
        return POINTS
    return (250 if filesystem == "ext4" else 80) if IS_DEEP else 6


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where there is one: disks are copied there for each loss of power."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="lading-power-", dir=shared if os.access(shared, os.W_OK) else None))
    yield folder
    remove_tree(folder)


@pytest.mark.parametrize(("path", "filesystem", "sync"), CASES)
def test_after_a_loss_of_power_all_that_was_acknowledged_is_there(
    path: str, filesystem: str, sync: str, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is half; the next command works, and a collection gives back the space."""
    with small(monkeypatch):
        played = play(path, memory_path, filesystem, sync)
        outcome = crash_everywhere(played, memory_path, points=points(filesystem), seed=SEED)

    if REPORT:
        with Path(REPORT).open("a") as report:
            figures = {"path": path, "filesystem": filesystem, "sync": sync, **vars(outcome)}
            report.write(json.dumps(figures) + "\n")
    assert outcome.violations == []
    assert outcome.points >= 6
    assert sync == "relaxed" or outcome.lost == 0


@pytest.mark.parametrize(
    ("call", "path", "words"),
    [("fsync", "ingest", "pack|damaged|dangling|missing"), ("fdatasync", "changes", "journal")],
)
def test_a_store_that_does_not_sync_is_found_out(
    call: str, path: str, words: str, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds nothing must be able to find something."""
    with small(monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, lambda descriptor: None)
            played = play(path, memory_path, "ext4", "full")
        outcome = crash_everywhere(played, memory_path, points=12, seed=3)

    assert re.search(words, " ".join(outcome.violations))


def test_journals_are_closed_by_snapshots_on_the_way(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that losses of power come in the middle of that, too."""
    with small(monkeypatch):
        played = play("repack", memory_path, "ext4", "full")
    disk = memory_path / "end.img"
    copy_sparse(played.recording.base, disk)
    with disk.open("r+b", buffering=0) as image:
        for interval in played.recording.intervals:
            apply(image.fileno(), interval.writes)
    (memory_path / "end").mkdir()
    with mounted(disk, memory_path / "end", "ext4") as root:
        assert "00000001.log" not in os.listdir(root / "store/journal")
