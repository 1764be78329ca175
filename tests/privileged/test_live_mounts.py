"""What a live mount uses stays: mounts of other namespaces, stores by other paths, mounts without records. Needs root."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.errors import InUse
from lading.flows import lowers
from lading.materialize import inuse, livemounts, mounts
from tests.tarmake import END, file

pytestmark = pytest.mark.privileged

STRATEGIES = ["erofs", "composefs", "farm"]

BASE = file(b"base", b"b" * 9000) + END

#: Opens the store and runs some lines on it.
PROGRAM = """
import os, sys
from pathlib import Path
from lading import Settings, Store
from lading.materialize.mounttable import MountTable
root, run, strategy, lines = sys.argv[1:]
with Store.open(root, run=run, settings=Settings(strategy=strategy)) as store:
    exec(lines)
"""

#: The same, in a mount namespace of its own that stays.
STAYING = PROGRAM.replace("import os, sys", "import os, sys, time") + "print(flush=True)\ntime.sleep(300)\n"

#: Lines that leave a mount without a record.
KILLED = "MountTable.put = lambda *args, **kwargs: os.kill(os.getpid(), 9)\nstore.mount('c')"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A process in a mount namespace of its own."""

    pid: int
    store: Store
    strategy: str

    def run(self, lines: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run lines on the store in there."""
        words = [sys.executable, "-c", PROGRAM, *places(self.store), self.strategy, lines]
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", *words], check=check, capture_output=True, text=True
        )


def places(store: Store) -> list[str]:
    return [str(store.root), str(store.run.parent)]


@contextmanager
def namespace(store: Store, lines: str = "pass", strategy: str = "") -> Iterator[Namespace]:
    """Run lines on the store in a namespace of its own, which ends with the block."""
    words = ["unshare", "-m", sys.executable, "-c", STAYING, *places(store), strategy, lines]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()  # it has run them
            yield Namespace(process.pid, store, strategy)
        finally:
            process.kill()


@contextmanager
def opened(tmp_path: Path, strategy: str = "") -> Iterator[Store]:
    """A store with a layer q, and p with its child c; whatever it has mounted in our namespace goes."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(strategy=strategy)) as store:
        base = store.layers.import_(io.BytesIO(BASE)).id
        for layer, parent in (("q", base), ("p", base), ("c", "p")):
            store.layers.create(parent, id=layer)
        try:
            yield store
        finally:
            for mount in reversed(mounts.mountinfo()):
                if mount.path.is_relative_to(tmp_path):
                    mounts.detach(mount.path)


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path) as store:
        yield store


def area(store: Store, layer: str, number: int = 0) -> Path:
    return store.root / "layers" / layer / str(number)


def mounted_with_child(store: Store) -> tuple[Path, Path]:
    """Mount p, write to it, and mount c on top of what was written."""
    parent = store.mount("p")
    (parent / "written").write_text("w")
    return parent, store.mount("c")


def lose_records(store: Store) -> None:
    for record in store.run.glob("mounts/*.json"):
        record.unlink()


def no_debris(store: Store) -> None:
    """A collection finds everything that nothing uses any more."""
    store.gc()
    assert store.gc(dry_run=True).freed_bytes == 0
    assert not area(store, "p").exists()


def test_a_layer_mounted_in_another_namespace_is_left_alone(prepared: Store) -> None:
    """One line names layer and process; when the process has ended, the mount counts for nothing."""
    store = prepared
    with namespace(store, "(store.mount('q') / 'f').write_text('1')") as inside:
        refused = rf"^layer q is mounted in another mount namespace, in use by {inside.pid} \(python"
        for act in (store.layers.seal, store.layers.delete, store.mount, store.unmount):
            with pytest.raises(InUse, match=refused):
                act("q")
        with pytest.raises(InUse, match=refused):
            store.unmount("q", force=True)
        with pytest.raises(InUse, match=refused):
            store.layers.apply("q", io.BytesIO(BASE))
        assert store.mounted("q") == 1
        inside.run("(store.mount('q') / 'g').write_text('2'); store.unmount('q')")
        assert store.mounted("q") == 1
        assert {item.name for item in (area(store, "q") / "upper").iterdir()} == {"f", "g"}

    assert store.mounted("q") == 0
    assert store.layers.seal("q").write_kind == ""
    assert (store.mount("q") / "g").read_text() == "2"
    store.unmount("q")
    store.layers.delete("q")


def test_a_layer_is_given_back_where_it_was_mounted(prepared: Store) -> None:
    """While the namespace lives; afterwards it is like any other layer here."""
    with namespace(prepared, "store.mount('q')") as inside:
        inside.run("assert store.unmount('q')")
        assert prepared.mounted("q") == 0
        prepared.mount("q")
        assert prepared.unmount("q")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_child_in_another_namespace_is_stacked_from_stays(tmp_path: Path, strategy: str) -> None:
    """The parent's write area, and the views; they go when the namespace has gone."""
    with opened(tmp_path, strategy) as store:
        (store.mount("p") / "written").write_text("w")
        with namespace(store, "store.mount('c')", strategy) as inside:
            assert store.unmount("p")
            store.gc()
            store.cache.evict(budget=0)
            assert area(store, "p").is_dir()
            assert [view.mounted for view in store.cache.all() if view.layers] == [True]
            inside.run("drop = Path('/proc/sys/vm/drop_caches').write_text('3')")
            inside.run(
                "path = store.mount('c'); assert (path / 'written').read_text() == 'w'\n"
                "assert (path / 'base').read_bytes() == b'b' * 9000; (path / 'new').write_text('n')"
            )
        no_debris(store)
        store.cache.evict(budget=0)
        assert not any(view.layers for view in store.cache.all())
        assert (store.mount("c") / "new").read_text() == "n"


def test_a_copy_of_a_namespace_counts(prepared: Store) -> None:
    """A mount lives on in a namespace made from the one where it was made."""
    lines = "import subprocess; store.mount('q'); child = subprocess.Popen(['unshare', '-m', 'sleep', '300'])"
    with namespace(prepared, f"{lines}\nPath({str(prepared.run)!r}, 'pid').write_text(str(child.pid))") as inside:
        child = int((prepared.run / "pid").read_text())
        while os.readlink(f"/proc/{child}/ns/mnt") == os.readlink(f"/proc/{inside.pid}/ns/mnt"):
            time.sleep(0.01)
    try:
        with pytest.raises(InUse, match=rf"in use by {child} \(sleep\)"):
            prepared.layers.delete("q")
    finally:
        os.kill(child, 9)
    while Path(f"/proc/{child}/ns/mnt").exists():
        time.sleep(0.01)
    prepared.layers.delete("q")


def test_what_is_unmounted_in_a_copy_of_the_namespace_stays_where_it_was_mounted(prepared: Store) -> None:
    """Said in one line; nothing of it is removed, and the record remains."""
    path = prepared.mount("q")
    with namespace(prepared) as inside:
        for verb in ("unmount", "layers.delete"):
            done = inside.run(f"store.{verb}('q')", check=False)
            assert "layer q is mounted in another mount namespace, in use by" in done.stderr
    (path / "f").write_text("1")
    assert prepared.mounted("q") == 1
    assert prepared.unmount("q")
    assert (area(prepared, "q") / "upper/f").read_text() == "1"


def test_records_of_a_namespace_that_nobody_can_look_at_refuse_nothing(prepared: Store) -> None:
    """Whoever is there sees only a part of it: what the mount uses stays, commands go on."""
    lines = f"(store.mount('q') / 'f').write_text('1'); os.chroot({str(prepared.root)!r}); os.chdir('/')"
    with namespace(prepared, lines):
        assert prepared.mounted("q") == 0
        assert prepared.unmount("q")
        assert prepared.layers.seal("q").write_kind == ""
        prepared.gc()
        prepared.cache.evict(budget=0)
        assert (area(prepared, "q") / "upper/f").exists()
        assert [view.mounted for view in prepared.cache.all() if view.layers] == [True]
        prepared.layers.delete("q")
        assert (area(prepared, "q") / "upper/f").exists()
    prepared.gc()
    assert not area(prepared, "q").exists()


def test_records_of_earlier_versions_are_read(prepared: Store) -> None:
    """They lack what tells copies of a mount from other mounts: its source does."""

    def age() -> None:
        for path in prepared.run.glob("mounts/*.json"):
            values = json.loads(path.read_text())
            for key in ("complete", "device", "pid_namespace"):
                del values[key]
            path.write_text(json.dumps(values))

    mounted_with_child(prepared)
    with namespace(prepared, "store.mount('q')"):
        age()
        with pytest.raises(InUse, match="layer q is mounted in another"):
            prepared.layers.delete("q")
        assert not inuse.used(
            prepared._context.mount_table, prepared.root / "layers", prepared.root / "cache/trees"
        ).all
    assert prepared.mounted("q") == 0
    assert prepared.unmount("p")
    assert area(prepared, "p").is_dir()
    assert prepared.unmount("c")
    no_debris(prepared)


def test_own_mounts_need_no_look_at_other_processes(prepared: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each question is answered from the mount table as it was read once."""

    def scan(self: livemounts.LiveMounts) -> object:
        raise AssertionError

    def counted(process: int | str = "self") -> list[mounts.MountInfo]:
        reads.append(process)
        return mounts.mountinfo(process)

    reads: list[int | str] = []
    scanning = cached_property(scan)
    scanning.__set_name__(livemounts.LiveMounts, "_views")
    monkeypatch.setattr(livemounts.LiveMounts, "_views", scanning)
    monkeypatch.setattr(livemounts, "mountinfo", counted)
    for layer in ("q", "p", "c"):
        prepared.mount(layer)
    reads.clear()
    assert len(prepared.mounts()) == 3
    assert len(reads) == 1
    assert prepared.unmount("p")
    assert prepared.unmount("c")
    prepared.gc()


@pytest.mark.parametrize("way", ["symlink", "bind"])
@pytest.mark.parametrize("by_record", [True, False], ids=["recorded", "records lost"])
def test_a_store_may_be_reached_by_another_path(prepared: Store, tmp_path: Path, way: str, *, by_record: bool) -> None:
    """What is mounted by one path is seen by the other."""
    _, child = mounted_with_child(prepared)
    other = tmp_path / "other"
    if way == "symlink":
        other.symlink_to("root")
    else:
        other.mkdir()
        subprocess.run(["mount", "--bind", prepared.root, other], check=True)
    if not by_record:
        lose_records(prepared)
    words = [sys.executable, "-m", "lading.cli", "-g", str(other), "-R", str(prepared.run.parent)]
    subprocess.run([*words, "unmount", "p"], check=True)
    subprocess.run([*words, "gc"], check=True)
    subprocess.run([*words, "cache", "--budget", "0", "evict"], check=True)

    assert area(prepared, "p").is_dir()
    assert (child / "written").read_text() == "w"
    assert (child / "base").read_bytes() == b"b" * 9000
    (child / "new").write_text("n")
    subprocess.run([*words, "unmount", "c"], check=True)
    no_debris(prepared)
    assert (prepared.mount("c") / "new").read_text() == "n"


def test_roots_by_links_are_one_root(prepared: Store, tmp_path: Path) -> None:
    """A run root by a link is not a second one, and an image store by one is no other store."""
    prepared.mount("q")
    for name in ("root", "run"):
        (tmp_path / f"{name}-link").symlink_to(name)
    with Store.open(tmp_path / "root-link", run=tmp_path / "run-link") as other:
        assert other.root == prepared.root
        assert other.mounted("q") == 1
        assert other.unmount("q")
    settings = Settings(image_store=str(tmp_path / "root-link"))
    with pytest.raises(ValueError, match="must either be not set"):
        Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings)


@pytest.mark.parametrize(
    ("strategy", "old"), [*((name, False) for name in STRATEGIES), ("erofs", True), ("farm", True)]
)
def test_mounts_whose_records_are_lost_keep_what_they_use(tmp_path: Path, strategy: str, *, old: bool) -> None:
    """The mount table is the truth; where it does not say everything, everything stays."""
    with opened(tmp_path, strategy) as store:
        if old:
            store._context.__dict__["abilities"] = replace(
                store._context.abilities, new_mount_api=False, lowerdir_plus=False, shifted_lowers=False
            )
        _, child = mounted_with_child(store)
        lose_records(store)

        assert store.unmount("p")
        store.gc()
        store.cache.evict(budget=0)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        assert area(store, "p").is_dir()
        assert (child / "written").read_text() == "w"
        assert (child / "base").read_bytes() == b"b" * 9000
        (child / "new").write_text("n")
        assert store.unmount("c")
        no_debris(store)
        assert (store.mount("c") / "new").read_text() == "n"


def test_a_mount_whose_process_was_killed_before_its_record_keeps_what_it_uses(prepared: Store) -> None:
    """Also when it is in use, and so taken over by the next mount."""
    (prepared.mount("p") / "written").write_text("w")
    words = [sys.executable, "-c", PROGRAM, *places(prepared), "", KILLED]
    assert subprocess.run(words, check=False).returncode == -9
    child = prepared.run / "mnt/c"

    with subprocess.Popen(["sleep", "300"], cwd=child) as user:
        try:
            assert prepared.mount("c") == child
            assert prepared.unmount("p")
            prepared.cache.evict(budget=0)
            assert (child / "written").read_text() == "w"
            assert area(prepared, "p").is_dir()
        finally:
            user.kill()
    assert prepared.unmount("c")
    no_debris(prepared)


def test_mounts_of_another_store_keep_nothing(prepared: Store, tmp_path: Path) -> None:
    """Neither by equal layer ids nor by what their mounts do not tell."""
    (tmp_path / "second").mkdir()
    with opened(tmp_path / "second") as second:
        mounted_with_child(second)
        lose_records(second)
        (prepared.mount("p") / "written").write_text("w")
        assert prepared.unmount("p")
        assert not area(prepared, "p").exists()
        assert lowers.mounted_views(prepared._context) == set()
