"""Plain copies: everything round trips, nothing is followed, all or nothing appears."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.errors import AlreadyExists, Corrupt, Full, InvalidInput
from lading.materialize import attributes, build
from lading.materialize.beneath import remove_tree
from lading.materialize.copy import StatRecord, copy_tree, make_building, read_stat_index, stat_record, write_stat_index
from lading.values import IMPLIED, WHITEOUT, Entry, Inode
from tests.materialize.conftest import MemorySource
from tests.materialize.samples import (
    as_nobody,
    deep,
    describe,
    directory,
    every_kind,
    expected,
    ordered,
    other,
    regular,
)

pytestmark = pytest.mark.privileged


def debris(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".lading-")]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_every_kind_of_file_round_trips(tmp_path: Path, umask: int) -> None:
    """Owners, special bits, sub-second times, attributes, holes: whatever the umask is."""
    source = MemorySource()
    tree = every_kind(source)
    before = os.umask(umask)
    try:
        report = copy_tree(tmp_path / "new", tree, source)
    finally:
        os.umask(before)

    assert describe(tmp_path / "new") == expected(tree, source)
    assert report.warnings == ()
    assert report.files == sum(entry.inode is not None and entry.inode.type == "f" for entry in tree)
    assert debris(tmp_path) == []


def test_names_of_one_inode_share_it_and_equal_files_do_not(tmp_path: Path) -> None:
    source = MemorySource()
    tree = [*every_kind(source), regular(source, b"twin1", b"same"), regular(source, b"twin2", b"same")]
    copy_tree(tmp_path / "new", tree, source)
    inode = {path: os.lstat(tmp_path / "new" / path).st_ino for path in os.listdir(tmp_path / "new")}
    new = tmp_path / "new"

    assert (new / "bin/tool").stat().st_ino == inode["another-name"]
    assert inode["empty"] == inode["empty-too"]
    assert (new / "run/fifo").stat().st_ino == (new / "run/fifo2").stat().st_ino
    assert inode["twin1"] != inode["twin2"]


def test_holes_stay_holes(tmp_path: Path) -> None:
    source = MemorySource()
    copy_tree(tmp_path / "new", every_kind(source), source)

    assert (tmp_path / "new" / "sparse").stat().st_blocks * 512 < 64 << 10
    assert (tmp_path / "new" / "hole").stat().st_blocks == 0


def test_a_setgid_parent_with_a_default_acl_leaves_no_mark(tmp_path: Path) -> None:
    """What a destination's folder hands down to new files is not part of the tree."""
    acl = bytes.fromhex("02000000") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in [
            (1, 7, 2**32 - 1),
            (2, 7, 1234),
            (4, 5, 2**32 - 1),
            (16, 7, 2**32 - 1),
            (32, 0, 2**32 - 1),
        ]
    )
    os.setxattr(tmp_path, "system.posix_acl_default", acl)
    os.chown(tmp_path, 0, 77)
    tmp_path.chmod(0o2755)
    source = MemorySource()
    tree = every_kind(source)
    copy_tree(tmp_path / "new", tree, source)

    assert describe(tmp_path / "new") == expected(tree, source)


def test_access_control_lists_come_back_and_are_not_handed_down(tmp_path: Path) -> None:
    acl = bytes.fromhex("02000000") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in [
            (1, 7, 2**32 - 1),
            (2, 7, 1234),
            (4, 5, 2**32 - 1),
            (16, 7, 2**32 - 1),
            (32, 0, 2**32 - 1),
        ]
    )
    source = MemorySource()
    acls = ((b"system.posix_acl_access", acl), (b"system.posix_acl_default", acl))
    tree = [directory(b"d", 0o770, xattrs=acls), regular(source, b"d/plain", b"x", 0o640), directory(b"d/sub", 0o750)]
    copy_tree(tmp_path / "new", tree, source)
    facts = describe(tmp_path / "new")

    assert facts[b"d"][5] == acls
    assert facts[b"d/plain"][5] == facts[b"d/sub"][5] == ()


def test_deep_trees_need_few_descriptors(tmp_path: Path) -> None:
    source = MemorySource()
    levels = deep(1200)
    tree = ordered([*levels, *(regular(source, e.path + b"/f", b"%d" % i) for i, e in enumerate(levels))])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        copy_tree(tmp_path / "new", tree, source)
        facts = describe(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        remove_tree(tmp_path / "new")  # pytest's own tidying would recurse too deep

    facts.pop(b"")
    assert facts == expected(tree, source)


def test_implied_directories_without_attributes_are_bare(tmp_path: Path) -> None:
    copy_tree(tmp_path / "new", [Entry(b"d", IMPLIED), directory(b"d/e", 0o700)], MemorySource())

    assert describe(tmp_path / "new")[b"d"][:4] == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_attributes_that_belong_to_host_or_overlay_stay_away(tmp_path: Path) -> None:
    source = MemorySource()
    xattrs = ((b"security.selinux", b"l"), (b"trusted.overlay.opaque", b"y"), (b"user.overlay.opaque", b"y"))
    copy_tree(tmp_path / "new", [directory(b"d", xattrs=xattrs)], source)

    assert describe(tmp_path / "new")[b"d"][5] == ()


def test_an_attribute_too_large_for_the_filesystem_is_told_once(tmp_path: Path) -> None:
    source = MemorySource()
    huge = ((b"user.huge", b"x" * 60000),)
    tree = [regular(source, b"a", b"1", xattrs=huge), regular(source, b"b", b"2", xattrs=huge)]
    report = copy_tree(tmp_path / "new", tree, source)
    kept = describe(tmp_path / "new")[b"a"][5]

    assert (len(report.warnings) == 1 and kept == ()) or kept == huge


@pytest.mark.parametrize("moment", [-(1 << 80), 1 << 80, -1, 1])
def test_times_out_of_range_are_clamped(tmp_path: Path, moment: int) -> None:
    source = MemorySource()
    tree = [directory(b"d", mtime_ns=moment), regular(source, b"f", b"x", mtime_ns=moment)]
    copy_tree(tmp_path / "new", tree, source)
    found = describe(tmp_path / "new")

    assert found[b"d"][3] == found[b"f"][3]
    assert abs(moment) > 1 or found[b"f"][3] == moment


@pytest.mark.parametrize(
    "entries",
    [
        [Entry(b"x", WHITEOUT)],
        [directory(b"missing/d")],
        [other(b"x", "?")],
        [directory(b"../out")],
        [other(b"first", "f")._replace(link=b"nowhere")],
    ],
)
def test_entries_that_make_no_tree_are_refused_and_leave_nothing(tmp_path: Path, entries: list[Entry]) -> None:
    with pytest.raises(InvalidInput):
        copy_tree(tmp_path / "new", entries, MemorySource())

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [b"..", b".", b""])
def test_names_that_are_none_make_nothing_outside(tmp_path: Path, name: bytes) -> None:
    source = MemorySource()
    with pytest.raises((InvalidInput, OSError)):
        copy_tree(tmp_path / "new", [directory(b"d"), regular(source, b"d/" + name, b"x")], source)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", [{"size": 5}, {"size": 3}, {"sparse": ((0, 2),)}, {"sparse": ((0, 9),), "size": 9}])
def test_a_content_of_another_size_than_recorded_is_corrupt(tmp_path: Path, change: dict[str, Any]) -> None:
    source = MemorySource()
    with pytest.raises(Corrupt):
        copy_tree(tmp_path / "new", [regular(source, b"f", b"1234", **change)], source)

    assert os.listdir(tmp_path) == []


def test_a_missing_content_leaves_nothing(tmp_path: Path) -> None:
    source = MemorySource()
    tree = [regular(source, b"%d" % number, b"%d" % number) for number in range(300)]
    source.blobs.popitem()
    with pytest.raises(Corrupt):
        copy_tree(tmp_path / "new", ordered(tree), source)

    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=True)
    try:
        source = MemorySource()
        tree = [regular(source, b"a", b"a"), regular(source, b"large", os.urandom(3 << 20))]
        with pytest.raises(Full):
            copy_tree(tmp_path / "new", tree, source)
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("kind", ["file", "link", "full folder"])
def test_an_occupied_destination_is_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    new = tmp_path / "new"
    if kind == "file":
        new.write_bytes(b"mine")
    elif kind == "link":
        new.symlink_to("elsewhere")
    else:
        new.mkdir()
        (new / "mine").write_bytes(b"mine")
    with pytest.raises(AlreadyExists):
        copy_tree(new, [directory(b"d")], MemorySource())

    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "new"]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_an_empty_folder_and_an_empty_mount_point_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "mounted"], check=True)
    try:
        for name in ("empty", "mounted"):
            copy_tree(tmp_path / name, [directory(b"d")], MemorySource())
            assert os.listdir(tmp_path / name) == ["d"]
        with pytest.raises(AlreadyExists):
            copy_tree(tmp_path / "mounted", [directory(b"d")], MemorySource())
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)


class Planting(MemorySource):
    """Hands out contents, and plants traps in the tree that is being built meanwhile."""

    def __init__(self, folder: Path, trap: Path, replace: str) -> None:
        super().__init__()
        self.folder, self.trap, self.replace = folder, trap, replace

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        for built in self.folder.glob(".lading-*"):
            target = built / self.replace
            if target.is_dir():
                target.rmdir()
            target.symlink_to(self.trap)
        yield from super().contents(digests)


@pytest.mark.parametrize("replaced", ["d000", "file", "d000/f"])
def test_traps_planted_while_building_are_never_followed(tmp_path: Path, replaced: str) -> None:
    """Someone who may write to the destination swaps a folder, or a name to come, for a link."""
    (tmp_path / "prey").mkdir()
    (tmp_path / "prey" / "f").write_bytes(b"precious")
    prey = tmp_path / "prey" / ("f" if replaced != "d000" else "")
    source = Planting(tmp_path, prey, replaced)
    names = [b"d%03d" % number for number in range(40)]  # so many that the first is closed again
    tree = [directory(name) for name in names] + [regular(source, name + b"/f", b"evil", 0o4777) for name in names]
    before = describe(tmp_path / "prey")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - checked below
        copy_tree(tmp_path / "new", ordered([*tree, regular(source, b"file", b"evil", 0o4777)]), source)

    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST)
    assert describe(tmp_path / "prey") == before
    assert os.listdir(tmp_path) == ["prey"]


def test_a_killed_copy_leaves_debris_that_the_next_one_removes(tmp_path: Path) -> None:
    class Killing(MemorySource):
        def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
            for number, chunks in enumerate(super().contents(digests)):
                if number == 290:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield chunks

    source = Killing()
    tree = [regular(source, b"%03d" % number, b"%d" % number) for number in range(300)]
    child = os.fork()
    if not child:
        copy_tree(tmp_path / "new", tree, source)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(debris(tmp_path)) == 1
    assert not (tmp_path / "new").exists()

    (tmp_path / ".lading-mine").write_bytes(b"a file of somebody's")
    sound = MemorySource()
    sound.blobs = source.blobs
    copy_tree(tmp_path / "new", tree, sound)
    assert debris(tmp_path) == [".lading-mine"]
    assert len(os.listdir(tmp_path / "new")) == 300


def test_an_ordinary_user_gets_what_he_may_have(tmp_path: Path) -> None:
    """Files are his, devices are left out, setuid stays only on what is recorded as his."""
    source = MemorySource()
    tree = every_kind(source)
    tree += [regular(source, b"z-mine", b"x", 0o4755, uid=65534), regular(source, b"z-other", b"x", 0o4755, uid=5)]

    def work() -> str:
        report = copy_tree(tmp_path / "new", tree, source)
        return "\n".join(report.warnings)

    warnings = as_nobody(work, tmp_path).split("\n")
    facts = describe(tmp_path / "new")

    assert {fact[1:3] for fact in facts.values()} == {(65534, 65534)}
    assert stat.S_IMODE(facts[b"z-mine"][0]) == 0o4755
    assert stat.S_IMODE(facts[b"z-other"][0]) == 0o755
    assert stat.S_IMODE(facts[b"shut"][0]) == 0
    assert facts[b"shut/in"][4] == b"in"
    assert facts.keys() == {entry.path for entry in tree} - {b"run/null", b"run/disk"}
    assert facts[b"notes"][5] == ((b"user.note", b"hello"),)
    assert len(warnings) == len(set(warnings)) == 4, warnings  # devices, setuid, trusted.*, security.*


def test_without_proc_modes_are_still_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the umask is unknown, every mode is set by itself."""
    monkeypatch.setattr(attributes, "_umask", lambda: 0o777)
    source = MemorySource()
    tree = every_kind(source)
    copy_tree(tmp_path / "new", tree, source)

    assert describe(tmp_path / "new") == expected(tree, source)


def test_more_names_than_an_inode_can_have_start_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_link = os.link

    def limited(source: Any, target: Any, **options: Any) -> None:
        if os.stat(source, dir_fd=options["src_dir_fd"], follow_symlinks=False).st_nlink >= 3:
            raise OSError(errno.EMLINK, "Too many links")
        real_link(source, target, **options)

    monkeypatch.setattr(os, "link", limited)
    source = MemorySource()
    first = regular(source, b"f0", b"content", 0o640)
    tree = [first, *(first._replace(path=b"f%d" % n, link=b"f0") for n in range(1, 8))]
    report = copy_tree(tmp_path / "new", tree, source)
    files = sorted((tmp_path / "new").iterdir())

    assert {file.read_bytes() for file in files} == {b"content"}
    assert [file.stat().st_nlink for file in files] == [3, 3, 3, 3, 3, 3, 2, 2]
    assert report.index == {os.fsencode(file.name): stat_record(file.stat()) for file in files}


def test_the_index_tells_how_files_looked_when_the_copy_was_complete(tmp_path: Path) -> None:
    source = MemorySource()
    report = copy_tree(tmp_path / "new", every_kind(source), source)
    write_stat_index(tmp_path / "index", report.index)
    index = read_stat_index(tmp_path / "index")

    assert index == report.index
    files = [path for path, facts in describe(tmp_path / "new").items() if stat.S_ISREG(facts[0])]
    assert index == {path: stat_record(os.lstat(os.fsencode(tmp_path / "new") + b"/" + path)) for path in files}


records = st.builds(
    StatRecord, st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.integers(-(2**70), 2**70), st.integers(0, 2**70)
)


@given(st.dictionaries(st.binary(min_size=1, max_size=40), records, max_size=8))
def test_any_index_round_trips(tmp_path_factory: pytest.TempPathFactory, index: dict[bytes, StatRecord]) -> None:
    path = tmp_path_factory.getbasetemp() / "some-index"
    write_stat_index(path, index)

    assert read_stat_index(path) == index


def test_a_damaged_index_is_no_index(tmp_path: Path) -> None:
    """Without it every file is read again, which is slow and right."""
    path = tmp_path / "index"
    write_stat_index(path, {b"a": StatRecord(1, 2, 3, 4), b"b": StatRecord(5, 6, 7, 8)})
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], whole[:20] + b"?" + whole[21:]):
        path.write_bytes(damaged)
        assert read_stat_index(path) == {}
    assert read_stat_index(tmp_path / "none") == {}


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    source = MemorySource()
    told: list[int] = []
    tree = [regular(source, b"a", b"123"), regular(source, b"b", os.urandom(2 << 20)), regular(source, b"c", b"")]
    report = copy_tree(tmp_path / "new", tree, source, progress=lambda done, _: told.append(done))

    assert told == sorted(told)
    assert told[-1] == report.bytes == 3 + (2 << 20)


def test_an_error_on_a_writing_thread_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource()
    tree = [regular(source, b"%04d" % number, b"%d" % number) for number in range(3000)]
    real = build.write_content

    def failing(descriptor: int, inode: Inode, chunks: Iterable[bytes], path: bytes) -> None:
        if path == b"0300":
            raise OSError(errno.EIO, "I/O error")
        real(descriptor, inode, chunks, path)

    monkeypatch.setattr(build, "write_content", failing)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="I/O error"):
        copy_tree(tmp_path / "new", tree, source)

    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []


def test_attributes_replace_whatever_a_file_had(tmp_path: Path) -> None:
    """Who writes onto a tree that exists cannot count on what creation gave."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    os.chown(path, 5, 6)
    path.chmod(0o600)
    wanted = Inode("f", 0o644, 0, 0, 7)
    descriptor = os.open(path, os.O_RDONLY)
    attributes.Attributes(as_root=True).apply(descriptor, wanted)
    os.close(descriptor)
    os.mkfifo(tmp_path / "fifo", 0o600)
    os.chown(tmp_path / "fifo", 5, 6)
    folder = os.open(tmp_path, os.O_RDONLY)
    attributes.Attributes(as_root=True).apply_at(b"fifo", folder, wanted._replace(type="p"))
    os.close(folder)

    for name in ("f", "fifo"):
        status = (tmp_path / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns) == (0o644, 0, 0, 7)


def test_a_folder_to_build_in_that_is_tidied_up_at_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another builder takes what is not locked yet for a dead one's."""
    mkdir = os.mkdir
    made: list[str] = []

    def tidied(path: str, *arguments: int, dir_fd: int) -> None:
        mkdir(path, *arguments, dir_fd=dir_fd)
        made.append(path)
        if len(made) == 1:
            os.rmdir(path, dir_fd=dir_fd)

    parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", tidied)
            name, descriptor = make_building(parent, ".building-")
        os.close(descriptor)
    finally:
        os.close(parent)
    assert len(made) == 2
    assert os.listdir(tmp_path) == [name] == made[1:]
