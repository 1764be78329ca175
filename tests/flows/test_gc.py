"""Collection and accounting: exact, in proportion, never too early."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.catalog import content
from lading.errors import Corrupt
from lading.objects.durable import Staging
from lading.values import PackContents
from tests.flows.test_layers import taken_out
from tests.tarmake import END, file, tree


def on_disk(store: Store) -> int:
    """Sizes of all files below the root, an inode once."""
    seen = {}
    for folder, _, names in os.walk(store.root):
        for name in names:
            status = os.lstat(Path(folder, name))
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def layer_of(seed: int, files: int = 20, shared: int = 10) -> bytes:
    """A layer: some files that all have, some of its own."""
    common, own = random.Random(0), random.Random(seed)
    parts = {f"shared/{number}": common.randbytes(3000) for number in range(shared)}
    parts.update({f"own/{seed}/{number}": own.randbytes(3000) for number in range(files)})
    return tree(parts)


def test_a_dry_run_is_the_run_to_the_byte(store: Store) -> None:
    """Deleting one image of several: what is shared stays."""
    images = [store.images.create(store.layers.import_(io.BytesIO(layer_of(seed))).id) for seed in range(1, 7)]
    kept = {image.id: taken_out(store, image.layer) for image in images[1:]}
    store.images.delete(images[0].id)
    before = store.balance()

    plan = store.plan_gc()
    dry = store.gc(dry_run=True)
    report = plan.execute()
    after = store.balance()

    packs = [sum(size for name, size in found.classes.items() if name.startswith("packs")) for found in (before, after)]
    assert dry == plan.report
    assert report == dry
    assert packs[0] - packs[1] == report.freed_bytes > 20 * 3000
    assert after.total == on_disk(store)
    assert {image.id: taken_out(store, image.layer) for image in images[1:]} == kept
    assert store.check(content=True).findings == ()
    assert store.gc().freed_bytes == 0
    with pytest.raises(RuntimeError):
        plan.execute()


def test_worn_packs_are_rewritten_as_foretold(tmp_path: Path) -> None:
    """Live objects move; the new pack has the size that was said."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(repack_share=0.2)) as store:
        store.layers.import_(io.BytesIO(layer_of(1, files=50, shared=30)), id="goes")
        store.layers.import_(io.BytesIO(layer_of(2, files=1, shared=30)), id="stays")
        wanted = taken_out(store, "stays")
        store.layers.delete("goes")

        dry = store.gc(dry_run=True)
        report = store.gc()

        assert report == dry
        assert report.packs_rewritten >= 1
        assert store.balance().classes["packs: dead"] == 0
        assert taken_out(store, "stays") == wanted
        assert store.check(content=True).findings == ()


def test_many_small_packs_are_merged(store: Store) -> None:
    """Each data item came in a pack of its own."""
    image = store.images.create()
    for number in range(40):
        store.images.set_data(image.id, f"k{number}", io.BytesIO(b"data of %d" % number))

    dry, report = store.gc(dry_run=True), store.gc()

    assert report == dry
    assert len(list((store.root / "objects/packs").rglob("*.pack"))) == 1
    assert [b"".join(store.images.data(image.id, f"k{number}")) for number in range(40)] == [
        b"data of %d" % number for number in range(40)
    ]


def test_replaced_data_is_garbage(store: Store) -> None:
    """And the bytes of a deleted record's data."""
    image = store.images.create(big_data={"k": os.urandom(5000)})
    store.images.set_data(image.id, "k", io.BytesIO(os.urandom(5000)))

    assert store.gc().freed_bytes > 5000
    store.images.delete(image.id)
    assert store.gc().freed_bytes > 5000
    assert store.balance().classes["packs: live"] == 0


def test_what_a_running_operation_relies_on_stays(store: Store) -> None:
    """A diff that was opened before the layer was deleted comes out whole; the bytes go later."""
    layer = store.layers.import_(io.BytesIO(layer_of(1, files=400)))
    wanted = taken_out(store, layer.id)

    with store.layers.diff(layer.id, compression=0) as chunks:
        store.layers.delete(layer.id)
        report = store.gc()
        assert report.freed_bytes == 0
        assert store.gc(dry_run=True).deferred_bytes > 0
        assert b"".join(chunks) == wanted

    assert store.gc().freed_bytes > 400 * 3000


def test_content_that_is_stored_again_while_condemned_is_safe(store: Store) -> None:
    """A look-up treats it as unknown; the new bytes stay when the old ones go."""
    data = layer_of(1)
    first = store.layers.import_(io.BytesIO(data))
    with store._context.epochs.shared():
        store.layers.delete(first.id)
        store.gc()
        again = store.layers.import_(io.BytesIO(data))

    store.gc()

    assert taken_out(store, again.id) == data
    assert store.check(content=True).findings == ()


def test_an_interrupted_ingest_is_collected(store: Store) -> None:
    """Packs that were published, rows that were hidden, files that were staged."""

    class Interrupted(Exception):
        pass

    catalog = store._context.catalog
    write = catalog.write

    def failing(verb: str, *, durable: bool) -> object:
        raise Interrupted(verb, durable)

    catalog.write = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(Interrupted):
        store.layers.import_(io.BytesIO(layer_of(1)))
    catalog.write = write  # type: ignore[method-assign]
    (store.root / "objects/staging/dead").mkdir()
    (store.root / "objects/staging/dead/half.pack").write_bytes(bytes(100))
    stray = store.root / "objects/packs/ab" / ("ab" * 16 + ".pack")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(bytes(50))

    dry, report = store.gc(dry_run=True), store.gc()

    assert report == dry
    assert report.debris_bytes == 150
    assert list((store.root / "objects/packs").rglob("*.pack")) == []
    assert list((store.root / "objects/staging").iterdir()) == []
    assert list(store.query("SELECT count(*) FROM entry UNION ALL SELECT count(*) FROM inode UNION ALL SELECT count(*) FROM object")[1]) == [
        (0,), (0,), (0,),
    ]  # fmt: skip
    layer = store.layers.import_(io.BytesIO(layer_of(1)))
    assert taken_out(store, layer.id) == layer_of(1)


def test_the_next_writer_clears_what_killed_ones_left(store: Store) -> None:
    """But not the folder of one that lives."""
    living = Staging(store.root / "objects/staging")
    (store.root / "objects/staging/dead").mkdir()
    (store.root / "objects/staging/dead/half.pack").write_bytes(bytes(100))

    store.layers.import_(io.BytesIO(layer_of(1)))

    assert list((store.root / "objects/staging").iterdir()) == [living.path]
    living.close()


def test_the_balance_is_the_disk(store: Store, tmp_path: Path) -> None:
    """Class by class, with a container's directory, a checkout's cache and the rest."""
    layer = store.layers.import_(io.BytesIO(layer_of(1)))
    container = store.containers.create(store.images.create(layer.id).id)
    (store.containers.directory(container.id) / "f").write_bytes(b"12")
    store.checkout(container.id, tmp_path / "out")

    balance = store.balance()
    views = dict(store.query("SELECT class, bytes FROM v_store_balance")[1])

    assert balance.total == on_disk(store)
    assert balance.classes["userdata"] == 2
    assert balance.classes["packs: unrecorded"] == 0
    assert {name: balance.classes[name] for name in views} == views


def test_gc_of_an_empty_store_does_nothing(store: Store) -> None:
    """Also twice."""
    assert store.gc().freed_bytes == store.gc().freed_bytes == 0


def test_rows_go_with_the_contents_that_had_them(store: Store) -> None:
    """Paths up to the root, inodes, entries; what another content has stays."""
    store.layers.import_(io.BytesIO(file(b"deep/er/est/f", b"1") + file(b"both", b"2") + END), id="goes")
    store.layers.import_(io.BytesIO(file(b"both", b"2") + END), id="stays")

    store.layers.delete("goes")
    store.gc()

    assert list(store.query("SELECT path FROM path ORDER BY path")[1]) == [("",), ("both",)]
    assert list(store.query("SELECT count(*) FROM inode")[1]) == [(1,)]


def test_a_damaged_pack_is_not_carried_on_by_a_rewrite(tmp_path: Path) -> None:
    """It stays where it is, with a warning, and everything else is collected."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(repack_share=0.1)) as store:
        store.layers.import_(io.BytesIO(layer_of(1, files=50, shared=30)), id="goes")
        store.layers.import_(io.BytesIO(layer_of(2, files=1, shared=30)), id="stays")
        place = "SELECT p.name, o.offset FROM object o JOIN pack p ON p.id = o.pack_id JOIN inode i ON i.object_id = o.id JOIN entry e ON e.inode_id = i.id JOIN path t ON t.id = e.path_id WHERE t.path = 'shared/3' LIMIT 1"
        ((name, offset),) = store.query(place)[1]
        path = store.root / "objects/packs" / name[:2] / f"{name}.pack"
        raw = bytearray(path.read_bytes())
        raw[offset + 9] ^= 1
        path.write_bytes(raw)
        store.layers.delete("goes")

        report = store.gc()

        assert any("left as they are" in warning for warning in report.warnings)
        assert path.exists()
        with pytest.raises(Corrupt):
            taken_out(store, "stays")


def shadowing(seed: int) -> bytes:
    """A tar that holds a name twice, and a leftover of AUFS with content: objects that only the recipe names."""
    own = random.Random(seed).randbytes(5000)
    hidden = random.Random(77).randbytes(5000)
    return file(b"twice", own) + file(b"twice", b"last") + file(b".wh..wh.left", hidden) + END


def test_objects_that_only_a_recipe_names_stay(store: Store) -> None:
    """What a later entry of the same name replaced is still part of the stream."""
    for seed in (1, 2, 3):
        store.layers.import_(io.BytesIO(shadowing(seed)), id=f"layer-{seed}")
    store.layers.import_(io.BytesIO(layer_of(9)), id="other")
    store.gc()
    store.layers.delete("layer-1")
    store.layers.delete("other")

    dry = store.gc(dry_run=True)
    assert store.gc() == dry
    assert store.gc().freed_bytes == 0

    for seed in (2, 3):
        assert taken_out(store, f"layer-{seed}") == shadowing(seed)
    assert store.check(content=True).findings == ()
    for seed in (2, 3):
        store.layers.delete(f"layer-{seed}")
    store.gc()
    assert store.balance().classes["packs: live"] == 0


def test_recipes_of_an_older_catalog_are_read_before_anything_goes(store: Store) -> None:
    """Such a catalog never noted what only recipes name."""
    store.layers.import_(io.BytesIO(shadowing(1)), id="kept")
    with store._context.catalog.write_rows() as conn:
        conn.execute("DELETE FROM content_object")
        conn.execute("INSERT INTO meta (key, value) VALUES ('recipes', 'unread')")

    store.gc()

    assert taken_out(store, "kept") == shadowing(1)
    assert store.check(content=True).findings == ()


def test_a_pack_that_is_being_recorded_is_not_empty(store: Store) -> None:
    """Its row comes before its objects' rows: a collection in between must leave both it and its file."""
    context = store._context
    with context.epochs.shared() as epoch:
        with context.writer() as writer:
            writer.put(b"content" * 100)
            packs = writer.finish()
        half = [PackContents(pack.name, pack.size, ()) for pack in packs]
        content.register_packs(context.catalog, half, epoch)
        with Store.open(store.root, run=store.run_root) as other:
            other.gc()
        content.register_packs(context.catalog, packs, epoch)
        assert context.locate([packs[0].objects[0].digest])
        assert store.check(content=True).findings == ()
