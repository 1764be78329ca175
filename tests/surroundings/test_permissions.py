"""Everything a store makes is its owner's alone, whatever the umask is; nothing of a tree can be reached by others."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lading import Store
from lading.errors import InvalidInput

#: A store's whole life, in a process with a umask of its own; it waits with things mounted until it is told to go on.
LIFE = """
import io, os, sys
from pathlib import Path
os.umask(int(sys.argv[1], 8))
from lading import Settings, Store
from tests.flows.test_gc import layer_of
base, driver, strategy = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
settings = Settings(repack_share=0.05, strategy=strategy)

def opened():
    return Store.open(base / "root", run=base / "run", driver=driver, settings=settings)

def pause(word):
    print(word, flush=True)
    sys.stdin.readline()

with opened() as store:
    for seed in range(3):
        store.layers.import_(io.BytesIO(layer_of(seed, files=5, shared=3)), id=f"l{seed}", names=[f"n{seed}"])
    store.layers.create("l0", id="child")
    (store.mount("child") / "written").write_bytes(b"1")
    store.unmount("child")
    store.images.create("child", id="i", big_data={"k": b"v"})
    store.containers.create("i", id="c")
    store.containers.set_data("c", "k", io.BytesIO(b"v"))
    store.containers.write_file("c", "a/b", b"1")
    store.containers.write_file("c", "a/b", b"1", run=True)
    store.images.directory("i"), store.images.run_directory("i"), store.containers.run_directory("c")
    (store.mount("c") / "secret").write_bytes(b"1")
    store.images.mount("i")
    with store.digest_lock("sha256:" + "0" * 64):
        pass
    pause("mounted")
    store.images.unmount("i")
    store.unmount("c")
    store.commit("c", id="j")
    store.clone("c", id="d")
    store.set_metadata("i", "m")
    store.layers.seal("child")
    store.layers.apply("l2", io.BytesIO(layer_of(9, files=2, shared=3)))
    store.graph_driver.create("bare")
with opened() as store:
    if driver == "overlay":
        store.cache.prefetch("i")
        store.cache.prefetch("j", flatten=True)
    store.layers.delete("l1")
    store.gc()
    store.check(content=True)
    store.balance()
    pause("done")
    store.cache.evict(budget=0)
    store.wipe()
    store.gc()
pause("wiped")
"""

#: Below these, modes are those of a tree.
TREES = re.compile(
    r"root/layers/[^/]+/\d+/(upper|work|tree)(/|$)|run/[0-9a-f]+/mnt/.|root/cache/trees/(root-|[^./]+/|[^./]+$)|root/cache/pool/../"
)


def deviations(base: Path) -> list[str]:
    """Everything below a folder that is not a folder of mode 0700 or a file of mode 0600."""
    found = []
    for folder, folders, files in os.walk(base):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            where = path.relative_to(base).as_posix()
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if stat.S_IMODE(status.st_mode) != wanted and not TREES.search(where):
                found.append(f"{stat.S_IMODE(status.st_mode):04o} {where}")
    return found


def as_nobody(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run something as an ordinary user."""
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words], capture_output=True, text=True, check=False
    )  # fmt: skip


def assert_shut(base: Path) -> None:
    """No path below a folder, whoever knows its name, can be listed or read by another user."""
    os.chmod(base, 0o755)
    paths = [str(Path(folder, name)) for folder, _, names in os.walk(base) for name in names]
    paths += [folder for folder, _, _ in os.walk(base) if folder != str(base)]
    tried = as_nobody(["sh", "-c", 'for path; do head -c1 "$path" && echo "read $path"; ls "$path" && echo "listed $path"; done', "sh", *paths])  # fmt: skip
    assert [line for line in tried.stdout.splitlines() if line.startswith(("read", "listed"))] == []
    assert tried.stderr.count("ermission denied") >= len(paths)


@pytest.mark.privileged
@pytest.mark.parametrize("umask", ["000", "077", "777"])
@pytest.mark.parametrize(
    ("driver", "strategy"), [("overlay", ""), ("overlay", "farm"), ("overlay", "composefs"), ("vfs", "")]
)
def test_a_whole_life_leaves_nothing_that_others_can_open(
    tmp_path: Path, umask: str, driver: str, strategy: str
) -> None:
    """Folders 0700, files 0600, by any umask; an ordinary user gets in nowhere, mount points included."""
    words = [sys.executable, "-c", LIFE, umask, str(tmp_path), driver, strategy]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    for word in ("mounted", "done", "wiped"):
        assert process.stdout.readline() == f"{word}\n"
        assert deviations(tmp_path) == []
        if umask == "000":
            assert_shut(tmp_path)
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait() == 0


def test_a_folder_that_was_there_is_shut_when_a_store_is_made_in_it_and_then_left_to_its_owner(tmp_path: Path) -> None:
    """Somebody may open it on purpose, as for a store that others read beside their own."""
    root = tmp_path / "root"
    root.mkdir()
    os.chmod(root, 0o777)
    Store.open(root, run=tmp_path / "run").close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    os.chmod(root, 0o755)
    Store.open(root, run=tmp_path / "run").close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_the_umask_of_a_program_that_uses_the_library_stays(tmp_path: Path) -> None:
    """It belongs to the whole process, its other threads included."""
    before = os.umask(0o123)
    try:
        with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
            store.images.create(store.layers.create().id)
            assert os.umask(0o123) == 0o123
    finally:
        os.umask(before)


@pytest.mark.privileged
def test_a_run_root_of_another_user_is_refused(tmp_path: Path) -> None:
    """Whoever owns it may exchange what is in it."""
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, 65534, 65534)
    with Store.open(tmp_path / "root", run=run) as store:
        layer = store.layers.create()
        with pytest.raises(InvalidInput, match="belongs to somebody else"):
            store.mount(layer.id)
