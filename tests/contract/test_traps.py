"""Behaviours that are easy to get wrong, each found the hard way by users of such stores."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.idmaps import MapRequest, Maps
from lading.values import IDMap, Layer
from tests.contract.command import ours
from tests.contract.samples import BASE, FILES, IMPLIED, UPPER
from tests.flows.test_layers import taken_out
from tests.tarmake import END, directory, file, link

pytestmark = pytest.mark.privileged

MAPPED = MapRequest(Maps((IDMap(0, 1000, 100),), (IDMap(0, 2000, 100),)))
OTHER = MapRequest(Maps((IDMap(0, 5000, 100),), (IDMap(0, 6000, 100),)))

Open = Callable[..., Store]


@pytest.fixture(params=["overlay", "vfs"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens stores with each driver; whatever they have mounted is unmounted at the end."""
    stores: list[Store] = []

    def open_(name: str = "root", **settings: object) -> Store:
        found = Store.open(
            tmp_path / name,
            run=tmp_path / f"{name}-run",
            driver=request.param,
            settings=Settings(**settings),  # type: ignore[arg-type]
        )
        stores.append(found)
        return found

    yield open_
    for found in stores:
        for mount in found.mounts():
            found.unmount(mount.layer, force=True)
        found.close()


@pytest.fixture
def unshifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers carry maps of their own, as where nothing can be shifted at mount time."""
    monkeypatch.setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")


def put(store: Store, data: bytes = BASE, parent: str = "", id: str = "") -> Layer:
    """Import a layer."""
    return store.layers.import_(io.BytesIO(data), parent, id=id)


def members(data: bytes) -> list[tarfile.TarInfo]:
    """What a tar holds."""
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        return found.getmembers()


def changed(store: Store, ref: str) -> dict[str, int]:
    """Changes of a layer, by path."""
    return {os.fsdecode(change.path): change.kind for change in store.layers.changes(ref)}


def owners(point: Path, *names: str) -> list[tuple[int, int]]:
    """Owners of files."""
    return [(found.st_uid, found.st_gid) for found in (os.lstat(point / name) for name in names)]


def test_names_work_at_once_everywhere(opened: Open) -> None:
    """Also in a process that did not change them."""
    store, other = opened(), opened()
    layer = store.layers.create(names=["old"])
    assert other.layers.get("old").id == layer.id
    store.set_names(layer.id, ["new"])
    assert not other.layers.exists("old")
    assert other.layers.get("new").id == layer.id


def test_a_container_answers_to_its_layers_id(opened: Open) -> None:
    """Names and metadata of that id are the layer's; deleting it deletes the container."""
    store = opened()
    container = store.containers.create(names=["c"], metadata="container's")
    assert store.containers.get(container.layer).id == container.id
    assert store.exists(container.layer, ["container"])
    assert store.names(container.layer) == ()
    assert store.metadata(container.layer) == ""
    store.delete(container.layer)
    assert store.containers.all() == []
    assert store.layers.all() == []


@pytest.mark.parametrize("name", ["junk", "junkgz", "cut", "cutgz", "junkbz", "junkxz", "junkzst"])
def test_junk_in_any_wrapping_fails_cleanly(opened: Open, name: str) -> None:
    """One of the two phrases, and nothing left behind."""
    store = opened()
    with pytest.raises(ValueError, match=r"unexpected EOF|invalid tar header"):
        put(store, FILES[name])
    assert store.layers.all() == []


def test_very_long_chains(opened: Open) -> None:
    """301 layers and a container on top: every file is seen."""
    store = opened()
    parent = ""
    for number in range(301):
        parent = put(store, file(b"f%d" % number, b"%d" % number) + END, parent).id
    container = store.containers.create(store.images.create(parent).id)

    point = store.mount(container.id)

    assert sorted(os.listdir(point)) == sorted(f"f{number}" for number in range(301))
    assert (point / "f0").read_bytes() == b"0"
    assert (point / "f300").read_bytes() == b"300"


def test_a_diff_may_come_twice_in_a_chain(opened: Open) -> None:
    """In one layer, in its child, and over what changed in between; empty ones most often."""
    store = opened()
    base = put(store)
    store.layers.apply(base.id, io.BytesIO(BASE))
    upper = put(store, UPPER, base.id)
    empty = put(store, b"", put(store, b"", upper.id).id)
    again = put(store, BASE, empty.id)

    assert sorted(os.listdir(store.mount(empty.id) / "etc")) == ["a"]
    point = store.mount(again.id)
    assert sorted(os.listdir(point / "etc")) == ["a", "b"]
    assert (point / "etc/a").read_bytes() == b"hello"
    assert sorted(os.listdir(point / "usr/bin")) == ["x", "y"]
    assert sorted(os.listdir(store.mount(base.id))) == ["etc", "hard", "link", "usr"]


def test_volatile_containers_keep_their_data(opened: Open) -> None:
    """Across unmount and mount."""
    store = opened()
    container = store.containers.create(store.images.create(put(store).id).id, volatile=True)
    (store.mount(container.id) / "kept").write_text("data")
    assert store.unmount(container.id)
    assert (store.mount(container.id) / "kept").read_text() == "data"


def test_relative_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without ./, and folders that are missing."""
    monkeypatch.chdir(tmp_path)
    for root, run in (("deep/a/root", "deep/a/run"), ("./b/root", "./b/run")):
        assert ours(["-g", root, "-R", run, "-s", "vfs", "create-layer", "-i", "x"])[:2] == (0, b"x\n")
        assert ours(["--graph", root, "--run", run, "-s", "vfs", "layers", "-q"])[1] == b"x\n"


def test_exported_deleted_imported_again(opened: Open) -> None:
    """The same changes and the same tar listing."""
    store = opened()
    base = put(store)
    top = put(store, UPPER, base.id)
    before, exported = changed(store, top.id), taken_out(store, top.id)
    store.layers.delete(top.id)

    again = put(store, exported, base.id)

    assert changed(store, again.id) == before
    assert [m.name for m in members(taken_out(store, again.id))] == [m.name for m in members(UPPER)]


def test_a_directory_made_again_needs_a_marker_only_over_something(opened: Open) -> None:
    """Where a layer in between removed it, it is a plain addition."""
    store = opened()
    base = put(store, directory(b"d/") + file(b"d/old", b"x") + END)
    middle = put(store, file(b".wh.d") + END, base.id)
    top = store.layers.create(middle.id)
    point = store.mount(top.id)
    (point / "d").mkdir()
    (point / "d/new").write_text("y")
    store.unmount(top.id)

    assert changed(store, top.id) == {"/d": 1, "/d/new": 1}
    assert [m.name for m in members(taken_out(store, top.id))] == ["d", "d/new"]


def test_a_new_child_makes_its_directory_modified(opened: Open) -> None:
    """And removed siblings are single deletions."""
    store = opened()
    top = store.layers.create(put(store).id)
    point = store.mount(top.id)
    (point / "etc/new").write_text("n")
    (point / "etc/a").unlink()
    mounted = changed(store, top.id)
    store.unmount(top.id)

    assert mounted == changed(store, top.id) == {"/etc": 0, "/etc/new": 1, "/etc/a": 2}


@pytest.mark.usefixtures("unshifted")
def test_an_owner_changed_in_a_mapped_layer_is_one_change(opened: Open) -> None:
    """The diff has that one entry, with the container's ids."""
    store = opened()
    base = put(store)
    top = store.layers.create(base.id, idmap=MAPPED)
    assert changed(store, top.id) == {}
    assert store.layers.diffsize(top.id) == 0
    point = store.mount(top.id)
    os.chown(point / "etc/b", 1007, 2008)
    store.unmount(top.id)

    found = changed(store, top.id)
    assert found.pop("/etc/b") == 0
    assert found == ({} if "/etc" not in found else {"/etc": 0})
    files = [m for m in members(taken_out(store, top.id)) if not m.isdir()]
    assert [(m.name, m.uid, m.gid) for m in files] == [("etc/b", 7, 8)]


def test_a_diff_is_what_was_applied_whatever_was_written(opened: Open) -> None:
    """While the changes show it."""
    store = opened()
    layer = put(store)
    (store.mount(layer.id) / "added").write_text("x")
    store.unmount(layer.id)
    assert taken_out(store, layer.id) == BASE
    assert changed(store, layer.id)["/added"] == 1


@pytest.mark.usefixtures("unshifted")
def test_mapped_copies_are_true_copies(opened: Open) -> None:
    """Digest and size match what comes out; hard links stay links; same maps share, others do not."""
    store = opened()
    image = store.images.create(put(store).id)
    one, two, three = (store.containers.create(image.id, idmap=maps) for maps in (MAPPED, MAPPED, OTHER))
    plain = store.containers.create(image.id)

    parents = [store.layers.get(found.layer).parent for found in (one, two, three, plain)]
    assert parents[0] == parents[1] != parents[2]
    assert parents[3] == image.layer
    tops = store.images.get(image.id)
    assert {tops.layer, *tops.mapped_layers} == set(parents)
    for top in set(parents):
        assert taken_out(store, top) == BASE
        assert store.layers.get(top).diff_size == len(BASE)
    point = store.mount(one.id)
    assert owners(point, ".", "etc/a", "usr/bin/x") == [(1000, 2000)] * 3
    assert os.stat(point / "hard").st_ino == os.stat(point / "etc/a").st_ino
    assert owners(store.mount(plain.id), "etc/a") == [(0, 0)]
    for found in (one, two, three, plain):
        store.containers.delete(found.id)
    store.images.delete(image.id)
    assert store.layers.all() == []


@pytest.mark.usefixtures("unshifted")
def test_a_container_without_maps_of_a_mapped_image(opened: Open) -> None:
    """Owners are as the container knows them; the same for a mount of the image."""
    store = opened()
    top = store.layers.import_(io.BytesIO(BASE), idmap=MAPPED)
    image = store.images.create(top.id)
    assert owners(store.mount(top.id), "etc/a") == [(1000, 2000)]
    assert owners(store.images.mount(image.id), "etc/a") == [(0, 0)]
    container = store.containers.create(image.id)
    assert owners(store.mount(container.id), "etc/a") == [(0, 0)]
    assert len(store.images.get(image.id).mapped_layers) == 1


def test_what_follows_the_end_is_digested_and_not_unpacked(opened: Open) -> None:
    """It is part of the stream, and of nothing else."""
    store = opened()
    layer = put(store, BASE + file(b"late", b"x") + b"junk")
    assert "/late" not in changed(store, layer.id)
    assert taken_out(store, layer.id) == BASE + file(b"late", b"x") + b"junk"


@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_an_opaque_marker_is_free(opened: Open, *, first: bool) -> None:
    """Siblings of the same diff survive."""
    store = opened()
    parts = [file(b"etc/.wh..wh..opq"), file(b"etc/new", b"n")]
    layer = put(store, directory(b"etc/") + b"".join(parts if first else parts[::-1]) + END, put(store).id)
    assert sorted(os.listdir(store.mount(layer.id) / "etc")) == ["new"]


def test_directories_that_a_diff_only_implies_are_no_damage(opened: Open) -> None:
    """A check must not compare what nobody described, even after something was written."""
    store = opened()
    layer = put(store, IMPLIED)
    store.images.create(layer.id)
    (store.mount(layer.id) / "added").write_text("x")
    store.unmount(layer.id)
    assert [finding.message for finding in store.check().findings if finding.kind == "layer"] == [
        f"layer {layer.id}: +/added, layer content modified"
    ]


def test_check_and_gc_leave_mounts_alone(opened: Open) -> None:
    """Nobody's container loses its files to upkeep."""
    store = opened()
    layer = put(store)
    point = store.mount(layer.id)
    store.check(content=True)
    store.gc()
    assert store.mounted(layer.id) == 1
    assert (point / "etc/a").read_bytes() == b"hello"


def test_derived_files_may_vanish(opened: Open) -> None:
    """Whatever is below the cache is made again."""
    store = opened()
    layer = put(store)
    store.mount(layer.id)
    store.unmount(layer.id)
    shutil.rmtree(store.root / "cache")
    assert (store.mount(layer.id) / "etc/a").read_bytes() == b"hello"


def test_a_store_that_is_main_here_and_additional_there(opened: Open) -> None:
    """What is changed in the one view is seen in the other."""
    base = opened("base")
    put(base, id="shared")
    both = opened("top", additional_stores=(str(base.root),))
    assert both.layers.get("shared").read_only
    child = both.layers.create("shared")
    put(base, id="later")
    assert both.layers.get("later").read_only
    base.layers.delete("later")
    assert not both.layers.exists("later")
    (base.mount("shared") / "written").write_text("live")
    base.unmount("shared")
    assert (both.mount(child.id) / "written").read_text() == "live"


def test_nothing_is_written_to_an_additional_store(opened: Open, tmp_path: Path) -> None:
    """Proved by a read-only bind mount, and by the times of all its files."""
    base = opened("base")
    image = base.images.create(put(base).id, names=["img"], big_data={"manifest": b"m"})
    base.close()
    shown = tmp_path / "shown"
    shown.mkdir()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in [base.root, *base.root.rglob("*")]}
    os.system(f"mount --bind {base.root} {shown} && mount -o remount,bind,ro {shown}")
    try:
        top = opened("top", additional_stores=(str(shown),))
        container = top.containers.create("img")
        assert (top.mount(container.id) / "etc/a").read_bytes() == b"hello"
        top.add_names(image.id, ["more"])
        assert top.images.get("more").big_data[0].size == 1
        assert taken_out(top, image.layer) == BASE
        assert top.check(content=True).findings == ()
        top.gc()
        top.unmount(container.id)
        top.close()
    finally:
        os.system(f"umount {shown}")
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in [base.root, *base.root.rglob("*")]
    }


def test_damage_in_an_additional_store(opened: Open) -> None:
    """It is told, cannot be repaired, and goes with the option; unused layers there are none."""
    base = opened("base")
    lost = put(base)
    broken = base.images.create(lost.id)
    base.graph_driver.create("unrecorded")
    base.delete(lost.id)
    put(base, UPPER)
    both = opened("top", additional_stores=(str(base.root),))
    both.graph_driver.create("mine")
    put(both, FILES["implied"], id="own")

    report = both.check(max_age_ns=0)

    assert report.ids("read-only image") == [broken.id]
    assert [f.message for f in report.findings if f.kind == "read-only image"] == [
        f"read-only image {broken.id}: layer {lost.id}: image layer is missing"
    ]
    assert report.ids("read-only layer") == []
    assert report.ids("layer") == ["mine", "own"]
    assert both.repair(report) == []
    assert both.check(max_age_ns=0).ids("read-only image") == [broken.id]
    assert both.graph_driver.layers() == []
    assert base.graph_driver.layers() != []
    assert opened("top").check().findings == ()


def test_a_container_whose_base_vanished_with_a_store(opened: Open) -> None:
    """Its image is missing; repair needs to be told that containers may go."""
    base = opened("base")
    image = base.images.create(put(base).id)
    opened("top", additional_stores=(str(base.root),)).containers.create(image.id, id="ctr")
    alone = opened("top")

    report = alone.check()

    assert f"image {image.id}: image missing" in [f.message for f in report.findings if f.kind == "container"]
    (failure,) = alone.repair(report)
    assert failure.endswith("used by container ctr: layer is in use by a container")
    assert alone.repair(alone.check(), containers_too=True) == []
    assert alone.check().findings == ()


def test_only_a_containers_own_layer_is_used_by_it(opened: Open) -> None:
    """With its image gone, the layers below become unused, and cannot be removed while it is there."""
    store = opened()
    base = put(store)
    image = store.images.create(base.id)
    store.containers.create(image.id, id="ctr")
    store.delete(image.id)

    report = store.check(max_age_ns=0)

    assert report.ids("layer") == [base.id]
    (failure,) = store.repair(report)
    assert failure.endswith("layer has children")


@pytest.mark.usefixtures("unshifted")
def test_maps_on_an_image_of_an_additional_store(opened: Open) -> None:
    """One parent for all, and right owners through the container's own layer, its root included."""
    base = opened("base")
    image = base.images.create(put(base).id)
    both = opened("top", additional_stores=(str(base.root),))
    one, two = (both.containers.create(image.id, idmap=maps) for maps in (MAPPED, OTHER))
    assert {both.layers.get(found.layer).parent for found in (one, two)} == {image.layer}
    assert both.images.get(image.id).mapped_layers == ()
    assert owners(both.mount(one.id), ".", "etc/a") == [(1000, 2000)] * 2
    assert owners(both.mount(two.id), ".", "etc/a") == [(5000, 6000)] * 2
    here = both.images.create(image.layer, id="here")
    three = both.containers.create(here.id, idmap=MAPPED)
    assert owners(both.mount(three.id), "etc/a") == [(1000, 2000)]


@pytest.mark.usefixtures("unshifted")
def test_copies_know_owners_as_containers_do(opened: Open) -> None:
    """Out of the one's maps, into the other's."""
    store = opened()
    source = store.layers.import_(io.BytesIO(file(b"f", b"x", uid=b"0000007", gid=b"0000010") + END), idmap=MAPPED)
    target = store.layers.create(idmap=OTHER)
    store.copy([f"{source.id}:/"], f"{target.id}:/tree")
    store.copy([f"{source.id}:/f"], f"{target.id}:/owned", chown=(50, 60))
    point = store.mount(target.id)
    assert owners(point, "tree/f", "owned", "tree") == [(5007, 6008), (5050, 6060), (5000, 6000)]


def test_a_file_and_its_link_in_a_copy(opened: Open) -> None:
    """Times, modes, attributes and links are kept."""
    store = opened()
    tree = file(b"d/a", b"x", mode=b"0000640", mtime=b"00000001234") + link(b"d/b", b"d/a") + END
    source, target = put(store, tree), store.layers.create()
    store.copy([f"{source.id}:/d"], f"{target.id}:/t")
    point = store.mount(target.id)
    first, second = os.stat(point / "t/a"), os.stat(point / "t/b")
    assert first.st_ino == second.st_ino
    assert (first.st_mode & 0o777, first.st_mtime) == (0o640, 0o1234)


def test_every_json_document_is_one_line_of_plain_text(tmp_path: Path) -> None:
    """Angle brackets and ampersands are escaped, other characters are as they are."""
    roots = ["-g", str(tmp_path / "r"), "-R", str(tmp_path / "n"), "-s", "vfs"]
    assert ours([*roots, "create-layer", "-i", "x", "-n", "<&>\u00e9\u2028"])[0] == 0
    text = ours([*roots, "layers", "-j"])[1].decode()
    assert '"names":["\\u003c\\u0026\\u003e\u00e9\\u2028"]' in text
    assert text.count("\n") == 1
    assert json.loads(text)[0]["names"] == ["<&>\u00e9\u2028"]
