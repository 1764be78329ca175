"""A filesystem without a byte or an inode left: deleting and collecting work, and so does everything afterwards."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from lading import Settings, Store
from lading.catalog import engine, journal
from lading.errors import FileTooLarge, Full
from lading.flows import reserve
from tests.flows.test_gc import layer_of
from tests.flows.test_layers import taken_out
from tests.surroundings.disks import KINDS, disk, fill, fill_inodes
from tests.tarmake import END, file, header, tree

#: On disks this small nothing may be left free.
ALL = Settings(min_free=0)

_Result = TypeVar("_Result")


class Stuffed:
    """A store whose every step, opening and closing included, begins on a full disk."""

    def __init__(self, folder: Path, run: Path, stuff: Callable[[Path], object]) -> None:
        self.folder, self.run, self.stuff = folder, run, stuff
        self.root = folder / "root"

    def open(self) -> Store:
        return Store.open(self.root, run=self.run, settings=ALL)

    def step(self, act: Callable[[Store], _Result]) -> _Result:
        self.stuff(self.folder)
        with self.open() as store:
            return act(store)


def stored(store: Store, count: int = 6) -> dict[str, bytes]:
    """Images on layers that share half of their files; a container that was written to.

    Returns:
        What the layers' diffs must be.
    """
    tars = {f"l{seed}": layer_of(seed, files=200) for seed in range(count)}
    for layer_id, data in tars.items():
        store.layers.import_(io.BytesIO(data), id=layer_id)
        store.images.create(layer_id, id=layer_id.replace("l", "i"), big_data={"k": os.urandom(3000)})
    container = store.containers.create("i0", id="c")
    (store.mount(container.id) / "written").write_bytes(bytes(100_000))
    store.unmount(container.id)
    return tars


def assert_whole(store: Store, tars: dict[str, bytes], gone: set[str]) -> None:
    """Nothing acknowledged is lost, and nothing else is there."""
    left = set(tars) - gone
    assert {layer.id for layer in store.layers.all()} == left
    assert {layer_id: taken_out(store, layer_id) for layer_id in left} == {key: tars[key] for key in left}
    assert store.check(content=True).findings == ()


@pytest.mark.privileged
@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_deleted_and_collected_without_a_free_byte(tmp_path: Path, kind: str) -> None:
    """Commands give up the reserve, part by part, and take back what is left; views go when there is none."""
    with disk(kind, tmp_path) as folder:
        full = Stuffed(folder, tmp_path / "run", fill)
        with full.open() as store:
            tars = stored(store)
            store.cache.prefetch("i5")

        assert len(full.step(lambda store: store.layers.all())) == 7
        full.step(lambda store: store.containers.delete("c"))
        assert full.step(lambda store: store.images.delete("i0")) == ["l0"]
        full.step(lambda store: store.images.delete("i1"))
        full.step(lambda store: store.delete("i2"))
        full.step(lambda store: store.layers.delete("l2"))
        assert full.step(lambda store: store.gc()).freed_bytes > 3 * 200 * 2900
        assert full.step(lambda store: store.gc()).pack_bytes == 0

        shutil.rmtree(full.root / "reserve")
        full.step(lambda store: store.images.delete("i3"))
        assert full.step(lambda store: store.gc()).freed_bytes > 200 * 2900

        os.unlink(folder / "filler")
        with full.open() as store:
            tars["new"] = layer_of(9, files=200)
            store.layers.import_(io.BytesIO(tars["new"]), id="new")
            assert_whole(store, tars, {"l0", "l1", "l2", "l3"})
        assert len(os.listdir(full.root / "reserve")) == reserve.PARTS


@pytest.mark.privileged
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_everything_can_be_deleted_and_collected_without_a_free_inode(tmp_path: Path, kind: str) -> None:
    """Each part of the reserve is a name as well."""

    def stuff(folder: Path) -> None:
        shutil.rmtree(folder / "heap", ignore_errors=True)
        fill_inodes(folder)

    with disk(kind, tmp_path, inodes=600) as folder:
        full = Stuffed(folder, tmp_path / "run", stuff)
        with full.open() as store:
            tars = stored(store)

        full.step(lambda store: store.containers.delete("c"))
        full.step(lambda store: store.images.delete("i0"))
        assert full.step(lambda store: store.gc()).freed_bytes > 200 * 2900
        full.step(lambda store: store.images.delete("i1"))
        full.step(lambda store: store.gc())
        full.step(lambda store: store.gc())
        with pytest.raises(Full):
            full.step(lambda store: store.layers.import_(io.BytesIO(layer_of(7, files=600)), id="no"))

        shutil.rmtree(folder / "heap")
        with full.open() as store:
            store.layers.import_(io.BytesIO(layer_of(0, files=200)), id="l0")
            assert_whole(store, tars, {"l1"})


@pytest.mark.privileged
def test_rows_that_need_more_log_than_the_reserve_has_go_step_by_step(tmp_path: Path) -> None:
    """The log is emptied into the database whenever it has taken all room, and what was committed stays so."""
    names = random.Random(1)
    many = tree(
        {f"{names.randbytes(12).hex()}/{names.randbytes(60).hex()}": b"%d" % number for number in range(15_000)}
    )
    with disk("tmpfs", tmp_path) as folder:
        full = Stuffed(folder, tmp_path / "run", fill)
        with full.open() as store:
            store.layers.import_(io.BytesIO(many), id="many")
            kept = store.layers.import_(io.BytesIO(layer_of(1, files=20)), id="kept")
            wanted = taken_out(store, kept.id)

        full.step(lambda store: store.layers.delete("many"))
        assert full.step(lambda store: store.gc()).pack_bytes > 1_000_000

        full.folder.joinpath("filler").unlink()
        with full.open() as store:
            assert taken_out(store, "kept") == wanted
            assert next(store.query("SELECT count(*) FROM object")[1])[0] < 100
            assert store.check(content=True).findings == ()


KILLED = """
import os, sys
from lading import Settings, Store
from lading.catalog import database
database.CHECKPOINT_SIZE = 1 << 40
store = Store.open(sys.argv[1], run=sys.argv[2], settings=Settings(min_free=0))
for number in range(150):
    store.layers.create(id=f"k{number}", names=[f"name {number}"])
os.kill(os.getpid(), 9)
"""


@pytest.mark.privileged
def test_a_long_log_of_a_killed_writer_is_room(tmp_path: Path) -> None:
    """It is emptied before anything of the reserve is given up for a step that follows."""
    with disk("ext4", tmp_path) as folder:
        full = Stuffed(folder, tmp_path / "run", fill)
        words = [sys.executable, "-c", KILLED, str(full.root), str(full.run)]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        assert os.stat(f"{full.root}/catalog.db-wal").st_size > 1 << 20

        full.step(lambda store: store.layers.delete("k7"))
        full.step(lambda store: store.gc())

        full.folder.joinpath("filler").unlink()
        with full.open() as store:
            assert len(store.layers.all()) == 149
            assert store.check(content=True).findings == ()


@pytest.mark.privileged
def test_a_journal_at_its_end_does_not_keep_a_collection_from_freeing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is an object, which needs room: it waits until there is some."""
    monkeypatch.setattr(journal, "SEGMENT_SIZE", 1000)
    with disk("tmpfs", tmp_path) as folder:
        full = Stuffed(folder, tmp_path / "run", fill)
        with full.open() as store:
            tars = stored(store)
            for number in range(500):
                store.set_metadata("i1", random.Random(number).randbytes(2000).hex())
        full.step(lambda store: store.containers.delete("c"))
        full.step(lambda store: store.images.delete("i0"))

        assert full.step(lambda store: store.gc()).freed_bytes > 200 * 2900
        full.folder.joinpath("filler").unlink()
        with full.open() as store:
            store.gc()
            assert [path.name for path in (full.root / "journal").glob("*.log")] == ["00000002.log"]
            assert_whole(store, tars, {"l0"})


@pytest.mark.privileged
def test_what_is_stored_leaves_the_floor_free_and_says_what_it_needs(tmp_path: Path) -> None:
    """Before anything is read, with the input's size where it has one, and again while it is stored."""
    floor = 32 << 20
    with disk("tmpfs", tmp_path) as folder:
        settings = Settings(min_free=floor)
        with Store.open(folder / "root", run=tmp_path / "run", settings=settings) as store:
            store.layers.import_(io.BytesIO(layer_of(1, files=20)), id="kept")
            before = os.statvfs(folder).f_bfree

            class Endless:
                """Random bytes: nobody knows how many."""

                def __init__(self) -> None:
                    self.left = 30 << 20
                    self.head = header(b"big", size=self.left)

                def read(self, size: int = -1, /) -> bytes:
                    if self.head:
                        head, self.head = self.head, b""
                        return head
                    size = min(size if size >= 0 else self.left, self.left)
                    self.left -= size
                    return os.urandom(size)

            with pytest.raises(Full, match=rf"\d+ bytes are free, and {floor} are to be left \(min_free\)"):
                store.layers.import_(Endless(), id="big")
            assert [layer.id for layer in store.layers.all()] == ["kept"]
            assert os.statvfs(folder).f_bfree >= before - 64

            with (folder / "ballast").open("wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, os.statvfs(folder).f_bavail * 4096 - floor + (1 << 20))
            free = os.statvfs(folder).f_bavail * 4096
            path = tmp_path / "small.tar"
            path.write_bytes(file(b"f", b"1") + END)
            wanted = floor + path.stat().st_size
            with path.open("rb") as stream, pytest.raises(Full, match=f"needs {wanted} bytes free at most"):
                store.layers.import_(stream, id="no")
            with pytest.raises(Full, match=f"{free} bytes are free"):
                store.images.create("kept", id="no", big_data={"k": b"v"})
            store.images.create("kept", id="i")
            store.set_names("i", ["records", "are", "no", "contents"])
            assert store.images.delete("i") == ["kept"]
            assert store.gc().freed_bytes > 20 * 2900


LIMITED = """
import resource, sys
from lading.cli.entry import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
main(sys.argv[2:], "lading")
"""


def test_a_limit_on_the_size_of_files_is_told_in_a_line(tmp_path: Path) -> None:
    """Whatever file meets it: a pack, the catalog's log, the journal. Then all works, and nothing is damaged."""
    roots = ["-g", str(tmp_path / "root"), "-R", str(tmp_path / "run")]
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        store.layers.import_(io.BytesIO(layer_of(1)), id="l")
        store.images.create("l", id="i")
    data = file(b"f", os.urandom(3_000_000)) + END
    commands: list[tuple[list[str], bytes]] = [
        (["import-layer"], data),
        (["applydiff", "l"], data),
        (["set-image-data", "i", "k"], data),
        (["set-metadata", "-m", "x" * 100_000, "i"], b""),
        (["create-layer", "-n", "y" * 100_000], b""),
        (["delete-image", "i"], b""),
        (["gc"], b""),
    ]
    reserved = len(os.listdir(tmp_path / "root/reserve"))
    for size in (0, 5_000, 70_000):
        for words, given in commands:
            done = subprocess.run(
                [sys.executable, "-c", LIMITED, str(size), *roots, *words],
                input=given,
                capture_output=True,
                check=False,
            )
            told = (done.stdout + done.stderr).decode()
            if done.returncode:
                assert done.returncode == 1
                assert "file too large" in told or "read-only" in told, told
                assert told.count("\n") == 1, told
            assert "Traceback" not in told
    assert len(os.listdir(tmp_path / "root/reserve")) == reserved
    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        assert store.check(content=True).findings == ()
        store.layers.import_(io.BytesIO(data), id="now")
        assert taken_out(store, "now") == data


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_sqlite_is_asked_what_the_system_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """It says "disk I/O error" when its shared memory finds no room, or a quota is used up."""
    error = engine.sqlite.OperationalError("disk I/O error")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    assert isinstance(engine.meaning(error, tmp_path / "catalog.db"), OSError)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    found = engine.meaning(error, tmp_path / "catalog.db")
    assert isinstance(found, Full)
    assert not isinstance(found, FileTooLarge)
    assert os.strerror(code).lower() in str(found)
    assert os.listdir(tmp_path) == []


def test_a_quota_that_is_used_up_refuses_a_pack_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full disk does."""
    kept, write = layer_of(1), os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if len(data) > 4096:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(descriptor, data)

    store.layers.import_(io.BytesIO(kept), id="kept")
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(Full, match="quota"):
        store.layers.import_(io.BytesIO(layer_of(2)), id="no")
    monkeypatch.undo()

    assert [layer.id for layer in store.layers.all()] == ["kept"]
    assert os.listdir(store.root / "objects/staging") == []
    assert taken_out(store, "kept") == kept
