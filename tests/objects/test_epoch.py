"""Epochs: real processes hold them, die, and are waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lading.objects.epoch import Epochs

HOLD = """
import sys
from pathlib import Path
from lading.objects.epoch import Epochs
with Epochs(Path(sys.argv[1])).shared() as number:
    print(number, flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds the newest epoch."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_an_epoch_is_retired_when_nobody_holds_it_or_an_older_one(tmp_path: Path) -> None:
    """An older holder defers the newer ones, too."""
    epochs = Epochs(tmp_path)
    old, first = hold(tmp_path)
    second = epochs.advance()
    epochs.advance()

    assert (first, second) == (1, 2)
    assert epochs.retired() == 0
    assert epochs.would_retire() == 0
    old.communicate("")
    assert epochs.would_retire() == 3
    assert epochs.retired() == 2
    assert epochs.numbers() == [3]


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    """The kernel lets go of its lock."""
    epochs = Epochs(tmp_path)
    process, _ = hold(tmp_path)
    epochs.advance()
    process.kill()
    process.communicate()

    assert epochs.retired() == 1
    assert epochs.numbers() == [2]


def test_whoever_joins_holds_the_newest(tmp_path: Path) -> None:
    """Never a file that was removed meanwhile."""
    epochs = Epochs(tmp_path)
    for wanted in range(1, 6):
        with epochs.shared() as number:
            assert number == wanted
            epochs.advance()
            assert epochs.retired() == wanted - 1
        epochs.retired()
