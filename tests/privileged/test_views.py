"""What mounts are stacked from: every fallback by forcing the probe, damage, the budget, shared builds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lading import Store
from lading.cache import Cache
from lading.config import Settings
from lading.errors import Full, InUse, InvalidInput, Unsupported
from lading.flows import lowers
from lading.idmaps import MapRequest, Maps
from lading.materialize import erofs, imagecache, mounts
from lading.values import IDMap
from tests.filesystems import make_filesystem
from tests.flows.test_layers import taken_out
from tests.materialize.samples import describe
from tests.tarmake import END, directory, file, link, symlink

pytestmark = pytest.mark.privileged

LOWER = (
    directory(b"etc/") + file(b"etc/a", b"a" * 5000) + link(b"etc/b", b"etc/a") + symlink(b"l", b"etc/a")
    + directory(b"old/") + file(b"old/x", b"x") + file(b"gone", b"g") + END
)  # fmt: skip
UPPER = (
    file(b".wh.gone", b"")
    + directory(b"old/")
    + file(b"old/.wh..wh..opq", b"")
    + file(b"old/y", b"y")
    + file(b"etc/c", b"c")
    + END
)
MAPS = Maps((IDMap(0, 100_000, 65_536),), (IDMap(0, 100_000, 65_536),))


def opened(folder: Path, **settings: object) -> Store:
    """A store of its own, by overlay."""
    return Store.open(folder / "root", run=folder / "run", driver="overlay", settings=Settings(**settings))  # type: ignore[arg-type]


def images_of(store: Store) -> list[str]:
    """Names of the images in the cache."""
    folder = store.root / "cache/erofs"
    return sorted(item.name for item in folder.glob("*.img")) if folder.is_dir() else []


@pytest.fixture
def two(store: Store) -> str:
    """The upper of two layers."""
    lower = store.layers.import_(io.BytesIO(LOWER))
    return store.layers.import_(io.BytesIO(UPPER), lower.id).id


def shown(path: Path) -> dict[bytes, tuple[object, ...]]:
    """A tree, apart from its root's own time and links' numbers."""
    found = describe(path)
    found.pop(b"", None)
    return found


WAYS: list[dict[str, object]] = [
    {},
    {"erofs_file": False, "erofs_loop": True},
    {"erofs_file": False, "erofs_loop": False, "data_only": False},
    {"lowerdir_plus": False, "shifted_lowers": False},
    {"new_mount_api": False, "lowerdir_plus": False, "shifted_lowers": False},
    {"new_mount_api": False, "lowerdir_plus": False, "shifted_lowers": False, "erofs_file": False, "erofs_loop": True},
    {"strategy": "composefs"},
    {"strategy": "farm"},
]


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("forced", WAYS, ids=lambda forced: "-".join(f"{k}={v}" for k, v in forced.items()) or "best")
def test_every_way_shows_the_same(tmp_path: Path, forced: dict[str, object], *, flatten: bool) -> None:
    """By forcing the probe's answers: file, loop device, farm, older interfaces, redirects."""
    assert not _left(tmp_path)
    forced = dict(forced)
    strategy = str(forced.pop("strategy", ""))
    with opened(tmp_path, strategy=strategy) as store:
        store._context.__dict__["abilities"] = replace(store._context.abilities, **forced)  # type: ignore[arg-type]
        lower = store.layers.import_(io.BytesIO(LOWER))
        top = store.layers.import_(io.BytesIO(UPPER), lower.id)
        container = store.containers.create(store.images.create(top.id).id)

        path = store.mount(container.id, flatten=flatten)
        assert (path / "etc/a").read_bytes() == b"a" * 5000
        assert sorted(os.listdir(path)) == ["etc", "l", "old"]
        assert os.listdir(path / "old") == ["y"]
        with (path / "etc/a").open("ab") as copied_up:
            copied_up.write(b"more")
        (path / "new").write_text("n")
        assert store.unmount(container.id)
        changes = {change.path for change in store.layers.changes(container.layer)}
        assert {b"/etc/a", b"/new"} <= changes
        assert b"/gone" not in changes
        written = taken_out(store, container.layer)
        assert b"a" * 5000 + b"more" in written

        assert not _left(tmp_path)


def _left(folder: Path) -> list[str]:
    """Mounts and loop devices that have to do with a folder; other tests have their own."""
    found = [str(mount.path) for mount in mounts.mountinfo() if mount.path.is_relative_to(folder)]
    for note in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found += [text for text in [note.read_text()] if text.startswith(str(folder))]
    return found


def test_what_is_configured_and_does_not_work_is_named(tmp_path: Path) -> None:
    """Strategy and reason."""
    with opened(tmp_path, strategy="erofs") as store:
        store._context.__dict__["abilities"] = replace(store._context.abilities, erofs_file=False, erofs_loop=False)
        layer = store.layers.import_(io.BytesIO(LOWER))
        with pytest.raises(
            Unsupported, match=r"strategy erofs does not work here: EROFS images on .* cannot be mounted"
        ):
            store.mount(layer.id)


def test_two_layers_with_one_diff_share_an_image(store: Store) -> None:
    """Images are of contents, not of layers."""
    ids = [store.layers.import_(io.BytesIO(LOWER)).id for _ in range(2)]
    for layer_id in ids:
        store.mount(layer_id)
    assert len(images_of(store)) == 1
    assert [set(view.layers) for view in store.cache.all() if view.kind == "image"] == [set(ids)]


def test_a_mapped_container_starts_without_a_copy(store: Store, two: str) -> None:
    """Owners are shifted by the mount of the image."""
    image = store.images.create(two)
    store.cache.prefetch(image.id)
    cached = images_of(store)
    container = store.containers.create(image.id, idmap=MapRequest(MAPS))
    path = store.mount(container.id)

    assert os.stat(path / "etc/a").st_uid == 100_000
    assert images_of(store) == cached
    area = next((store.root / "layers" / container.layer).iterdir())
    assert [item.name for item in (area / "upper").rglob("*")] == []


@pytest.mark.parametrize("damage", ["metadata", "data", "cut", "gone", "description"])
def test_a_damaged_image_of_another_boot_is_never_mounted(store: Store, two: str, damage: str) -> None:
    """It is written again, and the tree is whole."""
    store.cache.evict()
    path = store.mount(two)
    whole = shown(path)
    store.unmount(two)
    for name in images_of(store):
        image = store.root / "cache/erofs" / name
        note = image.with_suffix(".json")
        values = json.loads(note.read_text())
        note.write_text(json.dumps({**values, "boot": "another"}))
        if damage == "gone":
            image.unlink()
        elif damage == "description":
            note.write_text("{")
        elif damage == "cut":
            os.truncate(image, values["size"] - 4096)
        else:
            with image.open("r+b") as changed:
                changed.seek(values["meta_size"] - 1 if damage == "metadata" else values["size"] - 4096)
                changed.write(b"\xff")

    assert shown(store.mount(two)) == whole


def test_an_image_of_another_boot_is_taken_over_when_sound(store: Store, two: str) -> None:
    """Compared in full unless it was synced; not written again."""
    store.cache.prefetch(two)
    inodes = {}
    for name in images_of(store):
        image = store.root / "cache/erofs" / name
        note = image.with_suffix(".json")
        assert json.loads(note.read_text())["durable"]
        note.write_text(json.dumps({**json.loads(note.read_text()), "boot": "another", "durable": False}))
        inodes[name] = image.stat().st_ino
    store.mount(two)
    for name, number in inodes.items():
        image = store.root / "cache/erofs" / name
        assert image.stat().st_ino == number
        assert json.loads(image.with_suffix(".json").read_text())["durable"]


def test_cache_check_reads_every_byte(store: Store, two: str) -> None:
    """What is damaged is named and removed."""
    store.cache.prefetch(two)
    assert store.cache.check() == (2, [])
    victim = max((store.root / "cache/erofs").glob("*.img"), key=lambda item: item.stat().st_size)
    with victim.open("r+b") as changed:
        changed.seek(-4096, os.SEEK_END)
        changed.write(b"\xff")
    assert store.cache.check() == (2, [victim.stem])
    assert not victim.exists()


def test_the_budget_keeps_what_was_used_last_and_what_is_mounted(tmp_path: Path) -> None:
    """Evicted by use; a mounted view stays whatever the budget."""
    tars = [file(b"f%d" % n, os.urandom(300_000)) + END for n in range(4)]
    with opened(tmp_path, cache_budget=700_000) as store:
        layers = [store.layers.import_(io.BytesIO(tar)).id for tar in tars]
        store.mount(layers[0])
        for layer in layers[1:]:
            store.mount(layer)
            store.unmount(layer)
            os.utime(next((store.root / "cache/erofs").glob("*.json")))
        kept = {layer for view in store.cache.all() for layer in view.layers}
        assert {layers[0], layers[3]} <= kept
        assert layers[1] not in kept
        planned = store.cache.evict(budget="0", dry_run=True)
        before = sum(store.cache.sizes().values())
        done = store.cache.evict(budget=0)
        assert (done.images, done.bytes) == (planned.images, planned.bytes)
        assert before - sum(store.cache.sizes().values()) == done.bytes
        assert [view.layers for view in store.cache.all() if view.kind == "image"] == [(layers[0],)]
        with pytest.raises(InvalidInput, match="invalid size"):
            store.cache.evict(budget="much")
        assert (store._context.mount_table.get(layers[0]).path / "f0").exists()  # type: ignore[union-attr]
        store.unmount(layers[0])


def test_pool_files_that_an_image_leads_to_stay_with_it(tmp_path: Path) -> None:
    """An image of redirects is worth nothing without them."""
    with opened(tmp_path, strategy="composefs") as store:
        layer = store.layers.import_(io.BytesIO(LOWER))
        path = store.mount(layer.id)
        other = store.layers.import_(io.BytesIO(file(b"other", b"o" * 9000) + END))
        store.mount(other.id)
        store.unmount(other.id)
        store.cache.evict(budget=0)
        assert (path / "etc/a").read_bytes() == b"a" * 5000
        assert store.cache.sizes()["pool"] == 5000 + 1 + 1
        store.unmount(layer.id)
        store.cache.evict(budget=0)
        assert store.cache.sizes()["pool"] == store.cache.sizes()["image"] == 0


def test_images_of_redirects_share_the_pools_inodes(tmp_path: Path) -> None:
    """So that files of two images are in memory once."""
    with opened(tmp_path, strategy="composefs") as store:
        one = store.layers.import_(io.BytesIO(file(b"f", b"f" * 9000) + END))
        two = store.layers.import_(io.BytesIO(file(b"g", b"f" * 9000) + file(b"h", b"h") + END))
        store.mount(one.id)
        written = store.cache.sizes()["pool"]
        store.mount(two.id)
        assert (written, store.cache.sizes()["pool"]) == (9000, 9001)
        assert all(item.stat().st_size <= 16384 for item in (store.root / "cache/erofs").glob("*.img"))
        for layer in (one, two):
            store.unmount(layer.id)


def test_two_builders_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one waits for the first and takes its image."""
    with opened(tmp_path) as store:
        layer = store.layers.import_(io.BytesIO(file(b"f", os.urandom(2_000_000)) + END))
        assert store._context.abilities.erofs  # the probe writes images too
        built = []
        whole = erofs.write_image

        def counted(*arguments: object, **named: object) -> erofs.ImageInfo:
            built.append(1)
            return whole(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(erofs, "write_image", counted)
        threads = [threading.Thread(target=Cache(store._context).prefetch, args=(layer.id,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(built) == 1


def test_a_killed_build_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    """Killed while the image is written."""
    script = (
        "import os, sys; from lading import Store; from lading.materialize import erofs\n"
        "def stop(*a, **k): os.kill(os.getpid(), 9)\n"
        "erofs.meta_digest = stop\n"
        "with Store.open(sys.argv[1], run=sys.argv[2], driver='overlay') as store: store.mount(sys.argv[3])\n"
    )
    with opened(tmp_path) as store:
        layer = store.layers.import_(io.BytesIO(LOWER))
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "root", tmp_path / "run", layer.id], check=False
        )
        assert done.returncode == -9
        assert images_of(store) == []
        path = store.mount(layer.id)
        assert (path / "etc/a").read_bytes() == b"a" * 5000
        assert [name for name in os.listdir(store.root / "cache/erofs") if name.startswith(".building")] == []
        store.unmount(layer.id)


def test_one_hundred_layers_stacked_and_flattened_are_alike(tmp_path: Path) -> None:
    """Beyond the depth that is configured the catalog lays them over each other."""
    trees = []
    for depth in (200, 50):
        with opened(tmp_path, flatten_depth=depth) as store:
            top = ""
            if not store.layers.all():
                for n in range(100):
                    tar = directory(b"d/") + file(b"d/%d" % n, b"%d" % n) + file(b"same", b"%d" % n)
                    if n % 10 == 5:
                        tar += file(b"d/.wh.%d" % (n - 1), b"")
                    top = store.layers.import_(io.BytesIO(tar + END), top).id
            top = store.layers.all()[-1].id
            path = store.images.mount(store.images.create(top).id)
            trees.append(shown(path))
            assert len(store._context.mount_table.get(top).views) == (101 if depth == 200 else 2)  # type: ignore[union-attr]
            store.unmount(top)
    assert trees[0] == trees[1]
    assert len(trees[0]) == 1 + 90 + 1


def test_force_takes_a_busy_read_only_view_away_and_never_a_writable_one(store: Store, two: str) -> None:
    """Whoever is in it may stay; what can be written to is never lost sight of."""
    image = store.images.create(two)
    path = store.images.mount(image.id)
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(InUse, match=str(os.getpid())):
            store.images.unmount(image.id)
        assert store.images.unmount(image.id, force=True)
        assert not path.exists() or not mounts.is_mounted(path)
        assert os.listdir(held)
    finally:
        os.close(held)
    container = store.containers.create(image.id)
    path = store.mount(container.id)
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(InUse):
            store.unmount(container.id, force=True)
        assert mounts.is_mounted(path)
    finally:
        os.close(held)


def test_a_mount_point_that_vanished_is_made_again(store: Store, two: str) -> None:
    """The run root is nobody's only copy of anything."""
    path = store.mount(two)
    store.unmount(two)
    assert not path.exists()
    assert store.mount(two) == path


def test_nothing_written_through_any_exposed_path_reaches_the_cache(tmp_path: Path) -> None:
    """Mounts, checkouts, bound trees: pool and images keep their digests."""
    for number, strategy in enumerate(("erofs", "farm", "composefs")):
        with opened(tmp_path / str(number), strategy=strategy) as store:
            layer = store.layers.import_(io.BytesIO(LOWER))
            container = store.containers.create(store.images.create(layer.id).id)
            bound = tmp_path / f"bound{number}"
            store.checkout(layer.id, bound, way="hardlink")
            before = _digests(store)
            path = store.mount(container.id)
            _scribble(path)
            for way in ("auto", "copy"):
                copied = tmp_path / f"{way}{number}"
                store.checkout(layer.id, copied, way=way)
                _scribble(copied)
            with pytest.raises(OSError, match="Read-only"):
                (bound / "etc/a").write_bytes(b"w")
            after = _digests(store)
            assert before.items() <= after.items()
            assert store.cache.check()[1] == []
            store.unmount(container.id)
            mounts.unmount(bound)
            assert store.cache.evict().trees


def _digests(store: Store) -> dict[str, bytes]:
    folder = store.root / "cache"
    return {
        str(item.relative_to(folder)): item.read_bytes()
        for part in ("pool", "erofs")
        for item in sorted((folder / part).rglob("*"))
        if item.is_file() and item.suffix in ("", ".img") and not item.name.startswith(".")
    }


def _scribble(path: Path) -> None:
    """Write to a tree in every way there is."""
    (path / "etc/a").write_bytes(b"W" * 6000)
    os.truncate(path / "etc/b", 3)
    os.chmod(path / "old/x", 0o600)
    os.setxattr(path / "old/x", "user.w", b"w")
    with (path / "old/x").open("ab") as file_:
        file_.write(b"w")
    os.utime(path / "gone", (1, 1))
    os.link(path / "gone", path / "gone2")
    (path / "gone2").write_bytes(b"w")


@pytest.fixture(params=["xfs", "btrfs"])
def reflinks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A filesystem that shares blocks, on a loop device."""
    image, folder = tmp_path / "fs", tmp_path / "mounted"
    image.touch()
    os.truncate(image, 400 << 20)
    make_filesystem([f"mkfs.{request.param}", "-q"], image)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_checkout_shares_blocks_where_the_filesystem_can(reflinks: Path) -> None:
    """Little is used by a second tree, and writing to it changes nobody else's."""
    with opened(reflinks) as store:
        layer = store.layers.import_(io.BytesIO(file(b"large", data := os.urandom(40 << 20)) + END))
        store.checkout(layer.id, reflinks / "one", way="reflink")
        os.sync()
        before = os.statvfs(reflinks).f_bavail * os.statvfs(reflinks).f_bsize
        store.checkout(layer.id, reflinks / "two", way="reflink")
        store.checkout(layer.id, reflinks / "three")
        os.sync()
        assert before - os.statvfs(reflinks).f_bavail * os.statvfs(reflinks).f_bsize < 8 << 20
        with (reflinks / "two/large").open("r+b") as changed:
            changed.write(b"changed")
        assert (reflinks / "one/large").read_bytes() == (reflinks / "three/large").read_bytes() == data
        path = store.mount(layer.id)
        assert (path / "large").read_bytes() == data
        (path / "unsealed").write_bytes(b"u" * 5000)
        store.checkout(layer.id, reflinks / "four", way="reflink")
        assert (reflinks / "four/unsealed").read_bytes() == b"u" * 5000
        store.unmount(layer.id)


def test_without_reflinks_the_checkout_says_so(store: Store, two: str, tmp_path: Path) -> None:
    """And leaves nothing."""
    with pytest.raises(Unsupported, match="do not share blocks"):
        store.checkout(two, tmp_path / "out", way="reflink")
    assert not (tmp_path / "out").exists()


def test_names_of_lock_files_and_debris_go(store: Store, two: str) -> None:
    """After an eviction nothing is left but locks of the cache itself."""
    store.mount(two)
    store.unmount(two)
    (store.root / "cache/erofs/orphan.json").write_text("{}")
    store.cache.evict()
    assert os.listdir(store.root / "cache/erofs") == []
    assert imagecache.find_image(store.root / "cache", "orphan") is None


def test_a_full_disk_while_building_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The view that fits is built; the one that does not leaves neither image nor debris."""
    image, folder = tmp_path / "fs", tmp_path / "mounted"
    image.touch()
    os.truncate(image, 64 << 20)
    make_filesystem(["mkfs.ext4", "-q"], image)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        with opened(folder, min_free=0) as store:
            large = store.layers.import_(io.BytesIO(file(b"large", b"x" * (80 << 20)) + END))
            small = store.layers.import_(io.BytesIO(LOWER))
            with pytest.raises(Full):
                store.mount(large.id)
            assert os.listdir(store.root / "cache/erofs") == [f".{_name(store, large.id)}.lock"]
            assert (store.mount(small.id) / "etc/a").read_bytes() == b"a" * 5000
            store.unmount(small.id)
            assert not store.check(content=True).findings
    finally:
        subprocess.run(["umount", folder], check=True)


def _name(store: Store, layer_id: str) -> str:
    return lowers.name_of(store.layers.get(layer_id).contents[0])


def test_paths_with_commas_colons_and_spaces(tmp_path: Path) -> None:
    """By both interfaces of the kernel."""
    for number, forced in enumerate(({}, {"new_mount_api": False, "lowerdir_plus": False, "shifted_lowers": False})):
        with opened(tmp_path / f"a, b:c\\d {number}") as store:
            store._context.__dict__["abilities"] = replace(store._context.abilities, **forced)
            layer = store.layers.import_(io.BytesIO(LOWER))
            assert (store.mount(layer.id) / "etc/a").exists()
            store.unmount(layer.id)


def test_what_a_kill_left_attached_goes_with_the_next_mount(store: Store, two: str) -> None:
    """Only kernels without detached mounts attach images at all, for a moment."""
    store.cache.prefetch(two)
    image = next((store.root / "cache/erofs").glob("*.img"))
    left = store.run / "mnt/.image-left"
    left.mkdir(parents=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, left], check=True)
    old = {"new_mount_api": False, "lowerdir_plus": False, "shifted_lowers": False}
    store._context.__dict__["abilities"] = replace(store._context.abilities, **old)
    store.mount(two)
    assert not left.exists()
    assert not [mount for mount in mounts.mountinfo() if mount.path == left]


def test_a_collection_keeps_views_of_what_is_there(store: Store, two: str) -> None:
    """Single and flattened ones; they go with their layers."""
    other = store.layers.import_(io.BytesIO(file(b"other", b"o") + END))
    for flatten in (False, True):
        store.cache.prefetch(two, flatten=flatten)
    store.cache.prefetch(other.id)
    assert len(images_of(store)) == 4
    store.layers.delete(other.id)
    planned = store.gc(dry_run=True)
    assert store.gc() == planned
    assert len(images_of(store)) == 3
    for layer in reversed(store.layers.all()):
        store.layers.delete(layer.id)
    store.gc()
    assert images_of(store) == []
