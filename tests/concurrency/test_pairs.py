"""Two operations at once, the one stopped where the other can hurt it most."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import pytest

from lading import Store
from lading.errors import LayerUnknown
from tests.concurrency.processes import Crew, Failed, Line, stopping_at
from tests.tarmake import END, file

OURS = b"ours"


def large(seed: int, count: int = 60) -> bytes:
    """A layer of some megabytes that do not compress, in many objects."""
    return b"".join(file(b"f%d" % n, random.Random(seed * 1000 + n).randbytes(90_000)) for n in range(count)) + END


def small(name: bytes = b"f", data: bytes = OURS) -> bytes:
    return file(name, data) + END


def slow_diff(store: Store, line: Line, ref: str) -> str:
    """Stream a diff, stopping after the first chunk and once more later."""
    state = hashlib.sha256()
    with store.layers.diff(ref, compression=0) as chunks:
        for number, chunk in enumerate(chunks):
            state.update(chunk)
            if number in (0, 2):
                line.pause("streaming")
    return state.hexdigest()


def slow_diff_of_write_area(store: Store, line: Line, ref: str) -> list[bytes]:
    """The diff of a layer that is mounted, stopping before any file is read."""
    with store.layers.diff(ref, compression=0) as chunks, stopping_at(line, "lading.flows.views:LiveFiles._read"):
        return [b"".join(chunks)]


def slow_data(store: Store, line: Line, ref: str, key: str) -> bytes:
    with stopping_at(line, "lading.objects.reader:ObjectReader.contents", words="found"):
        return b"".join(store.images.data(ref, key))


def changes(store: Store, line: Line, ref: str) -> list[str]:
    with stopping_at(line, "lading.flows.views:stack"):
        return [change.path.decode() for change in store.layers.changes(ref)]


def gc(store: Store, line: Line) -> int:
    del line
    return store.gc().freed_bytes


def gc_stopping(store: Store, line: Line, target: str) -> None:
    with stopping_at(line, target):
        store.gc()


def evict_stopping(store: Store, line: Line, target: str) -> None:
    with stopping_at(line, target):
        store.cache.evict()


def mount(store: Store, line: Line, ref: str) -> Path:
    del line
    return store.mount(ref)


def mount_stopping(store: Store, line: Line, ref: str, target: str) -> Path:
    with stopping_at(line, target):
        return store.mount(ref)


def unmount(store: Store, line: Line, ref: str) -> bool:
    del line
    return store.unmount(ref)


def unmount_stopping(store: Store, line: Line, ref: str, target: str) -> bool:
    with stopping_at(line, target):
        return store.unmount(ref)


def seal_stopping(store: Store, line: Line, ref: str, target: str) -> None:
    with stopping_at(line, target):
        store.layers.seal(ref)


def delete(store: Store, line: Line, ref: str) -> None:
    del line
    store.layers.delete(ref)


def delete_stopping(store: Store, line: Line, ref: str, target: str) -> None:
    with stopping_at(line, target):
        store.layers.delete(ref)


def checkout_stopping(store: Store, line: Line, ref: str, folder: Path) -> None:
    with stopping_at(line, "lading.flows.checkouts:copy_tree"):
        store.checkout(ref, folder)


def commit_stopping(store: Store, line: Line, ref: str) -> str:
    with stopping_at(line, "lading.flows.sealing:store_native"):
        return store.commit(ref).id


def clone_stopping(store: Store, line: Line, ref: str) -> str:
    with stopping_at(line, "lading.flows.sealing:store_native"):
        return store.clone(ref).id


def import_layer(store: Store, line: Line, data: bytes, id: str, parent: str = "") -> str:
    del line
    return store.layers.import_(io.BytesIO(data), id=id, parent=parent).id


def ingest(crew: Crew, *layers: tuple[str, bytes]) -> None:
    with Store.open(crew.root, run=crew.run) as store:
        for id, data in layers:
            store.layers.import_(io.BytesIO(data), id=id)


def layer_ids(crew: Crew) -> list[str]:
    with Store.open(crew.root, run=crew.run) as store:
        return [layer.id for layer in store.layers.all()]


def diff_of(crew: Crew, ref: str) -> bytes:
    with Store.open(crew.root, run=crew.run) as store, store.layers.diff(ref, compression=0) as chunks:
        return b"".join(chunks)


def test_a_long_diff_ends_byte_exact_although_its_layer_goes_and_packs_are_rewritten(crew: Crew) -> None:
    """The layer is deleted while it streams, collections run, and what it shares with others moves to new packs."""
    shared = large(1, 30)[:-1024]
    ingest(crew, ("a", shared + large(2, 40)), ("b", shared + large(3, 5)))
    streaming = crew.hire().start(slow_diff, "a")
    other = crew.hire(repack_share=0.01, pack_size=1 << 20)
    assert streaming.heard() == "streaming"
    other.run(delete, "a")
    other.run(gc)
    streaming.go_on()
    assert streaming.heard() == "streaming"
    other.run(import_layer, large(4, 10), "c")
    other.run(delete, "c")
    other.run(gc)
    streaming.go_on()
    assert streaming.result() == hashlib.sha256(shared + large(2, 40)).hexdigest()
    assert other.run(gc) > 2_000_000
    assert diff_of(crew, "b") == shared + large(3, 5)


def test_a_diff_goes_on_where_its_packs_are_rewritten(crew: Crew) -> None:
    """Objects that were looked up before move: the old file is held, or they are looked up once more."""
    ingest(crew, ("a", large(1)))
    with Store.open(crew.root, run=crew.run) as store:
        store.layers.import_(io.BytesIO(large(1)[:-1024] + large(2)), id="b")
    streaming = crew.hire().start(slow_diff, "a")
    assert streaming.heard() == "streaming"
    other = crew.hire(repack_share=0.0)
    other.run(delete, "b")
    other.run(gc)
    streaming.go_on()
    assert streaming.heard() == "streaming"
    other.run(gc)
    streaming.go_on()
    assert streaming.result() == hashlib.sha256(large(1)).hexdigest()


def test_big_data_that_was_found_is_read_although_it_is_replaced_and_collected(crew: Crew) -> None:
    """What is read is what was there when it was looked up."""
    with Store.open(crew.root, run=crew.run) as store:
        store.images.create(id="i")
        store.images.set_data("i", "k", io.BytesIO(b"before" * 1000))
    reading = crew.hire().start(slow_data, "i", "k")
    assert reading.heard() == "found"
    with Store.open(crew.root, run=crew.run) as store:
        store.images.set_data("i", "k", io.BytesIO(b"after"))
        store.gc()
        store.gc()
    reading.go_on()
    assert reading.result() == b"before" * 1000


def test_changes_of_a_layer_that_is_deleted_and_collected_meanwhile(crew: Crew) -> None:
    """They are what they were, never an empty list."""
    ingest(crew, ("a", small()))
    reading = crew.hire().start(changes, "a")
    assert reading.heard() == "there"
    other = crew.hire()
    other.run(delete, "a")
    other.run(gc)
    reading.go_on()
    found: list[str] | str
    try:
        found = reading.result()
    except Failed as error:
        found = error.kind
    assert found in (["/f"], "LayerUnknown")
    ingest(crew, ("a", small()))


@pytest.mark.privileged
class TestMounts:
    """Mounting against everything."""

    def test_a_layer_that_is_being_mounted_is_deleted(self, crew: Crew) -> None:
        """The deletion waits for the mount, unmounts it as nobody is in it, and deletes; both are told the truth."""
        ingest(crew, ("a", small()))
        mounting = crew.hire().start(mount_stopping, "a", "lading.flows.mounting:_namespace")
        assert mounting.heard() == "there"
        deleting = crew.hire().start(delete, "a")
        mounting.go_on()
        mounting.result()
        deleting.result()
        assert layer_ids(crew) == []
        with Store.open(crew.root, run=crew.run) as store:
            assert store.mounts() == []
        assert list((crew.root / "layers").iterdir()) == []

    def test_a_layer_that_is_being_deleted_is_mounted(self, crew: Crew) -> None:
        """The mount waits, and finds nothing."""
        ingest(crew, ("a", small()))
        deleting = crew.hire().start(delete_stopping, "a", "lading.flows.layers:delete_rows")
        assert deleting.heard() == "there"
        mounting = crew.hire().start(mount, "a")
        deleting.go_on()
        deleting.result()
        assert mounting.outcome() == "LayerUnknown"

    @pytest.mark.parametrize(
        "target", ["lading.flows.mounting:_namespace", "lading.materialize.mounttable:MountTable.put"]
    )
    def test_a_collection_and_an_eviction_leave_what_is_being_mounted(self, crew: Crew, target: str) -> None:
        """Before the kernel has it, and before there is a record."""
        ingest(crew, ("a", small()))
        mounting = crew.hire().start(mount_stopping, "a", target)
        assert mounting.heard() == "there"
        crew.hire(wait_s=0.1).run(gc)
        evicting = crew.hire().start(evict_stopping, "lading.materialize.cache:_execute")
        mounting.go_on()
        path = mounting.result()
        assert evicting.heard() == "there"
        evicting.go_on()
        evicting.result()
        assert (path / "f").read_bytes() == OURS

    def test_an_eviction_that_has_begun_sees_mounts_that_came_before_its_lock(self, crew: Crew) -> None:
        """What to keep is asked for under the lock: a farm below a mount must not go."""
        ingest(crew, ("a", small()))
        evicting = crew.hire(strategy="farm").start(evict_stopping, "lading.materialize.cache:cache_lock")
        assert evicting.heard() == "there"
        path = crew.hire(strategy="farm").run(mount, "a")
        evicting.go_on()
        evicting.result()
        assert (path / "f").read_bytes() == OURS

    def test_an_ancestor_is_sealed_while_a_child_is_mounted_upon_its_write_area(self, crew: Crew) -> None:
        """Its files are seen all the same, from the live area or from the sealed content."""
        ingest(crew, ("a", small(b"base")))
        with Store.open(crew.root, run=crew.run) as store:
            (store.mount("a") / "late").write_bytes(OURS)
            store.layers.create("a", id="b")
        for target in ("lading.flows.mounting:_prepare_upper", "lading.materialize.mounttable:MountTable.put"):
            mounting = crew.hire().start(mount_stopping, "b", target)
            assert mounting.heard() == "there"
            assert crew.hire().run(unmount, "a")
            mounting.go_on()
            path = mounting.result()
            assert (path / "late").read_bytes() == OURS
            assert (path / "base").read_bytes() == OURS
            with Store.open(crew.root, run=crew.run) as store:
                assert store.unmount("b")
                (store.mount("a") / "later").write_bytes(OURS)

    def test_a_write_area_that_is_being_read_stays_until_it_was_read(self, crew: Crew) -> None:
        """A diff of a child reads the parent's area, which is sealed meanwhile; a collection takes it afterwards."""
        ingest(crew, ("a", small(b"base")))
        with Store.open(crew.root, run=crew.run) as store:
            (store.mount("a") / "late").write_bytes(OURS * 1000)
            store.layers.create("a", id="b")
        reading = crew.hire().start(slow_diff_of_write_area, "a")
        with Store.open(crew.root, run=crew.run) as store, store.layers.diff("a", "", compression=0) as chunks:
            replayed = b"".join(chunks)
        assert replayed == small(b"base")  # what was applied, not what was written since
        assert reading.result() == [replayed]
        with Store.open(crew.root, run=crew.run) as store:
            (store.mount("b") / "own").write_bytes(OURS)
        reading = crew.hire().start(slow_diff_of_write_area, "b")
        assert reading.heard() == "there"
        with Store.open(crew.root, run=crew.run) as store:
            store.layers.create("b", id="c")
            store.unmount("b")
            assert store.layers.get("b").write_kind == ""
        reading.go_on()
        (found,) = reading.result()
        assert found == diff_of(crew, "b")
        assert OURS in found
        with Store.open(crew.root, run=crew.run) as store:
            store.gc()
        assert not (crew.root / "layers/b/0").exists()

    def test_a_mount_waits_for_a_seal(self, crew: Crew) -> None:
        """And shows what was sealed."""
        ingest(crew, ("a", small(b"base")))
        with Store.open(crew.root, run=crew.run) as store:
            (store.mount("a") / "late").write_bytes(OURS)
            store.unmount("a")
        sealing = crew.hire().start(seal_stopping, "a", "lading.flows.sealing:store_native")
        assert sealing.heard() == "there"
        mounting = crew.hire().start(mount, "a")
        sealing.go_on()
        sealing.result()
        path = mounting.result()
        assert (path / "late").read_bytes() == OURS
        with Store.open(crew.root, run=crew.run) as store:
            assert len(store.layers.get("a").contents) == 2

    def test_a_seal_is_refused_once_the_layer_is_being_mounted(self, crew: Crew) -> None:
        ingest(crew, ("a", small()))
        mounting = crew.hire().start(mount_stopping, "a", "lading.materialize.mounttable:MountTable.put")
        assert mounting.heard() == "there"
        sealing = crew.hire().start(seal_stopping, "a", "lading.flows.sealing:store_native")
        mounting.go_on()
        mounting.result()
        assert sealing.outcome() == "LayerMounted"

    def test_two_unmounts_of_one_mount(self, crew: Crew) -> None:
        """One unmounts; the other waits, and finds it done."""
        ingest(crew, ("a", small()))
        path = crew.hire().run(mount, "a")
        one = crew.hire().start(unmount_stopping, "a", "lading.materialize.mounts:unmount")
        assert one.heard() == "there"
        other = crew.hire().start(unmount, "a")
        one.go_on()
        assert (one.result(), other.result()) == (True, True)
        assert not path.exists()

    def test_two_unmounts_of_the_last_two_counts(self, crew: Crew) -> None:
        """Exactly one of them unmounts."""
        ingest(crew, ("a", small()))
        workers = [crew.hire(), crew.hire()]
        paths = {worker.run(mount, "a") for worker in workers}
        assert len(paths) == 1
        one = workers[0].start(unmount_stopping, "a", "lading.materialize.mounttable:MountTable.drop")
        assert one.heard() == "there"
        other = workers[1].start(unmount, "a")
        one.go_on()
        assert [one.result(), other.result()] == [False, True]

    def test_two_mounts_of_one_layer_are_one_mount(self, crew: Crew) -> None:
        ingest(crew, ("a", small()))
        one = crew.hire().start(mount_stopping, "a", "lading.flows.mounting:_namespace")
        assert one.heard() == "there"
        other = crew.hire().start(mount, "a")
        one.go_on()
        assert one.result() == other.result()
        with Store.open(crew.root, run=crew.run) as store:
            assert [mounted.count for mounted in store.mounts()] == [2]

    def test_a_checkout_ends_although_its_layer_is_deleted(self, crew: Crew, tmp_path: Path) -> None:
        """Deleted and collected, between the look-up and the copying."""
        ingest(crew, ("a", large(1, 10)))
        writing = crew.hire().start(checkout_stopping, "a", tmp_path / "out")
        assert writing.heard() == "there"
        other = crew.hire()
        other.run(delete, "a")
        other.run(gc)
        writing.go_on()
        writing.result()
        assert (tmp_path / "out/f3").read_bytes() == random.Random(1003).randbytes(90_000)

    @pytest.mark.parametrize("verb", [commit_stopping, clone_stopping])
    def test_a_container_is_written_to_while_it_is_taken(self, crew: Crew, verb: object) -> None:
        """What was written before is in it; what is written after may be in the next one."""
        ingest(crew, ("a", small(b"base")))
        with Store.open(crew.root, run=crew.run) as store:
            store.images.create("a", id="i")
            store.containers.create("i", id="c")
            path = store.mount("c")
            (path / "before").write_bytes(OURS)
        taking = crew.hire().start(verb, "c")  # type: ignore[arg-type]
        assert taking.heard() == "there"
        (path / "after").write_bytes(OURS)
        unmounting = crew.hire().start(unmount, "c")
        taking.go_on()
        made = taking.result()
        assert unmounting.result()
        with Store.open(crew.root, run=crew.run) as store:
            layer = store.images.get(made).layer if verb is commit_stopping else store.containers.get(made).layer
            shown = store.mount(layer)
            assert sorted(item.name for item in shown.iterdir()) == ["base", "before"]
            store.unmount(layer)
            assert sorted(item.name for item in store.mount("c").iterdir()) == ["after", "base", "before"]

    def test_what_a_kill_left_of_a_deleted_layer_is_not_seen_in_a_new_one_of_its_id(self, crew: Crew) -> None:
        """The record goes first: a kill before the write area has gone leaves it, under an id that is free again."""
        ingest(crew, ("a", small(b"base")))
        with Store.open(crew.root, run=crew.run) as store:
            (store.mount("a") / "secret").write_bytes(OURS)
            store.unmount("a")
        deleting = crew.hire().start(delete_stopping, "a", "lading.flows.areas:remove_unused")
        assert deleting.heard() == "there"
        deleting.kill()
        ingest(crew, ("a", small(b"base")))
        with Store.open(crew.root, run=crew.run) as store:
            assert [item.name for item in store.mount("a").iterdir()] == ["base"]


def read_beside(store: Store, line: Line, main: Path, own: Path) -> list[str]:
    """Look at a store that is only beside, over and over, while it is written to."""
    from lading.config import Settings

    del store
    seen: list[str] = []
    with Store.open(own, run=own.parent / "own-run", settings=Settings(additional_stores=(str(main),))) as reader:
        line.pause("open")
        for _ in range(40):
            for layer in reader.layers.all():
                try:
                    with reader.layers.diff(layer.id, compression=0) as chunks:
                        data = b"".join(chunks)
                except LayerUnknown:
                    continue
                if data != small(layer.id.encode(), layer.id.encode() * 100):
                    seen.append(layer.id)
            line.tell("looked")
    return seen


def test_a_store_beside_is_read_while_its_owner_writes_and_collects(crew: Crew, tmp_path: Path) -> None:
    """Every layer that is listed can be read byte for byte, or has gone."""
    reading = crew.hire().start(read_beside, crew.root, tmp_path / "own")
    assert reading.heard() == "open"
    writer = crew.hire(repack_share=0.0)
    writer.run(import_layer, small(b"l", b"l" * 100), "l")
    reading.go_on()
    for turn in range(20):
        name = f"l{turn}"
        writer.run(import_layer, small(name.encode(), name.encode() * 100), name)
        if turn % 3 == 2:
            writer.run(delete, f"l{turn - 1}")
            writer.run(gc)
    assert reading.result() == []
