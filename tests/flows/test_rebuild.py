"""The catalog made again: what befalls catalogs, journals and packs, and what comes back."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lading import Settings, Store
from lading.catalog.chain import find_chain
from lading.errors import Busy, Corrupt, Full, InUse, InvalidInput, Unsupported
from lading.flows.ingest import RecipeSink
from lading.objects.durable import Staging
from lading.objects.pack import read_index
from lading.objects.tar import ingest_tar
from lading.values import KIND_DATA, KIND_RECIPE
from tests.flows.test_gc import layer_of, shadowing
from tests.flows.test_layers import taken_out
from tests.properties.history import diffs, facts, lose
from tests.tarmake import tree

SETTINGS = Settings(wait_s=0.3)


def opened(folder: Path) -> Store:
    return Store.open(folder / "root", run=folder / "run", driver="vfs", settings=SETTINGS)


def rebuild(folder: Path, *, force: bool = False) -> Any:
    return Store.rebuild(folder / "root", run=folder / "run", driver="vfs", settings=SETTINGS, force=force)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store: two layers, an image, a container that was written to."""
    with opened(tmp_path) as store:
        store.layers.import_(io.BytesIO(layer_of(1)), id="one")
        store.layers.import_(io.BytesIO(shadowing(2)), id="two", parent="one")
        store.images.create("two", id="image", names=["name"], big_data={"k": b"data" * 99, "empty": b""})
        store.containers.create("image", id="container", layer_id="own")
        write(store, "container", b"not sealed")
    return tmp_path


def write(store: Store, ref: str, data: bytes) -> None:
    (store.mount(ref) / "written").write_bytes(data)
    store.unmount(ref)


def told(store: Store) -> Any:
    with store._context.catalog.read() as conn:
        return facts(conn), diffs(store)


def state(folder: Path) -> Any:
    with opened(folder) as store:
        return told(store)


def test_what_was_written_and_not_sealed_is_found_again(folder: Path) -> None:
    """The record says which write area is the layer's, and the area is as it was."""
    with opened(folder) as store:
        store.layers.create(id="sealed")
        write(store, "sealed", b"first")
        store.layers.seal("sealed")
        write(store, "sealed", b"second")
    before = state(folder)
    lose(folder / "root")

    assert rebuild(folder).complete

    assert state(folder) == before
    with opened(folder) as store:
        store.gc()
        for ref, data in (("container", b"not sealed"), ("sealed", b"second")):
            assert (store.mount(ref) / "written").read_bytes() == data
            store.unmount(ref)


def test_a_sound_catalog_is_left_alone_unless_forced(folder: Path) -> None:
    """And then the old one is kept, and can be opened."""
    before = state(folder)
    with pytest.raises(InvalidInput, match=r"is sound.*--force"):
        rebuild(folder)

    report = rebuild(folder, force=True)

    (kept,) = report.kept
    assert Path(kept).name.startswith("catalog.db.lost-")
    assert report.complete
    assert state(folder) == before
    lose(folder / "root")
    shutil.copy(kept, folder / "root/catalog.db")
    assert state(folder) == before


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "junk": lambda data: b"junk" * 5000,
    "cut": lambda data: data[: len(data) // 2 // 4096 * 4096],
    "cut within a page": lambda data: data[:5000],
    "first page": lambda data: bytes(4096) + data[4096:],
    "second page": lambda data: data[:4096] + bytes(4096) + data[8192:],
    "half": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "flipped": lambda data: data[:4096] + bytes(byte ^ 255 for byte in data[4096:]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_catalog_says_the_way_out(folder: Path, how: str) -> None:
    """Opening, or the check, names the command; it works; what was there is kept."""
    before = state(folder)
    path = folder / "root/catalog.db"
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    damaged = path.read_bytes()

    try:
        with opened(folder) as store:
            report = store.check()
            assert report.findings
    except Corrupt as error:
        assert "lading catalog rebuild" in str(error)  # noqa: PT017 - either way of telling will do
    report = rebuild(folder)

    assert report.complete
    assert [Path(kept).read_bytes() for kept in report.kept if not kept.endswith(("-wal", "-shm"))] == [damaged] * bool(
        damaged
    )
    assert state(folder) == before


def run_and_die(folder: Path, code: str) -> None:
    """Run code on the store in another process, which is killed at its end."""
    program = (
        "import io, os, signal, sys; from pathlib import Path; from tests.flows.test_rebuild import *\n"
        f"store = opened(Path({str(folder)!r}))\n{code}\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_lost_log_is_noticed_and_its_commits_come_back(folder: Path) -> None:
    """A killed writer leaves its commits in the log; the journal has them, too."""
    run_and_die(
        folder, "for name in 'abc': store.layers.create(id=name)\nstore.layers.import_(io.BytesIO(layer_of(7)), id='d')"
    )
    for suffix in ("-wal", "-shm"):
        (folder / f"root/catalog.db{suffix}").unlink()

    with opened(folder) as store:
        assert not store.layers.exists("a")
        (finding,) = [item for item in store.check().findings if item.id == "journal"]
        assert finding.message.endswith("4 commits were lost; run `lading catalog rebuild`")
        with pytest.raises(Corrupt, match=r"older than its journal.*lading catalog rebuild"):
            store.layers.create(id="e")
    assert rebuild(folder).complete

    with opened(folder) as store:
        assert [layer.id for layer in store.layers.all()] == ["one", "two", "own", "a", "b", "c", "d"]
        assert taken_out(store, "d") == layer_of(7)
        store.layers.create(id="e")
        assert store.check(content=True).findings == ()


def test_an_older_copy_of_the_catalog_is_noticed(folder: Path) -> None:
    """Also when the journal went over to another segment meanwhile."""
    copy = (folder / "root/catalog.db").read_bytes()
    patch = pytest.MonkeyPatch()
    patch.setattr("lading.catalog.journal.SEGMENT_SIZE", 100)
    with opened(folder) as store:
        store.layers.create(id="later")
        store.gc()
        store.layers.create(id="last")
    patch.undo()
    before = state(folder)
    (folder / "root/catalog.db").write_bytes(copy)

    with opened(folder) as store:
        assert any("catalog rebuild" in item.message or "rejournal" in item.message for item in store.check().findings)
    assert rebuild(folder).complete

    after = state(folder)
    before[0]["event"] = before[0]["event"][-len(after[0]["event"]) :]
    assert after == before


def test_another_process_that_has_the_store_open_is_named(folder: Path) -> None:
    """Even when it does nothing: it would go on with the old file."""
    program = (
        "import sys; from pathlib import Path; from tests.flows.test_rebuild import *\n"
        f"with opened(Path({str(folder)!r})) as store:\n store.layers.all(); print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()

    with pytest.raises(Busy, match=f"process {process.pid}"):
        rebuild(folder, force=True)

    process.communicate(b"")
    assert rebuild(folder, force=True).complete


def test_this_process_must_not_have_it_open(folder: Path) -> None:
    """Nor may an operation be going on, or another rebuild."""
    with opened(folder) as store:
        with pytest.raises(InUse, match="open in this process"):
            rebuild(folder, force=True)
        store.layers.create(id="still works")
    epoch = next(path for path in (folder / "root/objects").iterdir() if path.name.startswith("epoch."))
    with epoch.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(Busy, match=f"in use by process {os.getpid()}"):
            rebuild(folder, force=True)


def test_nothing_is_written_to_a_catalog_that_was_taken_away(folder: Path) -> None:
    """A commit into a file without its name would be acknowledged and lost."""
    with opened(folder) as store:
        store.layers.all()
        os.rename(folder / "root/catalog.db", folder / "elsewhere")

        with pytest.raises(Corrupt, match="removed or replaced"):
            store.layers.create(id="x")


def test_a_lost_marker_is_put_back_with_the_same_id(folder: Path) -> None:
    """A store that has lost its marker is no new store."""
    with opened(folder) as store:
        known = store._context.store_id
    before = state(folder)
    marker = folder / "root/format.json"
    for damage in ("", "{"):
        marker.unlink()
        if damage:
            marker.write_text(damage)
        with pytest.raises(Corrupt, match="lading catalog rebuild"):
            opened(folder)
        with pytest.raises(InvalidInput, match="is sound"):  # the catalog is: only the marker was to be put back
            rebuild(folder)
        with opened(folder) as store:
            assert store._context.store_id == known
            assert told(store) == before


def test_a_folder_that_is_no_store_stays_none(tmp_path: Path) -> None:
    """Nothing is made there."""
    with pytest.raises(InvalidInput, match="there is no store"):
        rebuild(tmp_path)
    assert list(tmp_path.iterdir()) == []


def pack_of(folder: Path, kind: int, layer: str) -> Path:
    """The pack that has a layer's recipe, or its first file."""
    with opened(folder) as store:
        column = (
            "c.recipe_id"
            if kind == KIND_RECIPE
            else "(SELECT max(i.object_id) FROM entry e JOIN inode i ON i.id = e.inode_id WHERE e.content_id = c.id)"
        )
        query = f"SELECT p.name FROM content c JOIN layer l ON l.replay_content_id = c.id JOIN object o ON o.id = {column} JOIN pack p ON p.id = o.pack_id WHERE l.id = '{layer}'"
        ((name,),) = store.query(query)[1]
        return store._context.backend.path(name)


def test_a_pack_that_cannot_be_read_takes_no_record_with_it(folder: Path) -> None:
    """Whoever needs it is named; the others are whole; storing it again heals; its bytes are kept."""
    path = pack_of(folder, KIND_DATA, "one")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + bytes(10))
    lose(folder / "root")

    report = rebuild(folder)

    assert not report.complete
    assert "damaged" in report.notes[0] or "footer" in report.notes[0]
    assert Path(f"{path}.damaged").read_bytes() == whole[:-10] + bytes(10)
    assert {(item.kind, item.id) for item in report.findings if item.kind != "store"} == {
        ("layer", "one"), ("image", "image"), ("container", "container"),
    }  # fmt: skip
    with opened(folder) as store:
        assert [layer.id for layer in store.layers.all()] == ["one", "two", "own"]
        assert taken_out(store, "two") == shadowing(2)
        for number in range(40):
            store.images.set_data("image", f"small{number}", io.BytesIO(b"%d" % number))
        for _ in range(2):
            assert store.gc().warnings == ()  # merging small packs does not try to read what is lost
        with pytest.raises(Corrupt):
            taken_out(store, "one")
        store.layers.import_(io.BytesIO(layer_of(1)), id="again")
        assert taken_out(store, "one") == taken_out(store, "again") == layer_of(1)
        store.gc()
        assert store.check(content=True).findings == ()


def test_missing_files_leave_the_tree_known(folder: Path) -> None:
    """Where only files' bytes are gone, every entry comes back, and names its lost object."""
    before = state(folder)
    with opened(folder) as store:
        context = store._context
        with context.epochs.shared() as epoch, context.writer() as writer:  # recipes in a pack of their own
            with context.catalog.read() as conn:
                recipes = [
                    bytes(row[0]) for row in conn.execute("SELECT digest FROM object WHERE kind = ?", (KIND_RECIPE,))
                ]
            data = [context.reader.read(digest) for digest in recipes]
            writer._known = lambda digests: ()
            for item in data:
                writer.put(item, KIND_RECIPE)
            writer.finish()
            del epoch
    path = pack_of(folder, KIND_DATA, "one")
    path.unlink()
    lose(folder / "root")

    report = rebuild(folder)

    assert {item.id for item in report.findings if item.kind == "layer"} == {"one"}
    after = facts_of(folder)
    for table in ("layer", "entry", "inode", "content", "content_object"):
        assert after[table] == before[0][table]
    with opened(folder) as store:
        store.layers.import_(io.BytesIO(layer_of(1)), id="again", names=["n"])
        # The content is known, so that only a layer with its files' bytes in other contents brings them back.
        store.layers.import_(io.BytesIO(layer_of(1) + bytes(512)), id="other")
        assert taken_out(store, "one") == layer_of(1)


def facts_of(folder: Path) -> Any:
    with opened(folder) as store, store._context.catalog.read() as conn:
        return facts(conn)


def test_a_sealed_content_whose_listing_is_lost_keeps_its_layer(folder: Path) -> None:
    """It cannot be shown, and says so; sealing the same once more heals it."""
    with opened(folder) as store:
        store.layers.create(id="sealed")
        write(store, "sealed", b"first")
        os.utime(store._context.layout.write_area("sealed", 0) / "tree/written", ns=(5, 5))
        key = store.layers.seal("sealed").contents[0]
        wanted = taken_out(store, "sealed")
        name = store._context.locate([bytes.fromhex(key.removeprefix("native:"))])
        path = store._context.backend.path(next(iter(name.values())).pack)
    path.unlink()
    lose(folder / "root")

    report = rebuild(folder)

    assert any("content native:" in item.message for item in report.findings if item.id == "sealed")
    with opened(folder) as store:
        assert store.layers.get("sealed").contents == (key,)
        with pytest.raises(Corrupt, match="is lost"):
            taken_out(store, "sealed")
        with pytest.raises(Corrupt, match="is lost"):
            store.mount("sealed")
        store.layers.create(id="same")
        write(store, "same", b"first")
        os.utime(store._context.layout.write_area("same", 0) / "tree/written", ns=(5, 5))
        assert store.layers.seal("same").contents == (key,)
        assert taken_out(store, "sealed") == wanted
        store.gc()
        assert store.check(content=True).findings == ()


def recipe_of(store: Store, data: bytes) -> bytes:
    """The recipe that a tar would get."""

    class Sink(RecipeSink):
        def __init__(self, writer: Any) -> None:
            super().__init__(writer)

    from lading.objects.streams import InputStream

    context = store._context
    with context.epochs.shared(), context.writer() as writer:
        sink = Sink(writer)
        written: list[bytes] = []
        sink._encoder._write = written.append
        source = InputStream(io.BytesIO(data))
        ingest_tar(source.read, sink)
        sink._encoder.finish(source.summary().diff_size, source.summary().diff_digest.removeprefix("sha256:"))
        writer.abort()
        return b"".join(written)


def test_a_recipe_that_came_in_as_a_file_before_is_found(tmp_path: Path) -> None:
    """Who knows a layer can store its recipe as a file; its kind then says nothing. A file that lies is not believed."""
    data = layer_of(3)
    with opened(tmp_path) as store:
        recipe = recipe_of(store, data)
        lying = recipe_of(store, shadowing(8))[:-32] + recipe[-32:]
        store.layers.import_(io.BytesIO(tree({"lie": lying, "truth": recipe})), id="hostile")
        store.layers.import_(io.BytesIO(data), id="victim")
        with store._context.catalog.read() as conn:
            query = "SELECT o.kind FROM content c JOIN object o ON o.id = c.recipe_id JOIN layer l ON l.replay_content_id = c.id WHERE l.id = 'victim'"
            assert conn.execute(query).fetchone()[0] == KIND_DATA
        before = told(store)
    lose(tmp_path / "root")

    assert rebuild(tmp_path).complete
    assert state(tmp_path) == before


@pytest.mark.parametrize("newer", [True, False])
def test_of_two_copies_the_sound_one_is_taken(folder: Path, newer: bool) -> None:
    """Whichever pack is the newer one."""
    path = pack_of(folder, KIND_DATA, "one")
    with opened(folder) as store:
        objects = read_index(store._context.backend, path.stem.removesuffix(".pack")).objects
        from lading.objects.repack import repack

        staging = Staging(store._context.layout.staging)
        made = repack(store._context.backend, staging, objects)
        staging.close()
        copy = store._context.backend.path(made.name)
    bad = copy if newer else path
    raw = bytearray(bad.read_bytes())
    for item in objects:
        raw[item.offset + item.stored_size // 2] ^= 0xFF
    bad.write_bytes(raw)
    os.utime(copy, ns=(path.stat().st_mtime_ns + 5, path.stat().st_mtime_ns + 5))
    before = [layer_of(1), shadowing(2)]
    lose(folder / "root")

    assert rebuild(folder).complete

    with opened(folder) as store:
        assert [taken_out(store, name) for name in ("one", "two")] == before
        store.gc()
        assert [taken_out(store, name) for name in ("one", "two")] == before
        assert store.check(content=True).findings == ()


def flip(folder: Path, what: bytes, segment: int = 1) -> None:
    """Damage a line of the journal."""
    path = folder / f"root/journal/{segment:08d}.log"
    data = path.read_bytes()
    assert what in data
    path.write_bytes(data.replace(what, bytes([what[0] ^ 1]) + what[1:], 1))


def test_a_hole_in_the_journal_is_told_and_costs_only_what_is_in_it(folder: Path) -> None:
    """Names that moved in it go to whoever has them last. The rebuilt store has a journal without a hole."""
    with opened(folder) as store:
        store.layers.create(id="a", names=["moves"])
        store.layers.create(id="b")
        store.layers.create(id="lost")
        store.set_metadata("b", "in the hole")
        store.set_names("b", ["moves"])
        store.set_names("one", ["moves"])
    path = folder / "root/journal/00000001.log"
    path.write_bytes(b"".join(
        line.replace(b'"at"', b'"AT"') if any(word in line for word in (b'"lost"', b'"id":"a","names":[]')) else line
        for line in path.read_bytes().splitlines(keepends=True)
    ))  # fmt: skip
    lose(folder / "root")

    report = rebuild(folder)

    assert len([note for note in report.notes if "damaged or missing" in note]) == 2
    assert any(note.startswith('layer a loses the name "moves"') for note in report.notes)
    assert any(".log.lost-" in kept for kept in report.kept)
    with opened(folder) as store:
        assert not store.layers.exists("lost")
        assert [store.names(name) for name in ("a", "b", "one")] == [(), (), ("moves",)]
        assert store.metadata("b") == "in the hole"
        store.layers.create(id="after")
        before = told(store)
        assert store.check(content=True).findings == ()
    lose(folder / "root")
    assert rebuild(folder).complete
    assert state(folder)[0]["layer"] == before[0]["layer"]


def test_a_lost_snapshot_is_told(folder: Path) -> None:
    """What was said since comes back all the same."""
    patch = pytest.MonkeyPatch()
    patch.setattr("lading.catalog.journal.SEGMENT_SIZE", 100)
    with opened(folder) as store:
        store.gc()
        with store._context.catalog.read() as conn:
            query = "SELECT p.name FROM meta m JOIN object o ON lower(hex(o.digest)) = m.value JOIN pack p ON p.id = o.pack_id WHERE m.key = 'snapshot'"
            path = store._context.backend.path(conn.execute(query).fetchone()[0])
        store.layers.create(id="since")
    patch.undo()
    path.unlink()
    lose(folder / "root")

    report = rebuild(folder)

    assert "every record from before" in report.notes[0]
    with opened(folder) as store:
        assert [layer.id for layer in store.layers.all()] == ["since"]


def test_without_a_journal_the_last_snapshot_counts(folder: Path) -> None:
    """And without that either, an empty catalog is made only by force."""
    patch = pytest.MonkeyPatch()
    patch.setattr("lading.catalog.journal.SEGMENT_SIZE", 100)
    with opened(folder) as store:
        store.gc()
        store.layers.create(id="since")
    patch.undo()
    for path in (folder / "root/journal").glob("*.log"):
        path.unlink()
    lose(folder / "root")

    report = rebuild(folder)

    assert "the journal is lost" in report.notes[0]
    with opened(folder) as store:
        assert [layer.id for layer in store.layers.all()] == ["one", "two", "own"]
        assert taken_out(store, "one") == layer_of(1)
        store.layers.create(id="goes on")
        assert store.check(content=True).findings == ()


def test_nothing_that_tells_of_records_is_no_empty_store(folder: Path) -> None:
    """Packs alone do not say what is to be kept."""
    for path in (folder / "root/journal").glob("*.log"):
        path.unlink()
    lose(folder / "root")

    with pytest.raises(Corrupt, match=r"nothing to make them from; --force"):
        rebuild(folder)
    assert rebuild(folder, force=True).notes
    with opened(folder) as store:
        assert store.layers.all() == []


def test_a_journal_that_lost_its_end_is_made_anew_from_the_catalog(folder: Path) -> None:
    """A rebuild would lose what only the catalog has, and does not begin."""
    before = state(folder)
    path = folder / "root/journal/00000001.log"
    os.truncate(path, path.stat().st_size - 100)

    with opened(folder) as store:
        (finding,) = [item for item in store.check().findings if item.id == "journal"]
        assert "lading catalog rejournal" in finding.message
        with pytest.raises(Corrupt, match="rejournal"):
            store.layers.create(id="x")
    with pytest.raises(Corrupt, match="would lose what only the catalog holds"):
        rebuild(folder, force=True)
    with opened(folder) as store:
        (kept,) = store.rejournal()
        assert ".log.lost-" in kept
        assert store.check(content=True).findings == ()
        with pytest.raises(InvalidInput, match="nothing to renew"):
            store.rejournal()
    lose(folder / "root")
    assert rebuild(folder).complete
    after = state(folder)
    for table in ("layer", "image", "container", "entry", "image_data", "image_name"):
        assert after[0][table] == before[0][table]
    assert after[1] == before[1]


def test_a_hole_in_the_journal_of_a_sound_catalog_is_told(folder: Path) -> None:
    """While the catalog still knows what was in it."""
    flip(folder, b'"layer","one"')

    with opened(folder) as store:
        assert any("lading catalog rejournal" in item.message for item in store.check().findings)
        store.rejournal()
        assert store.check().findings == ()


class Stopped(BaseException):
    """As a kill, seen from within."""


def rebuilt_until(stop: int, folder: Path, *, force: bool = False) -> bool:
    """Rebuild, stopped before the step of that number that changes a name.

    Returns:
        Whether there are fewer steps, so that it is done.
    """
    count = 0

    def counted(act: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any, **options: Any) -> None:
            nonlocal count
            count += 1
            if count == stop:
                raise Stopped
            act(*arguments, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "link", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            rebuild(folder, force=force)
        except Stopped:
            return False
    return True


def test_a_rebuild_that_is_stopped_anywhere_is_run_again(folder: Path) -> None:
    """Every step that changes a name: before, the old catalog is there or none is; the next rebuild finishes."""
    before = state(folder)
    pack = pack_of(folder, KIND_DATA, "one")
    whole = pack.read_bytes()
    for stop in range(1, 30):
        lost = folder / "root/catalog.db"
        if lost.exists() and lost.stat().st_size:
            lost.write_bytes(lost.read_bytes()[:4096])
        done = rebuilt_until(stop, folder)
        if not done:
            assert rebuild_if_needed(folder)
        assert state(folder)[0]["layer"] == before[0]["layer"]
        assert pack.read_bytes() == whole
        if done:
            break
    else:
        raise AssertionError("never done")
    with opened(folder) as store:
        store.gc()
        assert store.check(content=True).findings == ()


def rebuild_if_needed(folder: Path) -> bool:
    try:
        return bool(rebuild(folder).complete)
    except InvalidInput:
        return True


def test_containers_that_end_with_the_run_root_still_do(tmp_path: Path) -> None:
    """As long as the run root is there they are, too."""
    chosen = Settings(transient=True)
    with Store.open(tmp_path / "root", run=tmp_path / "run", driver="vfs", settings=chosen) as store:
        store.layers.import_(io.BytesIO(layer_of(1)), id="one")
        store.images.create("one", id="image")
        store.containers.create("image", id="short")
    lose(tmp_path / "root")
    assert rebuild(tmp_path).complete
    with opened(tmp_path) as store:
        assert store.containers.exists("short")
    lose(tmp_path / "root")
    assert rebuild(tmp_path).complete
    shutil.rmtree(tmp_path / "run")

    with opened(tmp_path) as store:
        assert store.containers.all() == []
        assert [layer.id for layer in store.layers.all()] == ["one"]


def test_lines_that_were_never_synced_go_with_the_one_that_power_took(tmp_path: Path) -> None:
    """A relaxed store loses its newest commits as if they were never made; that is no damage."""
    relaxed = Settings(sync="relaxed")
    with Store.open(tmp_path / "root", run=tmp_path / "run", driver="vfs", settings=relaxed) as store:
        store.layers.create(id="safe")
        store._context.catalog.make_durable("test")
        for name in ("kept", "torn", "behind"):
            store.layers.create(id=name)
    flip(tmp_path, b'"layer","torn"')
    lose(tmp_path / "root")
    assert find_chain(tmp_path / "root/journal").dropped == 1

    assert rebuild(tmp_path).complete

    with opened(tmp_path) as store:
        assert [layer.id for layer in store.layers.all()] == ["safe", "kept"]
        store.layers.create(id="on")
        assert store.check().findings == ()


def test_a_snapshot_of_nothing_is_one(tmp_path: Path) -> None:
    """It has no bytes, so that no pack holds it; what came before it does not come back."""
    patch = pytest.MonkeyPatch()
    patch.setattr("lading.catalog.journal.SEGMENT_SIZE", 100)
    with opened(tmp_path) as store:
        store.layers.create(id="gone")
        store.wipe()
        store.gc()
        assert store.check().findings == ()
        store.layers.create(id="new")
    patch.undo()
    lose(tmp_path / "root")

    assert rebuild(tmp_path).complete
    with opened(tmp_path) as store:
        assert [layer.id for layer in store.layers.all()] == ["new"]


def test_a_catalog_that_is_there_helps_out_for_a_pack_that_lost_its_index(folder: Path) -> None:
    """The bytes are all there: making a sound catalog again must not lose them."""
    path = pack_of(folder, KIND_DATA, "one")
    path.write_bytes(path.read_bytes()[:-10] + bytes(10))
    before = state(folder)

    report = rebuild(folder, force=True)

    assert "taken from the catalog that was there" in report.notes[0]
    assert path.exists()
    assert state(folder) == before


def test_a_schema_that_seems_newer_is_left_alone_unless_forced(folder: Path) -> None:
    """A newer version's catalog may hold what this one knows nothing of; a flipped bit looks the same."""
    before = state(folder)
    with opened(folder) as store:
        store._context.catalog.connection().execute("PRAGMA user_version = 999")

    with pytest.raises(Unsupported, match=r"999.*--force"):
        rebuild(folder)

    assert rebuild(folder, force=True).complete
    assert state(folder) == before


def test_a_process_that_comes_to_open_the_catalog_meanwhile_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is as it was before."""
    before = state(folder)
    calls = []

    def refuse(layout: Any, shared: Any = None) -> None:
        calls.append(shared)
        if len(calls) == 1:
            raise Busy("somebody came")

    monkeypatch.setattr("lading.flows.install.refuse_open", refuse)
    with pytest.raises(Busy, match="somebody came"):
        rebuild(folder, force=True)

    assert state(folder) == before
    assert list((folder / "root").glob("*lost*")) == []
    assert rebuild(folder, force=True).complete


def test_a_hollow_content_is_filled_from_its_tar(folder: Path) -> None:
    """As any damage that a check heals."""
    pack_of(folder, KIND_RECIPE, "one").unlink()
    lose(folder / "root")
    assert not rebuild(folder).complete
    (folder / "one.tar").write_bytes(layer_of(1))

    with opened(folder) as store:
        store.check()
        report = store.heal([str(folder / "one.tar")])

        assert report.left == 0, report.lines()
        assert taken_out(store, "one") == layer_of(1)
        assert "shared/3" in str(store.layers.changes("one"))
        assert store.check(content=True).findings == ()


def test_a_rebuild_of_a_sound_store_that_is_stopped_anywhere_leaves_one(folder: Path) -> None:
    """Nobody needs to repair it: the old catalog is there, or whoever opens the store next puts the new one in its place."""
    before = state(folder)
    finished = 0
    for stop in range(1, 30):
        done = rebuilt_until(stop, folder, force=True)
        finished += not (folder / "root/catalog.db").exists()
        assert state(folder)[0] == before[0]
        assert not (folder / "root/catalog.db.new").exists()
        if done:
            break
    else:
        raise AssertionError("never done")
    assert finished >= 1


def test_a_new_catalog_is_no_better_than_one_that_is_there(folder: Path) -> None:
    """A rebuild was stopped before the old catalog went, and that one was written to since."""
    root = folder / "root"
    (root / "catalog.db.new").write_bytes((root / "catalog.db").read_bytes())
    with opened(folder) as store:
        assert not (root / "catalog.db.new").exists()
        assert store.check().findings == ()


def test_a_full_disk_ends_a_rebuild_and_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is not what could not be read."""
    before = state(folder)

    def full(*_: Any) -> int:
        raise Full("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lading.flows.replaying.add_tar", full)
        with pytest.raises(Full):
            rebuild(folder, force=True)
    assert state(folder) == before
    assert list((folder / "root/objects/staging").iterdir()) == []


def test_a_journal_whose_renewal_failed_is_still_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a segment that was not committed to hides no hole, and the segments go before the next line comes."""
    with opened(folder) as store:
        store.set_metadata("image", "another")
        first = folder / "root/journal/00000001.log"
        data = bytearray(first.read_bytes())
        data[len(data) // 2] ^= 1
        first.write_bytes(data)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr("lading.flows.journaling._hold", lambda *_: (_ for _ in ()).throw(Full("no space")))
                with pytest.raises(Full):
                    store.rejournal()
            assert ["rejournal" in finding.message for finding in store.check().findings] == [True]
        assert len(list((folder / "root/journal").glob("*.log"))) == 3
        store.set_metadata("image", "a third")
        assert [path.name for path in (folder / "root/journal").glob("*.log")] == ["00000001.log"]
        store.rejournal()
        assert store.check().findings == ()
    told_before = state(folder)[0]
    (folder / "root/catalog.db").unlink()
    assert rebuild(folder).complete
    assert state(folder)[0] | {"event": []} == told_before | {"event": []}  # the audit log begins at the snapshot


def test_what_says_nothing_of_a_pack_puts_none_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few descriptors, for instance."""
    before = state(folder)[0]
    (folder / "root/catalog.db").unlink()

    def refuse(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("lading.flows.rebuild.read_index", refuse)
        with pytest.raises(OSError, match="too many"):
            rebuild(folder)
    assert list((folder / "root/objects/staging").iterdir()) == []
    assert rebuild(folder).complete
    assert state(folder)[0]["layer"] == before["layer"]


def test_a_second_rebuild_knows_what_the_first_had_from_the_old_catalog(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack's own index is lost; the first run was stopped while the new catalog took its place, and left an empty file."""
    pack = pack_of(folder, KIND_DATA, "one")
    data = bytearray(pack.read_bytes())
    data[-80] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    assert rebuild(folder, force=True).notes
    assert pack.exists()
    with monkeypatch.context() as patch:
        patch.setattr("lading.flows.install.refuse_open", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rebuild(folder, force=True)
    (folder / "root/catalog.db").touch()

    assert "taken from the catalog" in rebuild(folder).notes[0]
    assert pack.exists()
    with opened(folder) as store:
        assert taken_out(store, "one") == layer_of(1)


def test_a_catalog_that_is_replaced_while_it_is_opened_is_opened_again(folder: Path) -> None:
    """SQLite would go on with the old file and the new one's log."""
    root = folder / "root"
    with opened(folder) as store:
        catalog = store._context.catalog
        catalog.close()
        connect = type(catalog.database).connection
        replaced: list[int] = []

        def late(self: Any) -> Any:
            found = connect(self)
            if not replaced:
                replaced.append(1)
                (root / "other").write_bytes((root / "catalog.db").read_bytes())
                os.rename(root / "other", root / "catalog.db")
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(catalog.database), "connection", late)
            store.set_metadata("image", "new")
    with opened(folder) as store:
        assert store.images.get("image").metadata == "new"
