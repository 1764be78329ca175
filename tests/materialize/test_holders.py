"""Who works in a folder: named, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lading.materialize.holders import holders

#: Takes a mount table of its own, with an empty filesystem on the folder if asked, and stays in the folder.
_APART = """
import sys
from pathlib import Path
from tests.faults import space
space.leave_namespace()
if sys.argv[2] == "hide":
    space.mount_tmpfs(Path(sys.argv[1]))
import os
os.chdir(sys.argv[1])
print("in", flush=True)
sys.stdin.read()
"""


@contextmanager
def _apart(folder: Path, how: str) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", _APART, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "in\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_an_open_file_and_a_current_folder_make_a_holder(tmp_path: Path) -> None:
    """A folder beside it whose name begins alike does not."""
    folder, beside = tmp_path / "a", tmp_path / "ab"
    folder.mkdir()
    beside.mkdir()
    here = f"{os.getpid()} ("
    with (beside / "file").open("w"):
        assert holders(folder) == []
    with (folder / "file").open("w"):
        assert [name for name in holders(folder) if name.startswith(here)]
    sleeper = subprocess.Popen(["sleep", "60"], cwd=folder)
    try:
        assert holders(folder) == [f"{sleeper.pid} (sleep)"]
    finally:
        sleeper.kill()
        sleeper.wait()
    assert holders(folder) == []


@pytest.mark.privileged
def test_a_path_of_the_same_name_in_a_container_is_no_holder(tmp_path: Path) -> None:
    """It is another folder; where the container sees this one, it counts."""
    with _apart(tmp_path, "hide"):
        assert holders(tmp_path) == []
    with _apart(tmp_path, "see") as pid:
        assert [name.split(" ")[0] for name in holders(tmp_path)] == [str(pid)]
