"""The harness itself: it would find what it looks for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.campaign import Tally, chosen, parse_fault, table
from tests.faults.watch import Fault, watched

pytestmark = pytest.mark.privileged

WRITE = Fault("kill", "write /file")


def writing(path: Path) -> Callable[[], int]:
    """Writes eight bytes to a new file and syncs it, twice if the first sync fails."""

    def act() -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            done = os.write(descriptor, b"12345678")
            os.fsync(descriptor)
        except OSError as error:
            os.write(2, os.strerror(error.errno or 0).encode())
            os.fsync(descriptor)
            return 1
        return 0 if done == 8 else 2

    return act


def test_calls_are_counted_in_order_and_undisturbed(tmp_path: Path) -> None:
    """What only reads, and what is printed, does not count."""
    outcome = watched(writing(tmp_path / "file"), str(tmp_path), None)

    assert (outcome.status, outcome.trace) == (0, ["openat /file", "write /file", "fsync /file"])
    assert (tmp_path / "file").read_bytes() == b"12345678"


@pytest.mark.parametrize(
    ("mode", "status", "left"),
    [("kill", -9, b""), ("torn", -9, b"1234"), ("short", 2, b"1234"), ("eio", 1, b""), ("enospc", 1, b"")],
)
def test_each_fault_does_what_it_says(tmp_path: Path, mode: str, status: int, left: bytes) -> None:
    """At a write: before it, after half of it, instead of it."""
    outcome = watched(writing(tmp_path / "file"), str(tmp_path), Fault(mode, "write /file"))

    assert (outcome.hit, outcome.status) == (True, status)
    assert (tmp_path / "file").read_bytes() == left
    words = {"eio": errno.EIO, "enospc": errno.ENOSPC}
    assert outcome.err == (os.strerror(words[mode]) if mode in words else "")


def test_a_disk_that_is_gone_stays_gone(tmp_path: Path) -> None:
    """Every later call fails, too."""
    outcome = watched(writing(tmp_path / "file"), str(tmp_path), Fault("dead", "write /file"))

    assert "Input/output error" in outcome.err
    assert "Traceback" in outcome.err  # the sync in the handler failed as well


def test_a_sync_that_is_believed_after_it_failed_is_noticed(tmp_path: Path) -> None:
    """The kernel may have dropped what the first one was to write."""
    outcome = watched(writing(tmp_path / "file"), str(tmp_path), Fault("eio", "fsync /file"))

    assert outcome.believed == ["fsync /file"]


def test_the_choice_has_first_last_and_every_label_and_repeats_itself() -> None:
    """As many as asked for, in the order of the trace."""
    trace = ["open a", *["write a"] * 500, "rename b", *["write c"] * 500, "unlink d"]
    found = chosen(trace, "kill", 20, seed=3)

    assert (found[0], found[-1]) == (Fault("kill", "open a"), Fault("kill", "unlink d"))
    assert {fault.label for fault in found} == set(trace)
    assert len(found) == 20
    assert found == chosen(trace, "kill", 20, seed=3) != chosen(trace, "kill", 20, seed=4)
    assert {fault.label for fault in chosen(trace, "torn", 20, seed=3)} == {"write a", "write c"}
    assert len(chosen(trace[:4], "eio", 20, seed=3)) == 4


def test_a_fault_is_read_as_it_is_printed() -> None:
    """So that a finding can be run again."""
    fault = Fault("torn", "pwrite64 /root/journal/#.log", 12)
    assert parse_fault(str(fault)) == fault


def test_the_table_sums_up() -> None:
    """A line for each operation, and one for all."""
    tallies = [Tally("a", 10, {"kill": 3}), Tally("b", 5, {"kill": 2, "eio": 1}, violations=[{}])]
    assert table(tallies).splitlines()[-1].split() == ["all", "15", "5", "0", "1", "0", "0", "0", "0", "1", "0.0"]
