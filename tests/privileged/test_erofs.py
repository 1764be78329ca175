"""EROFS images: judged by fsck.erofs, dump.erofs, the kernel, and what GNU tar unpacks."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from lading import Store
from lading.errors import Corrupt, InvalidInput
from lading.materialize import erofs, syscalls
from lading.materialize.beneath import remove_tree, walk
from lading.materialize.imagemount import open_image
from lading.materialize.probe import Abilities
from lading.values import PRESENT, WHITEOUT, Entry, Inode
from tests.materialize.conftest import MemorySource
from tests.materialize.samples import CAPABILITY, T, directory, every_kind, further, ordered, other, regular

pytestmark = pytest.mark.privileged

FILE = Abilities(True, True, True, True, True, True, True, erofs_file=True)
LOOP = Abilities(True, True, True, True, True, True, True, erofs_loop=True)


def written(path: Path, entries: list[Entry], source: MemorySource) -> erofs.ImageInfo:
    """Write an image into a new file."""
    with open(path, "xb+") as file:
        return erofs.write_image(file.fileno(), entries, source)


@contextmanager
def mounted(image: Path, abilities: Abilities = FILE) -> Iterator[Path]:
    """An image at a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="lading-erofs-"))
    descriptor = open_image(image, abilities)
    syscalls.move_mount(descriptor, os.fsencode(folder))
    os.close(descriptor)
    try:
        yield folder
    finally:
        syscalls.umount2(os.fsencode(folder), 0)
        folder.rmdir()


def facts(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that a tree shows: type, mode, owner, time, size, target, attributes, device, content, number of names."""
    found = {}
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path, folder, items in walk(descriptor):
            if not path:
                found[b""] = _facts(b"/proc/self/fd/%d" % folder, os.stat(folder))
            for item in items:
                name = os.fsencode(item.name)
                place = b"/proc/self/fd/%d/%s" % (folder, name)
                found[path + b"/" + name if path else name] = _facts(place, os.lstat(place))
    finally:
        os.close(descriptor)
    return found


def _facts(path: bytes, status: os.stat_result) -> tuple[object, ...]:
    is_folder, is_link, is_file = (check(status.st_mode) for check in (stat.S_ISDIR, stat.S_ISLNK, stat.S_ISREG))
    xattrs = sorted(
        (os.fsencode(n), os.getxattr(path, n, follow_symlinks=is_folder))
        for n in os.listxattr(path, follow_symlinks=is_folder)
    )
    content: object = None
    if is_link:
        content = os.readlink(path)
    elif is_file:
        state = blake3()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                state.update(chunk)
        content = (status.st_size, state.digest())
    elif not is_folder:
        content = status.st_rdev
    mode = stat.S_IFMT(status.st_mode) if is_link else status.st_mode
    return (mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink, content, xattrs)


def accepted(image: Path) -> None:
    """fsck.erofs finds nothing, and reads every file."""
    done = subprocess.run(["fsck.erofs", "--extract", image], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"<E>|corrupt", done.stdout + done.stderr)


def test_every_kind_of_file_is_as_it_should_be(tmp_path: Path) -> None:
    """By both ways of mounting."""
    source = MemorySource()
    tree = every_kind(source)
    info = written(tmp_path / "image", tree, source)

    accepted(tmp_path / "image")
    assert info.size == (tmp_path / "image").stat().st_size
    for abilities in (FILE, LOOP):
        with mounted(tmp_path / "image", abilities) as root:
            found = facts(root)
            assert set(found) == {entry.path for entry in tree}
            names: dict[bytes, int] = {}
            for entry in tree:
                first = entry.link or entry.path
                names[first] = names.get(first, 0) + 1
            for entry in tree:
                inode = entry.inode
                assert inode is not None
                mode, uid, gid, mtime, nlink, content, xattrs = found[entry.path]
                assert (uid, gid, mtime) == (inode.uid, inode.gid, inode.mtime_ns), entry.path
                assert tuple(xattrs) == inode.xattrs  # type: ignore[arg-type]
                if inode.type != "l":
                    assert stat.S_IMODE(mode) == inode.mode  # type: ignore[arg-type]
                if inode.type == "f":
                    assert content == (inode.size, blake3(_whole(inode, source)).digest()), entry.path
                elif inode.type in "cb":
                    assert content == inode.rdev
                elif inode.type == "l":
                    assert content == inode.target
                if inode.type != "d":
                    assert nlink == names[entry.link or entry.path]
    dumped = subprocess.run(["dump.erofs", "-s", tmp_path / "image"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"inode count:\s+{len(names)}\n", dumped)
    shown = subprocess.run(
        ["dump.erofs", "--path=/bin/tool", tmp_path / "image"], capture_output=True, text=True, check=True
    )
    assert re.search(r"Size: 4000\b", shown.stdout)
    assert re.search(r"Links: 2\b", shown.stdout)


def _whole(inode: Inode, source: MemorySource) -> bytes:
    stored = source.blobs.get(inode.digest, b"") if inode.digest else b""
    if not inode.sparse and len(stored) == inode.size:
        return stored
    data = bytearray(inode.size)
    taken = 0
    for offset, length in inode.sparse:
        data[offset : offset + length] = stored[taken : taken + length]
        taken += length
    return bytes(data)


def test_sizes_around_blocks_and_directories_of_any_size(tmp_path: Path) -> None:
    """Ends behind inodes, in blocks of their own, shared ones; directories of several blocks."""
    source = MemorySource()
    sizes = [
        0,
        1,
        31,
        4000,
        4031,
        4032,
        4033,
        4064,
        4065,
        4095,
        4096,
        4097,
        8191,
        8192,
        8193,
        12288,
        100_000,
        (4 << 20) + 1,
    ]
    entries = [directory(b"d"), directory(b"many"), directory(b"odd")]
    entries += [regular(source, b"d/%d" % size, os.urandom(size)) for size in sizes]
    entries += [
        regular(source, b"d/again%d" % size, source.blobs[entry.inode.digest])
        for size, entry in zip(sizes, entries[3:], strict=True)
        if entry.inode
    ]
    entries += [regular(source, b"many/%s" % (b"%05d" % n + b"n" * (n % 240)), b"x" * (n % 7)) for n in range(3000)]
    entries += [
        other(b"odd/" + name, "p") for name in (b"!", b"-", b"..a", b".a", b"...", b"/".replace(b"/", b"0"), b"\xff")
    ]
    entries += [other(b"long", "l", 0o777, target=b"t" * 4095), other(b"short", "l", 0o777, target=b"t")]
    tree = ordered(entries)
    written(tmp_path / "image", tree, source)

    accepted(tmp_path / "image")
    with mounted(tmp_path / "image") as root:
        found = facts(root)
        assert set(found) == {b"", *(entry.path for entry in tree)}
        assert found[b"long"][5] == b"t" * 4095
        assert sorted(os.listdir(os.fsencode(root / "odd"))) == sorted(
            [b"!", b"-", b"..a", b".a", b"...", b"0", b"\xff"]
        )
        for entry in tree:
            if entry.inode and entry.inode.type == "f":
                assert found[entry.path][5] == (entry.inode.size, blake3(source.blobs[entry.inode.digest]).digest())


def test_files_over_4_gib_and_holes_of_a_tebibyte(tmp_path: Path) -> None:
    """Sizes, devices and owners that need all bits they can have."""
    source = MemorySource()
    head, end = b"h" * 5000, b"e" * 100
    five = regular(source, b"five", head + end, size=5 << 30, sparse=((0, 5000), ((5 << 30) - 100, 100)))
    huge = regular(source, b"huge", b"z" * 10, size=1 << 40, sparse=(((1 << 40) - 10, 10),))
    tree = ordered([
        five, huge, regular(source, b"hole", b"", size=3 << 40),
        regular(source, b"owned", b"o", uid=(1 << 32) - 2, gid=70_000),
        other(b"dev", "c", 0o600, rdev=os.makedev(4095, 1_048_575)),
        regular(source, b"old", b"o", mtime_ns=-(10**9) * 3_000_000_000 - 1),
        regular(source, b"late", b"l", mtime_ns=10**9 * (1 << 40) + 999_999_999),
    ])  # fmt: skip
    written(tmp_path / "image", tree, source)

    assert (tmp_path / "image").stat().st_blocks * 512 < 20 << 20
    with mounted(tmp_path / "image") as root:
        for name, size in ((b"five", 5 << 30), (b"huge", 1 << 40), (b"hole", 3 << 40)):
            assert os.stat(os.fsencode(root) + b"/" + name).st_size == size
        with open(root / "five", "rb") as file:
            assert file.read(6000) == head + bytes(1000)
            file.seek(-200, os.SEEK_END)
            assert file.read() == bytes(100) + end
        with open(root / "huge", "rb") as file:
            file.seek(-20, os.SEEK_END)
            assert file.read() == bytes(10) + b"z" * 10
        status = os.stat(root / "owned")
        assert (status.st_uid, status.st_gid) == ((1 << 32) - 2, 70_000)
        assert os.stat(root / "dev").st_rdev == os.makedev(4095, 1_048_575)
        assert os.stat(root / "old").st_mtime_ns == -(10**9) * 3_000_000_000 - 1
        assert os.stat(root / "late").st_mtime_ns == 10**9 * (1 << 40) + 999_999_999


def test_attributes_shared_long_and_many(tmp_path: Path) -> None:
    """Equal ones are kept once; long ones need not fit a block; what the format cannot hold is told."""
    source = MemorySource()
    common = ((b"security.capability", CAPABILITY), (b"user.k", b"v"))
    large = tuple((b"user.%03d" % n, os.urandom(3000)) for n in range(40))
    tree = ordered([
        *(regular(source, b"f%d" % n, b"x" * n, xattrs=common) for n in range(50)),
        regular(source, b"large", b"y" * 5000, xattrs=large),
        regular(source, b"max", b"y", xattrs=((b"user." + b"n" * 250, b"v" * 65_535),)),
        regular(source, b"over", b"y", xattrs=((b"user.big", b"v" * 65_536), (b"user.small", b""))),
        directory(b"dir", xattrs=((b"trusted.overlay.opaque", b"y"), (b"user.x", b"1"))),
    ])  # fmt: skip
    info = written(tmp_path / "image", tree, source)

    accepted(tmp_path / "image")
    assert info.warnings == ("extended attributes that an EROFS image cannot hold are left out",)
    with mounted(tmp_path / "image") as root:
        found = facts(root)
        for n in range(50):
            assert tuple(found[b"f%d" % n][6]) == common  # type: ignore[arg-type]
        assert tuple(found[b"large"][6]) == large  # type: ignore[arg-type]
        assert found[b"max"][6] == [(b"user." + b"n" * 250, b"v" * 65_535)]
        assert found[b"over"][6] == [(b"user.small", b"")]
        assert os.getxattr(root / "dir", "trusted.overlay.overlay.opaque") == b"y"


def test_marks_of_overlay(tmp_path: Path) -> None:
    """Removals are devices 0:0; opaque directories say so."""
    tree = [Entry(b"gone", WHITEOUT), directory(b"opaque", opaque=True), other(b"zero", "c", rdev=0)]
    info = written(tmp_path / "image", tree, MemorySource())
    with mounted(tmp_path / "image") as root:
        status = os.lstat(root / "gone")
        assert (stat.S_IFMT(status.st_mode), status.st_rdev) == (stat.S_IFCHR, 0)
        assert os.getxattr(root / "opaque", "trusted.overlay.opaque") == b"y"
    assert info.warnings == ()


def test_one_content_is_one_image(tmp_path: Path) -> None:
    """The same entries give the same bytes, another order of contents in the source or not."""
    source = MemorySource()
    tree = every_kind(source)
    first, second = written(tmp_path / "one", tree, source), written(tmp_path / "two", list(tree), source)
    assert first == second
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("data", [b"short", b"longer than it should be"])
def test_a_content_of_another_size_is_refused(tmp_path: Path, data: bytes) -> None:
    """However the source came to it."""
    source = MemorySource()
    entry = regular(source, b"f", data)
    assert entry.inode is not None
    with pytest.raises(Corrupt, match=r"f: its content is (shorter|longer) than recorded"):
        written(tmp_path / "image", [entry._replace(inode=entry.inode._replace(size=10))], source)


def test_entries_that_make_no_tree_are_refused(tmp_path: Path) -> None:
    """No directory to be in; no file to be another name of."""
    source = MemorySource()
    one = regular(source, b"a/b", b"x")
    with pytest.raises(InvalidInput, match="lies in no directory"):
        written(tmp_path / "one", [one], source)
    with pytest.raises(InvalidInput, match="further name"):
        written(tmp_path / "two", [further(b"c", one)], source)


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"trusted.c"]), st.binary(max_size=300), max_size=3
).map(lambda pairs: tuple(sorted(pairs.items())))


@st.composite
def random_trees(draw: st.DrawFn) -> tuple[list[Entry], MemorySource]:
    """A tree of some files of every kind."""
    source = MemorySource()
    entries: dict[bytes, Entry] = {}
    folders = [b""]
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(folders))
        name = draw(NAMES)
        path = parent + b"/" + name if parent else name
        if path in entries:
            continue
        kind = draw(st.sampled_from("ffffddlcbp"))
        mode = draw(st.integers(0, 0o7777))
        inode = Inode(
            kind, mode, draw(st.sampled_from([0, 5, 70_000])), draw(st.sampled_from([0, 5])),
            draw(st.sampled_from([T, T, 0, -1])), xattrs=draw(XATTRS) if kind in "fd" else (),
        )  # fmt: skip
        if kind == "f":
            data = draw(st.sampled_from([b"", b"x", b"shared" * 900, b"y" * 4096, b"z" * 10_000])) + draw(
                st.binary(max_size=40)
            )
            inode = inode._replace(size=len(data), digest=source.add(data))
        elif kind == "l":
            inode = inode._replace(target=draw(st.binary(min_size=1, max_size=80).filter(lambda t: b"\0" not in t)))
        elif kind in "cb":
            inode = inode._replace(rdev=os.makedev(draw(st.integers(1, 4095)), draw(st.integers(0, 1_048_575))))
        entries[path] = Entry(path, PRESENT, inode)
        if kind == "d":
            folders.append(path)
        elif draw(st.booleans()) and kind != "d" and path + b"2" not in entries and len(name) < 12:
            entries[path + b"2"] = entries[path]._replace(path=path + b"2", link=path)
    return ordered(list(entries.values())), source


@settings(max_examples=60, deadline=None)
@given(random_trees())
def test_random_trees(made: tuple[list[Entry], MemorySource]) -> None:
    """fsck accepts, the kernel shows what was asked for, and every content is found again."""
    tree, source = made
    folder = Path(tempfile.mkdtemp(prefix="lading-erofs-"))
    try:
        written(folder / "image", tree, source)
        accepted(folder / "image")
        with open(folder / "image", "rb") as image:
            assert erofs.damaged_files(image.fileno(), tree) == []
        with mounted(folder / "image") as root:
            found = facts(root)
            assert set(found) == {b"", *(entry.path for entry in tree)}
            for entry in tree:
                inode = entry.inode
                assert inode is not None
                _, uid, gid, mtime, _, content, xattrs = found[entry.path]
                assert (uid, gid, mtime) == (inode.uid, inode.gid, inode.mtime_ns)
                assert tuple(xattrs) == inode.xattrs  # type: ignore[arg-type]
                if inode.type == "f":
                    assert content == (inode.size, blake3(source.blobs[inode.digest]).digest())
                elif inode.type == "l":
                    assert content == inode.target
                elif inode.type in "cb":
                    assert content == inode.rdev
    finally:
        remove_tree(folder)


def _tars(folder: Path) -> list[Path]:
    """The corpus where there is one, and always a layer of this machine's own files."""
    corpus = os.environ.get("LADING_CORPUS")
    own = folder / "own.tar"
    subprocess.run(
        ["tar", "--create", f"--file={own}", "--xattrs", "--xattrs-include=*", "--format=posix", "--directory=/", "etc", "usr/bin", "usr/share/perl5"],
        check=False, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return [own, *(sorted(Path(corpus).glob("*.tar")) if corpus else [])]


def test_images_of_real_layers_show_what_gnu_tar_unpacks(tmp_path: Path) -> None:
    """A full walk: type, mode, owner, time, size, target, attributes, device, content, number of names."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", driver="overlay") as store:
        for number, tar in enumerate(_tars(tmp_path)):
            layer = store.layers.import_(io.BytesIO(tar.read_bytes()))
            unpacked = tmp_path / f"tar{number}"
            unpacked.mkdir()
            subprocess.run(
                ["tar", "--extract", f"--file={tar}", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-permissions", f"--directory={unpacked}"],
                check=True,
            )  # fmt: skip
            store.cache.prefetch(layer.id)
            (view,) = [found for found in store.cache.all() if layer.id in found.layers]
            image = store.root / "cache/erofs" / f"{view.name}.img"
            accepted(image)
            with mounted(image) as root:
                found, wanted = facts(root), facts(unpacked)
            for result in (found, wanted):
                del result[b""]
            for path in wanted:
                parent, slash, name = path.rpartition(b"/")
                if name.startswith(b".wh."):  # plain files to tar
                    assert (*found.pop(parent + slash + name[4:])[:1], 0) == (stat.S_IFCHR, 0)
                    continue
                assert found[path] == wanted[path] or _only_implied(found[path], wanted[path]), path
            assert set(found) == {path for path in wanted if not path.rpartition(b"/")[2].startswith(b".wh.")}
            remove_tree(unpacked)
            store.layers.delete(layer.id)


def _only_implied(found: tuple[object, ...], wanted: tuple[object, ...]) -> bool:
    """A directory that the tar does not name: tar gives it the time of unpacking, the store none."""
    return stat.S_ISDIR(int(found[0])) and found[3] == 0 and found[1:3] == wanted[1:3]  # type: ignore[call-overload]
