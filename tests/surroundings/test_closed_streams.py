"""Standard streams that are closed when a command begins: no traceback, no harm, and what cannot be told is a failure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from lading import Store
from tests.tarmake import END, file

LADING = [sys.executable, "-m", "lading.cli"]

#: What may be closed.
CLOSED = [closed for count in (1, 2, 3) for closed in combinations(range(3), count)]


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    """A store with a layer, by its options."""
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        store.layers.create(id="l")
    return ["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")]


def run(closed: Sequence[int], words: list[str]) -> tuple[int, bytes, bytes]:
    """Run a program with these descriptors closed.

    Returns:
        Exit status, and what came on those of standard output and standard error that are open.
    """
    closing = " ".join(f"{descriptor}>&-" for descriptor in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("closed", CLOSED)
def test_commands_with_closed_streams_do_their_work(tmp_path: Path, roots: list[str], closed: tuple[int, ...]) -> None:
    """What has nothing to say succeeds; what has something to say where nothing is, fails and is done all the same."""
    tar = tmp_path / "new.tar"
    tar.write_bytes(file(b"f", b"content") + END)
    no_output = 1 if 1 in closed else 0

    assert run(closed, [*LADING, *roots, "applydiff", "-f", str(tar), "l"]) == (0, b"", b"")
    assert run(closed, [*LADING, *roots, "create-layer", "--id", "made"])[0] == no_output
    status, stdout, stderr = run(closed, [*LADING, *roots, "layers"])
    assert status == no_output
    assert sorted(stdout.split()) == ([] if no_output else [b"l", b"made"])
    assert stderr == (b"bad file descriptor\n" if no_output and 2 not in closed else b"")
    assert run(closed, [*LADING, *roots, "delete-layer", "made"]) == (0, b"", b"")

    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        assert [layer.id for layer in store.layers.all()] == ["l"]
        assert store.check(content=True).findings == ()


def test_a_diff_from_a_closed_standard_input_is_refused(tmp_path: Path, roots: list[str]) -> None:
    """It is not an empty one."""
    assert run([0], [*LADING, *roots, "applydiff", "l"]) == (1, b"", b"bad file descriptor\n")


#: Tells, in a file, what stands behind the first descriptors while a command is at work.
WHERE = """
import os, sys
from lading.cli.entry import main
from lading.store import Store
def gc(store, dry_run=False):
    open(sys.argv[1], "w").write(" ".join(os.readlink(f"/proc/self/fd/{number}") for number in range(3)))
    sys.exit(0)
Store.gc = gc
main(sys.argv[2:], "lading")
"""


def test_no_file_of_the_store_takes_the_place_of_a_closed_stream(tmp_path: Path, roots: list[str]) -> None:
    """Whoever writes to a descriptor without looking must not hit the catalog."""
    assert run([0, 1, 2], [sys.executable, "-c", WHERE, str(tmp_path / "where"), *roots, "gc"]) == (0, b"", b"")
    assert (tmp_path / "where").read_text().split() == ["/dev/null"] * 3
