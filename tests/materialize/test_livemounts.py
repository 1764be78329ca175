"""Who sees a mount: what can be told from other processes' mount tables, and what cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lading.materialize import livemounts
from lading.materialize.livemounts import LiveMounts
from lading.materialize.mounts import MountInfo, mountinfo

#: Inode of a mount namespace that no process here is in.
NAMESPACE = 1


def looking(*views: tuple[int | None, str], settled: bool = True) -> LiveMounts:
    """As if this process were several others: their namespaces, None where it may not be known, and roots."""
    live = LiveMounts()
    live.__dict__["_views"] = [livemounts._View(os.getpid(), where, root) for where, root in views], settled
    return live


def is_proc(mount: MountInfo) -> bool:
    return mount.path == Path("/proc")


def is_missing(mount: MountInfo) -> bool:
    return mount.path == Path("/missing")


def test_the_mount_tables_of_others_say_who_sees_a_mount() -> None:
    """Also where it may not be known which namespace they are in."""
    name = f"{os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    for where in (NAMESPACE, NAMESPACE + 1, None):
        assert looking((where, "/")).viewer(NAMESPACE, 0, is_proc) == name
        assert looking((where, "/")).viewer(NAMESPACE, 0, is_missing) == ""
    assert looking().viewer(NAMESPACE, 0, is_proc) == ""


def test_who_sees_a_part_of_the_namespace_tells_nothing_of_the_rest() -> None:
    """Unless another sees the whole of it."""
    assert looking((NAMESPACE, "/jail")).viewer(NAMESPACE, 0, is_missing) is None
    assert looking((NAMESPACE, "/jail"), (NAMESPACE, "/")).viewer(NAMESPACE, 0, is_missing) == ""
    assert looking((NAMESPACE + 1, "/jail")).viewer(NAMESPACE, 0, is_missing) == ""


def test_mount_tables_that_may_not_be_read_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /proc hides what processes do."""

    def hidden(process: int | str = "self") -> list[MountInfo]:
        if process == "self":
            return mountinfo()
        raise PermissionError

    monkeypatch.setattr(livemounts, "mountinfo", hidden)
    assert looking((None, "")).viewer(NAMESPACE, 0, is_proc) is None


def test_processes_out_of_sight_may_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a PID namespace that is not ours, unless ours is the machine's own."""
    mine = os.stat("/proc/self/ns/pid").st_ino
    monkeypatch.setattr(livemounts, "_FIRST_PID_NAMESPACE", 0)
    assert looking().viewer(NAMESPACE, mine, is_proc) == ""
    assert looking().viewer(NAMESPACE, mine + 1, is_proc) is None
    monkeypatch.setattr(livemounts, "_FIRST_PID_NAMESPACE", mine)
    assert looking().viewer(NAMESPACE, mine + 1, is_proc) == ""


def test_a_file_may_keep_a_namespace() -> None:
    """Without any process in it."""
    live = looking()
    live.__dict__["here"] = [MountInfo(Path("/kept"), "nsfs", "nsfs", "rw", f"mnt:[{NAMESPACE}]")]
    assert live.viewer(NAMESPACE, 0, is_proc) is None
    assert live.viewer(NAMESPACE + 1, 0, is_proc) == ""


def test_processes_that_end_meanwhile_are_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have started others; not for ever, since somewhere some process always ends."""
    looks: list[int] = []

    def table(process: int | str = "self") -> list[MountInfo]:
        if process == "self":
            return mountinfo()
        looks.append(1)
        raise ProcessLookupError

    monkeypatch.setattr(livemounts, "mountinfo", table)
    assert looking((NAMESPACE, "/")).viewer(NAMESPACE, 0, is_proc) == ""
    assert looks


def test_a_process_that_is_only_waited_for_hides_nothing() -> None:
    """It has no namespaces any more, and never will: one look is enough."""
    ended = subprocess.Popen(["true"])
    while Path(f"/proc/{ended.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
        time.sleep(0.01)
    try:
        assert livemounts._is_dead(ended.pid)
        assert not livemounts._is_dead(os.getpid())
        with pytest.raises(OSError, match="No such file"):
            os.stat(f"/proc/{ended.pid}/ns/mnt")
    finally:
        ended.wait()
    assert not livemounts._is_dead(ended.pid)


#: Mounts at a path that holds every byte which looks like a line's end, and reads the table in each way.
ODD = r"""
import os, subprocess, sys
from pathlib import Path
from lading.catalog.network import _mounted_type
from lading.materialize.mounts import mountinfo
folder = os.fsencode(sys.argv[1]) + b"/a\rb\x0bc\x0cd\x1ce\xc2\x85f\xff"
os.mkdir(folder)
subprocess.run(["mount", "-t", "tmpfs", "odd", folder], check=True)
assert [os.fsencode(mount.path) for mount in mountinfo() if mount.source == "odd"] == [folder]
assert _mounted_type(Path(os.fsdecode(folder))) == "tmpfs"
assert _mounted_type(Path("/proc")) == "proc"
"""


@pytest.mark.privileged
def test_mount_points_of_any_name_are_read(tmp_path: Path) -> None:
    """Others may make them, in namespaces of their own."""
    subprocess.run(["unshare", "-m", sys.executable, "-c", ODD, tmp_path], check=True)
