"""Directory descriptors: nothing leaves the root, nothing is followed, depth does not matter."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading.errors import Full, ReadOnly
from lading.materialize import beneath
from lading.materialize.beneath import Directories, open_beneath, remove_tree, told, walk
from tests.materialize.samples import as_nobody


@pytest.fixture(params=["openat2", "by component"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of opening below a root."""
    if request.param == "by component":
        monkeypatch.setattr(beneath, "_openat2", lambda: None)
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "root" / "up").symlink_to("..")
    (tmp_path / "root" / "a" / "loop").symlink_to("b")
    descriptor = os.open(tmp_path / "root", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.usefixtures("way")
def test_a_file_below_the_root_is_opened(root: int) -> None:
    descriptor = open_beneath(root, b"a/b/file")
    with open(descriptor, "rb") as file:
        assert file.read() == b"inside"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("path", [b"../secret", b"up/secret", b"a/../../secret", b"/etc/passwd", b"a/loop/file", b"up"])
def test_no_path_leaves_the_root_or_follows_a_link(root: int, path: bytes) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - the number differs between the two ways
        os.close(open_beneath(root, path))


@pytest.mark.usefixtures("way")
def test_a_fifo_does_not_block_its_reader(root: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "fifo")

    os.close(open_beneath(root, b"fifo"))


def _make_deep(folder: Path, levels: int) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("deeper-and-deeper", dir_fd=descriptor)
        below = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


@pytest.mark.usefixtures("way")
def test_a_tree_deeper_than_a_path_can_say_is_walked_and_removed(tmp_path: Path) -> None:
    """1,200 levels of 17 bytes are five times the longest path; few descriptors must do."""
    (tmp_path / "deep").mkdir()
    _make_deep(tmp_path / "deep", 1200)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor = os.open(tmp_path / "deep", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        assert sum(1 for _ in walk(descriptor)) == 1201
        remove_tree(tmp_path / "deep")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(descriptor)

    assert not (tmp_path / "deep").exists()


def test_removal_counts_an_inode_once_and_only_when_its_last_name_goes(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "one").write_bytes(b"12345")
    os.link(tmp_path / "t" / "one", tmp_path / "t" / "two")
    (tmp_path / "t" / "kept").write_bytes(b"123")
    os.link(tmp_path / "t" / "kept", tmp_path / "outside")

    assert remove_tree(tmp_path / "t") == 5
    assert remove_tree(tmp_path / "t") == 0
    assert (tmp_path / "outside").read_bytes() == b"123"


def test_removal_takes_links_themselves(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "top").symlink_to(tmp_path / "kept")

    remove_tree(tmp_path / "t")
    remove_tree(tmp_path / "top")

    assert sorted(os.listdir(tmp_path)) == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.privileged
def test_removal_never_enters_a_mount(tmp_path: Path) -> None:
    """A mount forgotten inside a tree must survive with all its content."""
    (tmp_path / "t" / "mounted").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "t" / "mounted"], check=True)
    try:
        (tmp_path / "t" / "mounted" / "file").write_bytes(b"x")
        with pytest.raises(OSError, match="cross-device") as caught:
            remove_tree(tmp_path / "t")
        assert caught.value.errno == errno.EXDEV
        assert (tmp_path / "t" / "mounted" / "file").exists()
    finally:
        subprocess.run(["umount", tmp_path / "t" / "mounted"], check=True)


@pytest.mark.privileged
def test_an_ordinary_user_removes_folders_that_shut_him_out(tmp_path: Path) -> None:
    def work() -> str:
        (tmp_path / "t" / "a" / "b").mkdir(parents=True)
        (tmp_path / "t" / "a" / "b" / "file").write_bytes(b"1234")
        for name in ("t/a/b", "t/a", "t"):
            (tmp_path / name).chmod(0)
        return f"{remove_tree(tmp_path / 't')} {os.listdir(tmp_path)}"

    assert as_nobody(work, tmp_path) == "4 []"


def test_directories_keep_a_bounded_number_open(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    with Directories(root) as directories:
        for number in range(40):
            directories.fd(b"%d" % number)
        assert len(os.listdir("/proc/self/fd")) <= before + beneath.OPEN_DIRECTORIES
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(root)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, Full), (errno.EDQUOT, Full), (errno.EFBIG, Full), (errno.EROFS, ReadOnly)]
)
def test_faults_of_the_filesystem_are_told_by_name(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="the/place"), told("the/place"):
        raise OSError(number, os.strerror(number))


def test_a_tree_that_another_process_removes_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last name in it and its own."""
    (tmp_path / "t").mkdir()
    rmdir = os.rmdir

    def late(path: Path, **options: int | None) -> None:
        rmdir(path)
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", late)
    assert remove_tree(tmp_path / "t") == 0
    assert not (tmp_path / "t").exists()
