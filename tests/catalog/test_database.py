"""Transactions, locks, connections, and what is left after a kill."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lading.catalog import database, layers, names, network
from lading.catalog.chain import read_chain
from lading.catalog.database import Catalog
from lading.catalog.engine import sqlite
from lading.errors import Busy, Corrupt, Full, ReadOnly, Unsupported
from lading.values import Layer
from tests.catalog.conftest import open_catalog


def create(catalog: Catalog, layer_id: str) -> None:
    with catalog.write("create-layer") as tx:
        layers.create_layer(tx, Layer(layer_id, names=(f"name of {layer_id}",)))


def ids(catalog: Catalog) -> list[str]:
    with catalog.read() as conn:
        return [layer.id for layer in layers.list_layers(conn)]


def counts(catalog: Catalog) -> tuple[int, int]:
    events = catalog.connection().execute("SELECT count(*) FROM event").fetchone()[0]
    return events, len(read_chain(catalog.journal_folder))


def test_a_transaction_leaves_one_event_and_one_line_per_changed_record(catalog: Catalog) -> None:
    """However often the record was touched."""
    with catalog.write("both") as tx:
        layers.create_layer(tx, Layer("a"))
        names.set_names(tx, "layer", "a", ["x"])
        layers.create_layer(tx, Layer("b"))

    assert counts(catalog) == (2, 1)
    assert [change[:2] for change in read_chain(catalog.journal_folder)[0].body["changes"]] == [
        ["layer", "a"],
        ["layer", "b"],
    ]


def test_a_transaction_that_changes_nothing_leaves_nothing(catalog: Catalog) -> None:
    """Neither without a touch nor with one that came to nothing."""
    create(catalog, "a")
    before = counts(catalog)

    with catalog.write("look") as tx:
        layers.get_layer(tx.conn, "a")
    with catalog.write("same") as tx:
        names.set_metadata(tx, "layer", "a", "")

    assert counts(catalog) == before


def test_a_failed_transaction_leaves_nothing(catalog: Catalog) -> None:
    """Also when it is interrupted; the lock is free afterwards."""

    def interrupted() -> None:
        with catalog.write("x") as tx:
            layers.create_layer(tx, Layer("a"))
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()

    assert (ids(catalog), counts(catalog)) == ([], (0, 0))
    create(catalog, "b")
    assert ids(catalog) == ["b"]


def test_a_full_disk_refuses_the_change_and_a_retry_works(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's line may be torn by it."""
    real = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if bytes(data[:2]) != b'{"' or b'"prev"' not in bytes(data):
            return real(descriptor, data, offset)
        real(descriptor, bytes(data)[:20], offset)
        raise OSError(errno.ENOSPC, "full")

    create(catalog, "a")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(Full):
            create(catalog, "b")
    create(catalog, "c")

    assert ids(catalog) == ["a", "c"]
    assert len(read_chain(catalog.journal_folder)) == 2


KILLED = """
import os, sys
from pathlib import Path
from lading.catalog import layers
from lading.catalog import journal
from lading.values import Layer
from tests.catalog.conftest import open_catalog
catalog = open_catalog(Path(sys.argv[1]))
step = sys.argv[2]
def die(*_, **__): os._exit(9)
sync = os.fdatasync
if step == "rows":
    journal.Journal.append = die
if step == "unsynced":
    os.fdatasync = die
if step == "synced":
    os.fdatasync = lambda fd: (sync(fd), die())
with catalog.write("x") as tx:
    layers.create_layer(tx, Layer("killed"))
die()
"""


@pytest.mark.parametrize(("step", "there"), [("rows", False), ("unsynced", False), ("synced", False), ("done", True)])
def test_a_kill_leaves_a_change_whole_or_absent(tmp_path: Path, step: str, there: bool) -> None:
    """Before the rows are journalled, before and after the journal's sync, and after the commit."""
    with_first = open_catalog(tmp_path / "c")
    create(with_first, "first")
    with_first.close()

    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "c"), step], check=False)

    catalog = open_catalog(tmp_path / "c", wait_s=1)
    assert done.returncode == 9
    assert ids(catalog) == ["first", *(["killed"] if there else [])]
    create(catalog, "next")
    chain = [line.body["changes"][0][1] for line in read_chain(catalog.journal_folder)]
    assert chain == ids(catalog)
    catalog.close()


def test_the_line_is_synced_before_the_commit(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another connection sees nothing of the change while it is synced, and all of it afterwards."""
    seen: list[int] = []
    real = os.fdatasync

    def watched(descriptor: int) -> None:
        other = sqlite.connect(str(catalog.path))
        seen.append(other.execute("SELECT count(*) FROM layer").fetchone()[0])
        other.close()
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", watched)
    create(catalog, "a")

    assert seen == [0]
    assert ids(catalog) == ["a"]


WRITER = """
import sys
from pathlib import Path
from lading.catalog import layers, names
from lading.values import Layer
from tests.catalog.conftest import open_catalog
for number in range(25):
    if number % 5 == 0:
        catalog = open_catalog(Path(sys.argv[1]))
    with catalog.read() as conn:
        layers.list_layers(conn)
    with catalog.write("create-layer") as tx:
        name = f"{sys.argv[2]}-{number}"
        layers.create_layer(tx, Layer(names.new_id(tx.conn, "layer"), names=(name,)))
    if number % 5 == 4:
        catalog.close()
"""
READER = """
import sys
from pathlib import Path
from lading.catalog import layers
from tests.catalog.conftest import open_catalog
while not Path(sys.argv[1], "stop").exists():
    catalog = open_catalog(Path(sys.argv[1]), wait_s=10)
    for _ in range(20):
        with catalog.read() as conn:
            assert all(len(layer.names) == 1 for layer in layers.list_layers(conn))
    catalog.close()
"""


@pytest.mark.slow
def test_eight_processes_lose_nothing_and_readers_never_wait(tmp_path: Path) -> None:
    """Each opens and closes the catalog again and again, which is when SQLite moves its log."""
    folder = tmp_path / "c"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(n)]) for n in range(8)]
    readers = [subprocess.Popen([sys.executable, "-c", READER, str(folder)]) for _ in range(2)]
    written = [process.wait(timeout=60) for process in writers]
    (folder / "stop").touch()
    read = [process.wait(timeout=60) for process in readers]

    catalog = open_catalog(folder)
    with catalog.read() as conn:
        found = {layer.names[0] for layer in layers.list_layers(conn)}
        assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert (written, read) == ([0] * 8, [0] * 2)
    assert found == {f"{process}-{number}" for process in range(8) for number in range(25)}
    assert counts(catalog) == (200, 200)
    catalog.close()


def test_a_reader_does_not_wait_for_a_writer_and_keeps_its_snapshot(catalog: Catalog) -> None:
    """A read that began before a commit never sees it, nor does a read inside that read."""
    create(catalog, "a")
    entered, leave = threading.Event(), threading.Event()

    def write() -> None:
        with catalog.write("slow") as tx:
            layers.create_layer(tx, Layer("b"))
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=write)
    thread.start()
    assert entered.wait(10)
    with catalog.read() as conn:
        before = [layer.id for layer in layers.list_layers(conn)]
        leave.set()
        thread.join()
        inside = ids(catalog)
    assert (before, inside, ids(catalog)) == (["a"], ["a"], ["a", "b"])


def test_a_second_writer_waits_for_its_turn_and_is_told_for_whom(tmp_path: Path) -> None:
    """The message names the holder, what it does, and since when."""
    first, second = open_catalog(tmp_path / "c"), open_catalog(tmp_path / "c", wait_s=0.1)
    with (
        first.write("hold"),
        pytest.raises(Busy, match=rf"process {os.getpid()} \(hold\), since 20\d\d-\S+Z;"),
        second.write("wait"),
    ):
        raise AssertionError

    create(second, "a")
    first.close()
    second.close()


def test_a_write_inside_a_write_is_a_bug(catalog: Catalog) -> None:
    """It would wait for itself; it is told at once, and the outer one goes on."""
    with catalog.write("outer") as tx:
        with pytest.raises(RuntimeError, match="inside another"), catalog.write("inner"):
            raise AssertionError
        layers.create_layer(tx, Layer("a"))
    assert ids(catalog) == ["a"]


def test_close_closes_the_connections_of_all_threads(catalog: Catalog) -> None:
    """Each thread has its own; none keeps the files open."""
    own = catalog.connection()
    opened, leave = threading.Event(), threading.Event()
    others: list[Any] = []

    def look() -> None:
        others.append(catalog.connection())
        opened.set()
        leave.wait(10)

    thread = threading.Thread(target=look)
    thread.start()
    assert opened.wait(10)
    catalog.close()

    assert others[0] is not own
    for connection in (own, others[0]):
        with pytest.raises(sqlite.ProgrammingError):
            connection.execute("SELECT 1")
    leave.set()
    thread.join()


def test_a_catalog_does_not_survive_a_fork(catalog: Catalog) -> None:
    """The child is refused; the parent goes on."""
    create(catalog, "a")
    child = os.fork()
    if child == 0:
        try:
            catalog.connection()
        except RuntimeError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    create(catalog, "b")


def test_opening_loads_no_postgresql_driver() -> None:
    """Finding them costs more than everything else; the newer SQLite is taken where it is installed."""
    code = (
        "import sys, importlib.util\nfrom lading.catalog import engine\n"
        "assert not [name for name in sys.modules if name.startswith('psycopg')]\n"
        "wanted = 'pysqlite3.dbapi2' if importlib.util.find_spec('pysqlite3') else 'sqlite3'\n"
        "assert engine.sqlite.__name__ == wanted, engine.sqlite.__name__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_grown_log_is_moved_and_a_reader_only_delays_it(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit itself succeeds either way."""
    monkeypatch.setattr(database, "CHECKPOINT_SIZE", 1 << 16)
    log = Path(f"{catalog.path}-wal")
    reader = sqlite.connect(str(catalog.path), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM layer").fetchone()
    for number in range(20):
        create(catalog, f"{number:0200}")
    held = log.stat().st_size
    reader.close()
    create(catalog, "last")

    assert held > 1 << 16
    assert log.stat().st_size == 0
    assert len(ids(catalog)) == 21


def test_a_lost_catalog_is_not_an_empty_store(tmp_path: Path) -> None:
    """The journal beside it says that there were records."""
    catalog = open_catalog(tmp_path / "c")
    create(catalog, "a")
    catalog.close()
    (tmp_path / "c/catalog.db").unlink()

    for _ in range(2):
        with pytest.raises(Corrupt, match=r"catalog\.db is missing or empty"):
            open_catalog(tmp_path / "c")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path, read_only: bool) -> None:
    """And left as it is."""
    (tmp_path / "catalog.db").write_bytes(b"no database" * 1000)

    with pytest.raises(Corrupt, match="not a database"):
        open_catalog(tmp_path, read_only=read_only)
    assert (tmp_path / "catalog.db").read_bytes() == b"no database" * 1000


NETWORK = {
    0x6969: "nfs", 0xFF534D42: "cifs", 0xFE534D42: "smb3", 0x01021997: "9p", 0x6B414653: "afs", 0x00C36400: "ceph",
    0x0BD00BD0: "lustre", 0x47504653: "gpfs", 0x786F4256: "vboxsf",
}  # fmt: skip


@pytest.mark.parametrize("number", NETWORK)
def test_a_network_filesystem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """For a new catalog, and for one that was carried there; reading goes on."""
    open_catalog(tmp_path / "old").close()
    monkeypatch.setattr(network, "_number", lambda folder: number)
    monkeypatch.setattr(network, "_is_root", lambda folder: False)
    for name in ("new", "old"):
        with pytest.raises(
            Unsupported, match=rf"{name} is on a network filesystem \({NETWORK[number]}\): .* local one"
        ):
            open_catalog(tmp_path / name)
    assert not (tmp_path / "new/catalog.db").exists()
    opened = open_catalog(tmp_path / "old", read_only=True)
    assert ids(opened) == []
    opened.close()


def test_a_root_filesystem_that_the_host_gives_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may have nothing else."""
    monkeypatch.setattr(network, "_number", lambda folder: 0x01021997)
    monkeypatch.setattr(network, "_is_root", lambda folder: True)
    open_catalog(tmp_path / "new").close()


@pytest.mark.parametrize(
    ("kind", "refused"), [("fuse.sshfs", True), ("fuse.fuse-overlayfs", False), ("virtiofs", False)]
)
def test_what_is_behind_fuse_tells_whether_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    """By the type in the list of mounts: the number is the same for all."""
    monkeypatch.setattr(network, "_number", lambda folder: 0x65735546)
    monkeypatch.setattr(network, "_mounted_type", lambda folder: kind)
    if refused:
        with pytest.raises(Unsupported, match=kind):
            open_catalog(tmp_path / "c")
    else:
        open_catalog(tmp_path / "c").close()


def test_kinds_of_filesystems_are_those_that_the_system_tells(tmp_path: Path) -> None:
    """By another program's word, and by another file's."""
    told = subprocess.run(["stat", "-f", "-c", "%t", tmp_path], capture_output=True, check=True).stdout
    assert network._number(tmp_path) == int(told, 16)
    assert network._number(tmp_path / "missing") == 0
    assert (network._number(Path("/proc")), network._mounted_type(Path("/proc"))) == (0x9FA0, "proc")


@contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.privileged
@pytest.mark.parametrize("with_log", [False, True])
def test_a_read_only_filesystem_can_be_read(tmp_path: Path, with_log: bool) -> None:
    """Also with commits that are still in the log; writing is refused in words; nothing is made there."""
    live = open_catalog(tmp_path / "live")
    create(live, "a")
    folder = tmp_path / "c"
    (folder / "journal").mkdir(parents=True)
    if not with_log:
        live.close()
    for suffix in ("", "-wal") if with_log else ("",):
        (folder / f"catalog.db{suffix}").write_bytes(Path(f"{live.path}{suffix}").read_bytes())
    before = sorted(os.listdir(folder))

    with mounted_read_only(folder):
        catalog = open_catalog(folder, read_only=True)
        found = ids(catalog)
        with pytest.raises(ReadOnly):
            create(catalog, "b")
        catalog.close()

    assert (found, sorted(os.listdir(folder))) == (["a"], before)
    live.close()


#: What another program does to the database that keeps it from being written, or from being read as well.
HOLDS = {
    "a transaction": "BEGIN IMMEDIATE",
    "the file": "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; INSERT INTO meta VALUES ('x', 'y')",
}


@pytest.mark.parametrize("how", HOLDS)
def test_another_program_that_holds_the_database_is_named(tmp_path: Path, how: str) -> None:
    """By its process and command, once the limit has passed; nothing is half done, and then all goes on."""
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for statement in sys.argv[2].split('; '):\n"
        "    connection.execute(statement).fetchall()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    open_catalog(tmp_path / "c").close()
    command = [sys.executable, "-c", program, str(tmp_path / "c/catalog.db"), HOLDS[how]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=rf"is locked: held by process {holder.pid} \(.*python.*\); try again$"):
            opened_and_written(tmp_path / "c")
        holder.communicate()
    assert opened_and_written(tmp_path / "c") == (1, 1)


def opened_and_written(folder: Path) -> tuple[int, int]:
    opened = open_catalog(folder, wait_s=0.1)
    try:
        create(opened, "a")
        return counts(opened)
    finally:
        opened.close()
