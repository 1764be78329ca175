"""Real mounts: overlay over farms, counted, sealed, captured, given back. Needs root."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.errors import InUse, InvalidInput, LayerUnknown
from lading.flows.sealing import LayerMounted
from lading.materialize import mounts
from tests.flows.test_layers import taken_out
from tests.tarmake import END, directory, file, header, link, pax, symlink, tree

pytestmark = pytest.mark.privileged

BASE = (
    directory(b"etc/") + file(b"etc/passwd", b"root:x:0:0\n") + directory(b"tmp/", ) + file(b"bin/su", b"s", mode=b"0004755")
    + link(b"bin/su2", b"bin/su") + symlink(b"l", b"/etc/passwd") + header(b"p", b"6") + header(b"null", b"3", device=(1, 3))
    + pax({b"SCHILY.xattr.security.capability": b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"SCHILY.xattr.user.k": b"v",
           b"mtime": b"1700000000.5"}) + file(b"ping", b"x", uid=b"0001750")
    + directory(b"old/") + file(b"old/1", b"1") + file(b"old/2", b"2") + END
)  # fmt: skip


@pytest.fixture
def base(store: Store) -> str:
    """A layer of all kinds of files."""
    return store.layers.import_(io.BytesIO(BASE), names=["base"]).id


def seen(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """All that lies below a folder, with what any change to it would change."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = os.lstat(path)
        found.append((str(path), status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns))
    return found


def changed(store: Store, ref: str) -> dict[bytes, int]:
    return {change.path: change.kind for change in store.layers.changes(ref)}


def test_a_mounted_container_shows_the_image_and_keeps_what_is_written(store: Store, base: str) -> None:
    """All kinds of files; writes show as changes, before and after sealing alike."""
    container = store.containers.create(store.images.create(base).id, names=["c"])

    path = store.mount("c")
    ping = os.stat(path / "ping")
    assert store.driver == "overlay"
    assert (ping.st_uid, ping.st_mtime_ns) == (1000, 1_700_000_000_500_000_000)
    assert os.getxattr(path / "ping", "user.k") == b"v"
    assert len(os.getxattr(path / "ping", "security.capability")) == 20
    assert stat.S_IMODE(os.stat(path / "bin/su").st_mode) == 0o4755
    assert os.stat(path / "null").st_rdev == os.makedev(1, 3)
    assert os.readlink(path / "l") == "/etc/passwd"
    (path / "etc/passwd").write_text("changed\n")
    (path / "new").mkdir()
    (path / "new/f").write_bytes(b"written")
    os.unlink(path / "old/1")
    assert store.unmount("c")

    live = taken_out(store, container.layer)
    assert changed(store, container.layer) == {
        b"/etc/passwd": 0, b"/new": 1, b"/new/f": 1, b"/old": 0, b"/old/1": 2,
    }  # fmt: skip
    store.layers.seal(container.layer)
    assert taken_out(store, container.layer) == live
    assert store.layers.get(container.layer).write_kind == ""
    path = store.mount("c")
    assert (path / "new/f").read_bytes() == b"written"
    assert not (path / "old/1").exists()
    assert (path / "old/2").exists()


def test_mounts_are_counted_across_processes(store: Store, base: str) -> None:
    """Two mounts need two unmounts; force needs one; unmounting again succeeds."""
    path = store.mount(base)
    with Store.open(store.root, run=store.run.parent) as other:
        assert other.mount("base") == path
        assert other.mounted(base) == 2
        assert not other.unmount("base")
    assert store.mounted(base) == 1
    assert store.unmount(base)
    assert not mounts.is_mounted(path)
    assert store.unmount(base)
    store.mount(base)
    store.mount(base)
    assert store.unmount(base, force=True)
    assert store.mounted(base) == 0
    with pytest.raises(LayerUnknown):
        store.mount("nothing")


def test_a_busy_mount_names_who_is_in_it(store: Store, base: str) -> None:
    """Neither unmounted nor deleted; nothing is changed."""
    container = store.containers.create(store.images.create(base).id)
    path = store.mount(container.id)
    sleeper = subprocess.Popen(["sleep", "60"], cwd=path)
    try:
        with pytest.raises(InUse, match=rf"{sleeper.pid} \(sleep\)"):
            store.unmount(container.id)
        with pytest.raises(InUse, match="sleep"):
            store.containers.delete(container.id)
        assert store.mounted(container.id) == 1
        assert store.containers.exists(container.id)
    finally:
        sleeper.kill()
        sleeper.wait()

    store.containers.delete(container.id)
    assert not mounts.is_mounted(path)
    assert store.layers.all()[0].id == base
    assert not (store.root / "layers" / container.layer).exists()


def test_writing_never_reaches_the_pool(store: Store, base: str) -> None:
    """Through the mount, in place; the same content elsewhere is as it was."""
    container = store.containers.create(store.images.create(base).id)
    path = store.mount(container.id)
    for name in ("etc/passwd", "bin/su", "ping"):
        with open(path / name, "r+b") as target:
            target.write(b"OVERWRITTEN")
        os.utime(path / name)
        os.chmod(path / name, 0o600)
    store.unmount(container.id)

    fresh = store.mount(base)

    assert (fresh / "etc/passwd").read_bytes() == b"root:x:0:0\n"
    assert (fresh / "bin/su2").read_bytes() == b"s"
    assert stat.S_IMODE(os.stat(fresh / "bin/su").st_mode) == 0o4755


def test_a_child_of_a_mounted_layer_sees_what_is_written(store: Store, base: str) -> None:
    """Also late writes; the parent is sealed when its own mount goes."""
    path = store.mount(base)
    (path / "early").write_bytes(b"1")
    child = store.layers.create(base)
    below = store.mount(child.id)
    (path / "late").write_bytes(b"2")

    assert (below / "early").exists()
    assert (below / "late").exists()
    store.unmount(base)
    assert store.layers.get(base).write_kind == ""
    assert (below / "late").read_bytes() == b"2"
    store.unmount(child.id)
    again = store.mount(child.id)
    assert (again / "late").read_bytes() == b"2"
    assert changed(store, child.id) == {}
    assert store.check(modifications=False).findings == ()


def test_the_last_unmount_of_an_images_layer_seals_it(store: Store, base: str) -> None:
    """What was written becomes content, in objects; the applied diff is still given back."""
    path = store.mount(base)
    (path / "added").write_bytes(b"later")
    image = store.images.create(base)
    assert store.layers.get(base).write_kind == "upper"
    store.unmount(base)

    layer = store.layers.get(base)
    assert layer.write_kind == ""
    assert len(layer.contents) == 2
    assert taken_out(store, base) == BASE
    assert changed(store, base)[b"/added"] == 1
    assert not any((store.root / "layers").glob(f"{base}/*"))
    read_only = store.images.mount(image.id)
    assert (read_only / "added").read_bytes() == b"later"
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "x").touch()
    store.unmount(image.id)


def test_removals_and_opaque_directories_of_tars_show(store: Store, base: str) -> None:
    """In a mount as in a checkout; the root's own marker hides everything."""
    child = store.layers.import_(
        io.BytesIO(
            file(b"etc/.wh.passwd") + directory(b"old/") + file(b"old/.wh..wh..opq") + file(b"old/3", b"3") + END
        ),
        base,
    )
    top = store.layers.import_(io.BytesIO(file(b".wh..wh..opq") + file(b"alone", b"1") + END), child.id)

    path = store.mount(child.id)

    assert os.listdir(path / "etc") == []
    assert os.listdir(path / "old") == ["3"]
    assert (path / "bin/su").exists()
    assert os.listdir(store.mount(top.id)) == ["alone"]


def test_directories_that_are_only_implied_look_like_the_one_below(store: Store, tmp_path: Path) -> None:
    """Mode and owner of /tmp survive a tar that only holds tmp/x."""
    base = store.layers.import_(io.BytesIO(header(b"tmp/", b"5", mode=b"0001777", uid=b"0000007") + END))
    child = store.layers.import_(io.BytesIO(file(b"tmp/x", b"1") + file(b"new/y", b"2") + END), base.id)

    for root in (store.mount(child.id), store.checkout(child.id, tmp_path / "out").path):
        found = os.stat(root / "tmp")
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o1777, 7)
        assert stat.S_IMODE(os.stat(root / "new").st_mode) == 0o755


def test_a_diff_applied_to_a_mounted_layer_shows_in_it(store: Store, base: str) -> None:
    """And is given back afterwards."""
    path = store.mount(base)
    diff = file(b"etc/.wh.passwd") + file(b"etc/hosts", b"h") + directory(b"old/") + file(b"old/.wh..wh..opq") + END

    store.layers.apply(base, io.BytesIO(diff))

    assert os.listdir(path / "etc") == ["hosts"]
    assert os.listdir(path / "old") == []
    assert taken_out(store, base) == diff
    store.unmount(base)
    assert (store.mount(base) / "etc/hosts").read_bytes() == b"h"


def test_links_that_a_container_planted_lead_a_diff_nowhere(store: Store, tmp_path: Path) -> None:
    """What is applied to a mounted layer replaces them, whatever they point to."""
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    for name in ("x", "dir/x"):
        (outside / name).write_text("not ours")
    before = seen(outside)
    base = store.layers.create().id
    path = store.mount(base)
    for name in ("d", "e", "g", "dir"):
        (path / name).symlink_to(outside)
    for name in ("f", "h"):
        (path / name).symlink_to(outside / "x")
    os.symlink("/proc/self/root", path / "r")
    diff = (
        file(b"d/x", b"inside") + file(b"e/.wh.x") + file(b"g/.wh..wh..opq") + directory(b"dir/") + file(b"dir/dir/x", b"inside")
        + file(b"f", b"inside") + link(b"h", b"f") + file(b"r" + os.fsencode(str(outside)) + b"/x", b"inside") + END
    )  # fmt: skip

    store.layers.apply(base, io.BytesIO(diff))

    assert seen(outside) == before
    assert [(path / name).read_text() for name in ("d/x", "dir/dir/x", "f", "h")] == ["inside"] * 4
    assert not any((path / name).is_symlink() for name in ("d", "dir", "f", "h", "r"))
    assert os.stat(path / "f").st_ino == os.stat(path / "h").st_ino
    assert (path / f"r{outside}/x").read_text() == "inside"
    store.unmount(base)
    assert (store.mount(base) / "d/x").read_text() == "inside"


def test_a_hard_link_to_a_symlink_never_reaches_the_host(store: Store, base: str, tmp_path: Path) -> None:
    """Unpacked onto a mounted tree: the link is a name of the symlink, not of what it points to."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    path = store.mount(base)

    store.layers.apply(base, io.BytesIO(symlink(b"s", os.fsencode(secret)) + link(b"t", b"s") + file(b"f", b"1") + END))

    assert os.readlink(path / "t") == str(secret)
    assert secret.stat().st_nlink == 1
    assert stat.S_IMODE(os.stat(path / "f").st_mode) == 0o644


def test_sockets_holes_and_hard_links_survive_sealing(store: Store) -> None:
    """What no tar of ours could say."""
    import socket

    layer = store.layers.create()
    path = store.mount(layer.id)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(path):  # a socket's path is at most 107 bytes
        listener.bind("s")
    (path / "a").write_bytes(b"twice")
    os.link(path / "a", path / "b")
    os.setxattr(path / "a", "user.x", b"y")
    os.utime(path / "a", ns=(1, 123_456_789_123_456_789))
    with (path / "holes").open("wb") as holes:
        holes.truncate(50_000_000)
    store.unmount(layer.id)
    store.layers.seal(layer.id)
    store.gc()

    path = store.mount(layer.id)

    assert stat.S_ISSOCK(os.stat(path / "s").st_mode)
    assert os.stat(path / "a").st_ino == os.stat(path / "b").st_ino
    assert os.stat(path / "a").st_mtime_ns == 123_456_789_123_456_789
    assert os.getxattr(path / "b", "user.x") == b"y"
    assert os.stat(path / "holes").st_size == 50_000_000
    assert store.balance().classes["packs: live"] < 100_000
    with pytest.raises(LayerMounted):
        store.layers.seal(layer.id)


def test_gc_never_unmounts_and_keeps_what_is_mounted(store: Store, base: str) -> None:
    """Not even when the record is gone."""
    path = store.mount(base)
    store.layers.create(base)

    store.gc()

    assert (path / "etc/passwd").read_bytes() == b"root:x:0:0\n"
    assert store.mounted(base) == 1


def test_a_mount_without_record_is_taken_over(store: Store, base: str) -> None:
    """As after a kill between the two: the next mount works, unmounting too."""
    path = store.mount(base)
    store._context.mount_table.remove(base)
    assert mounts.is_mounted(path)

    again = store.mount(base)

    assert (again / "etc/passwd").exists()
    assert store.unmount(base)
    assert not mounts.is_mounted(path)


def test_records_of_another_boot_count_for_nothing(store: Store, base: str) -> None:
    """Nor do those whose mount has vanished."""
    path = store.mount(base)
    mounts.unmount(path)

    assert store.mounted(base) == 0
    assert store.mounts() == []
    assert (store.mount(base) / "etc/passwd").exists()


def test_two_hundred_layers_mount(store: Store) -> None:
    """One visible mount, all files visible."""
    parent = ""
    for number in range(200):
        parent = store.layers.import_(io.BytesIO(file(b"f%d" % number, b"1") + END), parent).id

    assert len(os.listdir(store.mount(parent))) == 200


def test_more_layers_than_overlay_takes_are_flattened(store: Store) -> None:
    """501 of them, with a removal among them."""
    parent = ""
    for number in range(501):
        diff = file(b"f%d" % number, b"1") if number != 300 else file(b".wh.f7")
        parent = store.layers.import_(io.BytesIO(diff + END), parent).id

    assert len(os.listdir(store.mount(parent))) == 499


@pytest.mark.parametrize("name", ["with space", "with:colon", "with,comma", "with\\backslash"])
def test_odd_roots_mount(tmp_path: Path, name: str) -> None:
    """Paths go to the kernel one by one."""
    with Store.open(tmp_path / name, run=tmp_path / f"{name} run") as store:
        layer = store.layers.import_(io.BytesIO(BASE))
        path = store.mount(layer.id)
        try:
            assert (path / "etc/passwd").read_bytes() == b"root:x:0:0\n"
        finally:
            store.unmount(layer.id)


@pytest.mark.parametrize("forced", [{"new_mount_api": False}, {"lowerdir_plus": False}])
def test_mounts_work_without_the_new_interface(store: Store, base: str, forced: dict[str, bool]) -> None:
    """By mount(2), as on older kernels."""
    from dataclasses import replace

    store._context.abilities = replace(store._context.abilities, **forced)
    child = store.layers.import_(io.BytesIO(file(b"x", b"1") + END), base)

    path = store.mount(child.id)
    (path / "y").write_bytes(b"2")

    assert sorted(os.listdir(path))[-2:] == ["x", "y"]
    store.unmount(child.id)
    assert changed(store, child.id)[b"/y"] == 1


def test_without_overlay_a_layer_is_a_tree(store: Store, base: str) -> None:
    """Chosen by itself; what was written under overlay is there."""
    path = store.mount(base)
    (path / "written").write_bytes(b"1")
    store.unmount(base)
    with Store.open(store.root, run=store.run.parent, driver="vfs") as other:
        tree_path = other.mount(base)
        assert (tree_path / "written").read_bytes() == b"1"
        (tree_path / "etc/passwd").write_bytes(b"tree")
        os.unlink(tree_path / "old/2")
        assert other.unmount(base)
        found = {change.path: change.kind for change in other.layers.changes(base)}
        assert found[b"/etc/passwd"] == 1

    path = store.mount(base)

    assert (path / "etc/passwd").read_bytes() == b"tree"
    assert not (path / "old/2").exists()
    assert (path / "bin/su").exists()


def test_a_second_run_root_is_refused_while_the_first_has_mounts(store: Store, base: str, tmp_path: Path) -> None:
    """Its table would be blind to them."""
    store.mount(base)

    with Store.open(store.root, run=tmp_path / "other") as other, pytest.raises(InvalidInput, match="run root"):
        other.mount(base)


KILLED = """
import os, sys
from lading import Store
from lading.materialize.mounttable import MountTable
MountTable.put = lambda *args, **kwargs: os.kill(os.getpid(), 9)
with Store.open(sys.argv[1], run=sys.argv[2]) as store:
    store.mount(sys.argv[3])
"""


def test_a_kill_between_mount_and_record_needs_no_repair(store: Store, base: str) -> None:
    """The next command just works."""
    run = store.run.parent
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.root), str(run), base], check=False)
    assert done.returncode == -9

    assert (store.mount(base) / "etc/passwd").exists()
    assert store.unmount(base)
    assert not [mount for mount in mounts.mountinfo() if mount.source == f"lading:{base}"]
    store.layers.delete(base)


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """On a small filesystem: the ingest fails with the reason, delete and gc work, then it fits."""
    from lading.errors import Full

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "small", small], check=True)
    try:
        with Store.open(small / "root", run=tmp_path / "run", settings=Settings(min_free=0)) as store:
            kept = store.layers.import_(io.BytesIO(file(b"kept", os.urandom(12_000_000)) + END))
            wanted = taken_out(store, kept.id)
            big = file(b"big", os.urandom(21_000_000)) + END
            with pytest.raises(Full, match="no space left"):
                store.layers.import_(io.BytesIO(big), id="big")
            assert [layer.id for layer in store.layers.all()] == [kept.id]
            assert taken_out(store, kept.id) == wanted
            filler = small / "filler"
            _fill(filler)
            store.layers.delete(kept.id)
            assert store.gc().freed_bytes > 12_000_000
            store.layers.import_(io.BytesIO(big), id="big")
            assert taken_out(store, "big") == big
    finally:
        subprocess.run(["umount", small], check=True)


def _fill(path: Path) -> None:
    """Leave no room on a filesystem."""
    with path.open("wb", buffering=0) as target:
        while True:
            try:
                target.write(bytes(1 << 12))
            except OSError:
                return


def test_a_store_on_a_read_only_filesystem_can_be_read(tmp_path: Path) -> None:
    """Listing, diffs, queries and checks work; what writes says so; not a byte is written."""
    from lading.errors import ReadOnly

    with Store.open(tmp_path / "root", run=tmp_path / "run") as store:
        layer = store.layers.import_(io.BytesIO(BASE), names=["base"])
        store.images.create(layer.id, names=["i"], big_data={"k": b"v"})
    view = tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "root", view], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
    try:
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
        with Store.open(view, run=tmp_path / "run2") as store:
            assert taken_out(store, "base") == BASE
            assert b"".join(store.images.data("i", "k")) == b"v"
            assert len(list(store.query("SELECT path FROM v_file")[1])) > 10
            assert store.check(content=True).findings == ()
            for write in (
                store.layers.create,
                store.gc,
                lambda: store.set_names("i", ["j"]),
                lambda: store.mount("base"),
            ):
                with pytest.raises(ReadOnly, match="read-only"):
                    write()
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before
    finally:
        subprocess.run(["umount", view], check=True)


def test_time_of_unmount_syncs(store: Store, base: str) -> None:
    """A container that is written and unmounted keeps its data across mounts, volatile or not."""
    container = store.containers.create(store.images.create(base).id, volatile=True)
    (store.mount(container.id) / "f").write_bytes(b"1")
    store.unmount(container.id)
    time.sleep(0)

    assert (store.mount(container.id) / "f").read_bytes() == b"1"


def test_trees_of_python_run_from_a_mount(store: Store, tmp_path: Path) -> None:
    """A program starts from the mounted tree."""
    layer = store.layers.import_(io.BytesIO(tree({"bin/hello": b"#!/bin/sh\necho hello from $0\n"})))
    path = store.mount(layer.id)
    os.chmod(path / "bin/hello", 0o755)

    done = subprocess.run([path / "bin/hello"], capture_output=True, text=True, check=True)

    assert done.stdout == f"hello from {path}/bin/hello\n"


def test_a_balance_is_told_while_another_process_probes(store: Store, base: str) -> None:
    """What it mounts in the cache for a moment is nobody's, and no error."""
    store.mount(base)
    probing = store.root / "cache/.probe-x/merged1"
    probing.mkdir(parents=True)
    before = store.balance()
    subprocess.run(["mount", "-t", "tmpfs", "probe", probing], check=True)
    try:
        assert store.balance() == before
        assert store.gc() == store.gc(dry_run=True)
    finally:
        subprocess.run(["umount", probing], check=True)
    store.unmount(base)
