"""Faults that once broke something: each is run again at the very call."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.privileged

FINDINGS = {
    "a failing disk in a commit is one line": ("set-metadata", "eio at pwrite64 /root/catalog.db-wal #0"),
    "a failing sync names its file": ("import-layer", "eio at fsync /root/objects/packs #0"),
    "a write area that stays does not undo a deletion": ("delete-mounted", "eio at mkdir /root/objects/staging/* #0"),
    "an unmounted layer that cannot be sealed is unmounted": (
        "unmount-and-seal", "eio at rename /root/objects/staging/*/discarded #0",
    ),
    "a mount that cannot be recorded is no mount": ("mount-farm", "eio at rename /run/*/mounts/*.json #0"),
    "a failing probe is not remembered as a machine without overlay": (
        "first-mount-of-a-boot", "eio at mkdir /root/cache/.probe-* #0",
    ),
    "a failing attribute names where": ("build-farms", "eio at fremovexattr /root/cache/trees/.building-* #3"),
    "a mount record that stays counts for nothing": ("unmount", "eio at unlink /run/*/mounts/*.json #0"),
    "a reserve that a kill left empty is filled": ("reserve", "kill at fallocate /root/reserve/# #0"),
    "a log that cannot be doubted on a dead disk keeps the first error": (
        "set-metadata", "dead at pwrite64 /root/catalog.db-wal #1",
    ),
    "files under a mount come before the record of their diff": (
        "applydiff-mounted", "kill at write /run/*/mnt/box-layer/etc/c #0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_found_once(name: str) -> None:
    """No violation, and the fault did come."""
    operation, fault = FINDINGS[name]
    command = [sys.executable, "-m", "tests.faults.campaign", operation, "--only", fault]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout, strict=False)

    assert (found["hit"], found["violations"]) == (True, [])
