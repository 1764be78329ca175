"""The operations of the library that the command does not show, or shows in part."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.config import Settings as Config
from lading.errors import (
    Busy,
    ContainerUnknown,
    DuplicateID,
    InvalidInput,
    LayerUnknown,
    LayerUsedByContainer,
    NotFound,
    NotSupported,
    ParentIsContainer,
)
from lading.flows.staging import DifferOutput
from lading.idmaps import AutoMaps, InvalidMappings, MapRequest, Maps, NoAvailableIDs, allot
from lading.values import IDMap
from tests.contract.samples import BASE, UPPER
from tests.flows.test_layers import taken_out
from tests.tarmake import END, file

pytestmark = pytest.mark.privileged


def test_identity(tmp_path: Path) -> None:
    """What was given at opening comes back."""
    settings = Settings(pull_options=("a=b",), driver_options=("overlay.mountopt=nodev",), transient=True)
    with Store.open(tmp_path / "r", run=tmp_path / "n", driver="vfs", settings=settings) as store:
        assert (store.root, store.run_root, store.driver) == (tmp_path / "r", tmp_path / "n", "vfs")
        assert (store.image_store, store.transient, store.driver_options) == (None, True, ("overlay.mountopt=nodev",))
        assert store.pull_options == {"a": "b"}
        store.pull_options["a"] = "changed"
        assert store.pull_options == {"a": "b"}
        assert not store.default_maps
        assert [key for key, _ in store.version()] == ["Version"]
        assert dict(store.status())["Run Root"] == str(tmp_path / "n")
        assert store.graph_driver.name == "vfs"
        store.graph_driver.create("unrecorded")
        assert store.graph_driver.layers() == ["unrecorded"]


def test_one_object_for_the_same_roots(tmp_path: Path) -> None:
    """Until it is freed; freeing twice is harmless."""
    first = Store.shared(tmp_path / "r", run=tmp_path / "n")
    assert Store.shared(tmp_path / "r", run=tmp_path / "n") is first
    first.free()
    first.free()
    second = Store.shared(tmp_path / "r", run=tmp_path / "n")
    assert second is not first
    second.free()


def test_an_id_that_is_taken_hands_out_its_layer(store: Store) -> None:
    """For creation and import alike."""
    store.layers.create(id="x", names=["n"])
    with pytest.raises(DuplicateID) as created:
        store.layers.create(id="x")
    with pytest.raises(DuplicateID) as imported:
        store.layers.import_(io.BytesIO(BASE), id="x")
    for caught in (created, imported):
        assert getattr(caught.value.existing, "names", None) == ("n",)


def test_layers_with_all_there_is(store: Store) -> None:
    """Flags, data and a caller's digest of what it has unpacked."""
    layer = store.layers.import_(
        io.BytesIO(BASE),
        flags={"own": [1]},
        big_data={"k": b"v"},
        original_digest="sha256:" + "1" * 64,
        original_size=5,
    )
    assert (layer.flags, layer.big_data_names) == ({"own": [1]}, ("k",))
    assert (layer.compressed_digest, layer.compressed_size, layer.diff_size) == ("sha256:" + "1" * 64, 5, len(BASE))
    assert b"".join(store.layers.data(layer.id, "k")) == b"v"
    assert store.layers.size(layer.id) == len(BASE)
    assert store.layers.size(store.layers.create().id) == -1


def test_layers_by_their_digests(store: Store) -> None:
    """As presented, uncompressed, by the table of contents."""
    layer = store.layers.import_(io.BytesIO(BASE))
    assert [found.id for found in store.layers.by_diff_digest(layer.diff_digest)] == [layer.id]
    assert [found.id for found in store.layers.by_compressed_digest(layer.compressed_digest)] == [layer.id]
    for ask, words in (
        (store.layers.by_diff_digest, "looking for layers matching"),
        (store.layers.by_compressed_digest, "looking for compressed layers matching"),
        (store.layers.by_toc_digest, "looking for TOC matching"),
    ):
        with pytest.raises(InvalidInput, match=words):
            ask("bogus")
        with pytest.raises(LayerUnknown):
            ask("sha256:" + "0" * 64)


def test_a_template_is_copied(store: Store) -> None:
    """Content, digests, metadata; the parents must be one."""
    base = store.layers.import_(io.BytesIO(BASE))
    model = store.layers.import_(io.BytesIO(UPPER), base.id, metadata="m")

    copy = store.layers.create(base.id, template=model.id)

    assert (copy.diff_digest, copy.metadata, copy.parent) == (model.diff_digest, "m", base.id)
    assert taken_out(store, copy.id) == UPPER
    with pytest.raises(InvalidInput, match="another parent"):
        store.layers.create(template=model.id)


def test_images_by_layer_and_containers_by_layer(store: Store) -> None:
    """An unknown layer is an error, no image is an empty list."""
    layer = store.layers.create()
    assert store.images.by_top_layer(layer.id) == []
    image = store.images.create(layer.id)
    assert [found.id for found in store.images.by_top_layer(layer.id)] == [image.id]
    container = store.containers.create(image.id)
    assert store.containers.by_layer(container.layer).id == container.id
    with pytest.raises(ContainerUnknown):
        store.containers.by_layer(layer.id)
    with pytest.raises(LayerUnknown):
        store.images.by_top_layer("nosuch")


def test_several_kinds_from_one_snapshot(store: Store) -> None:
    """Those not asked for are empty."""
    image = store.images.create(store.layers.create(id="l").id, id="i")
    store.containers.create(image.id, id="c", layer_id="cl")

    layers, images, containers = store.multi_list(layers=True, containers=True)

    assert ([layer.id for layer in layers], images, [item.id for item in containers]) == (["l", "cl"], [], ["c"])


def test_manifest_digests_by_the_callers_own_rule(store: Store) -> None:
    """The callback gives the digest that finds the image; other items keep sha256."""
    image = store.images.create(created_ns=5, names_history=["old"])
    store.images.set_data(image.id, "manifest", io.BytesIO(b"x"), digest_of=lambda _: "sha256:" + "a" * 64)

    found = store.images.get(image.id)

    assert (found.digest, found.created_ns, found.names_history) == ("sha256:" + "a" * 64, 5, ("old",))
    assert [item.id for item in store.images.by_digest("sha256:" + "a" * 64)] == [image.id]
    assert store.images.by_digest("bogus") == []


def test_files_in_directories(store: Store) -> None:
    """Whole, private, never outside."""
    container = store.containers.create()
    for run in (False, True):
        store.containers.write_file(container.id, "a/b/c", b"one", run=run)
        store.containers.write_file(container.id, "a/b/c", b"two", run=run)
        assert store.containers.read_file(container.id, "a/b/c", run=run) == b"two"
        folder = store.containers.run_directory(container.id) if run else store.containers.directory(container.id)
        assert os.stat(folder / "a/b/c").st_mode & 0o777 == 0o600
        assert os.stat(folder / "a").st_mode & 0o777 == 0o700
        with pytest.raises(NotFound, match="no such file"):
            store.containers.read_file(container.id, "nosuch", run=run)
        for bad in ("../x", "/etc/passwd", "", "a/../../x"):
            with pytest.raises(InvalidInput):
                store.containers.write_file(container.id, bad, b"", run=run)
    os.symlink("/etc", store.containers.directory(container.id) / "out")
    with pytest.raises(InvalidInput, match="leads out"):
        store.containers.read_file(container.id, "out/passwd")
    assert store.containers.size(container.id) >= 6


def test_big_data_of_all_kinds(store: Store) -> None:
    """Listing a layer's names it in the error."""
    with pytest.raises(LayerUnknown, match='locating layer with ID "nosuch": layer not known'):
        store.layers.data_names("nosuch")
    container = store.containers.create(big_data={"b": b"22", "a": b"1"})
    assert store.containers.data_names(container.id) == ("b", "a")
    assert store.containers.data_size(container.id, "b") == 2


def test_staged_layers(tmp_path: Path) -> None:
    """From a tar, or from a folder as overlay keeps it; applied once."""
    with Store.open(tmp_path / "r", run=tmp_path / "n", driver="overlay") as store:

        def tar(folder: Path) -> DifferOutput:
            (folder / "diff.tar").write_bytes(BASE)
            return DifferOutput(
                diff=folder / "diff.tar", toc_digest="sha256:" + "2" * 64, big_data={"toc": b"t"}, metadata="m"
            )

        def tree(folder: Path) -> DifferOutput:
            (folder / "file").write_text("text")
            return DifferOutput(size=4, uids=(3, 1), toc_digest="sha256:" + "3" * 64, root_mode=0o700)

        staged = store.layers.stage(tar)
        layer = store.layers.apply_staged(staged, id="made", names=["n"])
        assert (layer.toc_digest, layer.metadata, layer.big_data_names) == ("sha256:" + "2" * 64, "m", ("toc",))
        assert taken_out(store, "n") == BASE
        assert [found.id for found in store.layers.by_toc_digest("sha256:" + "2" * 64)] == ["made"]
        with pytest.raises(InvalidInput, match="already"):
            store.layers.apply_staged(staged)
        again = store.layers.apply_staged(store.layers.stage(tree), "made")
        assert (again.diff_size, again.uids, again.root_mode, store.layers.size("made")) == (4, (3, 1), 0o700, 4)
        assert [change.path for change in store.layers.changes("made")] == [b"/file"]
        unused = store.layers.stage(tree)
        store.layers.discard_staged(unused)
        store.layers.discard_staged(unused)
        assert not unused.folder.exists()
        assert store.layers.differ_target("made").name == "upper"
        assert store.check(content=True).findings == ()

        def lying(folder: Path) -> DifferOutput:
            (folder / "diff.tar").write_bytes(BASE)
            return DifferOutput(diff=folder / "diff.tar", diff_digest="sha256:" + "0" * 64)

        with pytest.raises(InvalidInput, match="not sha256:000"):
            store.layers.apply_staged(store.layers.stage(lying), id="lie")
        assert not store.layers.exists("lie")


def test_staging_is_for_overlay(vfs_store: Store) -> None:
    """Nothing else has it."""
    with pytest.raises(NotSupported, match="not supported"):
        vfs_store.layers.stage(lambda _: DifferOutput())


def test_a_folder_as_a_layer(tmp_path: Path) -> None:
    """Where pull options allow it; a missing folder is an empty layer."""
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/f").write_text("content")
    settings = Config(pull_options=("enable_partial_images=true",))
    with Store.open(tmp_path / "r", run=tmp_path / "n", driver="overlay", settings=settings) as store:
        layer = store.layers.apply_directory("fresh", tmp_path / "tree")
        assert layer.id == "fresh"
        assert layer.toc_digest.startswith("sha256:")
        assert layer.diff_digest.startswith("sha256:")
        assert (layer.compressed_digest, layer.big_data_names) == (
            "",
            ("zstd-chunked-manifest", "zstd-chunked-layer-data"),
        )
        assert [change.path for change in store.layers.changes("fresh")] == [b"/sub", b"/sub/f"]
        store.layers.apply_directory("fresh", tmp_path / "missing")
        assert store.layers.changes("fresh") == []


def test_additional_layers(tmp_path: Path) -> None:
    """By the digest of their table of contents; from the tar exactly, else from the tree."""
    toc = "sha256:" + "4" * 64
    folder = tmp_path / "layers" / toc
    (folder / "diff").mkdir(parents=True)
    (folder / "diff/f").write_text("x")
    (folder / "info").write_text(json.dumps({"compressed-size": 7}))
    settings = Settings(layer_stores=(str(tmp_path / "layers"), f"{tmp_path}/other:ref"))
    with Store.open(tmp_path / "r", run=tmp_path / "n", driver="overlay", settings=settings) as store:
        found = store.layers.additional(toc)
        assert (found.toc_digest, found.compressed_size) == (toc, 7)
        assert (folder / "use").exists()
        layer = found.put_as("tree", names=["n"])
        assert (layer.toc_digest, layer.names) == (toc, ("n",))
        assert [change.path for change in store.layers.changes("tree")] == [b"/f"]
        (folder / "blob").write_bytes(BASE)
        exact = store.layers.additional(toc).put_as("exact")
        assert taken_out(store, exact.id) == BASE
        found.release()
        with pytest.raises(LayerUnknown):
            store.layers.additional("sha256:" + "5" * 64)
        with pytest.raises(LayerUnknown):
            store.layers.additional("sha256:" + "5" * 64, "docker.io/library/x")
        assert store.check(content=True).findings == ()


def test_digest_locks(store: Store, tmp_path: Path) -> None:
    """One holder at a time, whatever the object it was taken with; waits end with a word."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(wait_s=0.05)) as other:
        with store.digest_lock("sha256:1"), other.digest_lock("sha256:2"):
            with pytest.raises(Busy), other.digest_lock("sha256:1"):
                pass
        with other.digest_lock("sha256:1"):
            pass
    with pytest.raises(InvalidInput), store.digest_lock(""):
        pass


def test_shutdown_tells_what_was_mounted(store: Store) -> None:
    """Refused while something is mounted; forced, it is unmounted and refused once."""
    layer = store.layers.create()
    store.mount(layer.id)
    for force in (False, True):
        with pytest.raises(LayerUsedByContainer, match="a layer is mounted"):
            store.shutdown(force=force)
    assert store.shutdown() == []


def test_mounts_of_images_take_options(store: Store) -> None:
    """All but being writable."""
    image = store.images.create(store.layers.import_(io.BytesIO(BASE)).id)
    with pytest.raises(InvalidInput, match=' "rw" option not supported'):
        store.images.mount(image.id, options=["rw"])
    point = store.images.mount(image.id, options=["ro", "nosuid"] if store.driver == "overlay" else ["ro"])
    assert (point / "etc/a").read_bytes() == b"hello"
    assert store.images.mount(image.id) == point
    assert not store.images.unmount(image.id)
    assert store.images.unmount(image.id)


def test_mount_options_of_containers(tmp_path: Path) -> None:
    """Those of the container, else the configured ones; refused where there are none."""
    settings = Settings(mount_options=("nodev",))
    with Store.open(tmp_path / "r", run=tmp_path / "n", driver="overlay", settings=settings) as store:
        container = store.containers.create(mount_options=["nosuid"], volatile=True)
        assert container.flags["MountOpts"] == ["nosuid"]
        point = store.mount(container.id)
        options = next(
            line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(point) in line
        )
        assert "nosuid" in options[5]
        assert "nodev" not in options[5]
        assert "volatile" in options[-1]
        store.unmount(container.id)
        plain = store.containers.create()
        point = store.mount(plain.id)
        assert any(
            str(point) in line and "nodev" in line for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )
        store.unmount(plain.id)
    with Store.open(tmp_path / "v", run=tmp_path / "vn", driver="vfs") as store:
        with pytest.raises(InvalidInput, match="vfs driver does not support mount options"):
            store.mount(store.layers.create().id, options=["nodev"])
        with pytest.raises(NotSupported, match="--storage-opt is not supported for vfs"):
            store.containers.create(storage_options={"size": "1g"})


def test_labels_come_in_pairs(store: Store) -> None:
    """Or not at all."""
    with pytest.raises(InvalidInput, match="must either not be specified or both specified"):
        store.containers.create(flags={"MountLabel": "x"})


def test_automatic_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many IDs as the image needs, those of other containers left out, pieces zipped, additional maps last."""
    from lading.flows import automaps

    monkeypatch.setattr(automaps, "_available", lambda _: ([(100000, 3000)], [(200000, 3000)]))
    passwd = b"root:x:0:0::/:/bin/sh\nuser:x:1500:1600::/:/bin/sh\nnobody:x:65534:65534::/:/\n"
    with Store.open(tmp_path / "r", run=tmp_path / "n", settings=Settings(auto_userns_min_size=10)) as store:
        image = store.images.create(store.layers.import_(io.BytesIO(file(b"etc/passwd", passwd) + END)).id)
        one = store.containers.create(image.id, idmap=MapRequest(auto=AutoMaps()))
        assert one.uidmap == (IDMap(0, 100000, 1601),)
        assert one.gidmap == (IDMap(0, 200000, 1601),)
        extra = Maps((IDMap(3, 500, 1),))
        two = store.containers.create(idmap=MapRequest(auto=AutoMaps(size=20, additional=extra)))
        assert two.uidmap == (IDMap(0, 101601, 3), IDMap(4, 101604, 16), IDMap(3, 500, 1))
        with pytest.raises(NoAvailableIDs, match="not enough unused IDs in user namespace"):
            store.containers.create(idmap=MapRequest(auto=AutoMaps(size=5000)))
    with Store.open(tmp_path / "r", run=tmp_path / "n", settings=Settings(auto_userns_max_size=1500)) as store:
        with pytest.raises(
            InvalidInput, match="size 1601 that is bigger than the maximum value allowed with userns=auto 1500"
        ):
            store.containers.create(image.id, idmap=MapRequest(auto=AutoMaps()))


def test_holes_among_sub_ids_are_used() -> None:
    """Lowest first, in pieces."""
    used = [IDMap(0, 1000, 10), IDMap(0, 1020, 10)]
    assert allot(25, [(1000, 100)], used, ()) == (IDMap(0, 1010, 10), IDMap(10, 1030, 15))


def test_overlapping_maps_leave_nothing_behind(store: Store) -> None:
    """Neither container nor layer."""
    request = MapRequest(Maps((IDMap(0, 1, 10), IDMap(5, 100, 10))))
    with pytest.raises(InvalidMappings, match="5:100:10 conflicts"):
        store.containers.create(idmap=request)
    assert store.layers.all() == []


def test_diffs_do_not_hold_others_up(store: Store) -> None:
    """A stream that is being read blocks no other operation."""
    layer = store.layers.import_(io.BytesIO(BASE))
    with store.layers.diff(layer.id) as diff:
        chunks: Iterator[bytes] = iter(diff)
        first = next(chunks)
        done = threading.Event()

        def create() -> None:
            store.layers.create()
            done.set()

        threading.Thread(target=create).start()
        assert done.wait(10)
        assert first + b"".join(chunks) == BASE


def test_a_containers_layer_is_no_parent(store: Store) -> None:
    """Whatever it is called by."""
    container = store.containers.create()
    with pytest.raises(ParentIsContainer, match=r"^would-be parent layer is a container$"):
        store.layers.create(container.layer)
