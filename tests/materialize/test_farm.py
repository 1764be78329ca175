"""Farms: the same trees out of shared inodes, marked for overlay, never trusted blindly."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lading.errors import Corrupt, InvalidInput
from lading.materialize.beneath import remove_tree
from lading.materialize.farm import build_farm, find_farm
from lading.materialize.pool import pool_name
from lading.values import IMPLIED, WHITEOUT, Entry, inode_key
from tests.materialize.conftest import MemorySource
from tests.materialize.samples import (
    ROOT,
    as_nobody,
    deep,
    describe,
    directory,
    every_kind,
    expected,
    further,
    ordered,
    other,
    regular,
)

pytestmark = pytest.mark.privileged


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def pool_file(cache: Path, entry: Entry, number: int = 0) -> Path:
    assert entry.inode is not None
    return cache / "pool" / pool_name(inode_key(entry.inode), number)


def debris(cache: Path) -> list[str]:
    return [name for name in os.listdir(cache / "trees") if name.startswith(".")]


def test_every_kind_of_file_appears_in_a_farm(cache: Path) -> None:
    """Built cold, built from the pool, and found again: always the same tree."""
    source = MemorySource()
    tree = every_kind(source)
    cold = build_farm(cache, "cold", tree, source, ROOT)
    source.asked.clear()
    warm = build_farm(cache, "warm", tree, source, ROOT)
    again = build_farm(cache, "cold", tree, source, ROOT)

    assert describe(cold.path) == describe(warm.path) == expected(tree, source)
    assert source.asked == []
    assert (cold.built, warm.built, again.built, warm.written) == (True, True, False, 1)  # the empty file is its own
    assert (again.files, again.bytes, again.entries) == (cold.files, cold.bytes, cold.entries)
    assert find_farm(cache, "cold") == cold.path == cache / "trees" / "cold"
    assert find_farm(cache, "other") is None
    assert debris(cache) == []


def test_the_cache_shuts_everybody_else_out(cache: Path) -> None:
    """A setuid file in a farm must not be within reach of other users."""
    source = MemorySource()
    build_farm(cache, "k", every_kind(source), source, ROOT)

    for folder in [cache, cache / "pool", cache / "trees", *(p for p in (cache / "pool").iterdir() if p.is_dir())]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_farms_share_inodes_but_never_empty_files(cache: Path) -> None:
    source = MemorySource()
    content = regular(source, b"a", b"content")
    tree = [content, content._replace(path=b"b"), regular(source, b"e1", b""), regular(source, b"e2", b"")]
    one, two = (build_farm(cache, key, tree, source, ROOT).path for key in ("one", "two"))
    inode = pool_file(cache, content).stat()

    assert {(path / name).stat().st_ino for path in (one, two) for name in "ab"} == {inode.st_ino}
    assert inode.st_nlink == 5
    assert [(one / name).stat().st_nlink for name in ("e1", "e2")] == [1, 1]
    assert source.asked == [content.inode and content.inode.digest]


def test_files_that_differ_only_in_metadata_are_different_inodes(cache: Path) -> None:
    source = MemorySource()
    tree = [
        regular(source, b"a", b"x"),
        regular(source, b"b", b"x", 0o600),
        regular(source, b"c", b"x", uid=5),
        regular(source, b"d", b"x", mtime_ns=1),
        regular(source, b"e", b"x", xattrs=((b"user.a", b"1"),)),
    ]
    path = build_farm(cache, "k", tree, source, ROOT).path

    assert len({(path / name).stat().st_ino for name in "abcde"}) == 5
    facts = describe(path)
    facts.pop(b"")
    assert facts == expected(tree, source)


def test_names_of_one_inode_share_it_even_when_empty_or_a_device(cache: Path) -> None:
    source = MemorySource()
    path = build_farm(cache, "k", every_kind(source), source, ROOT).path

    for one, two in [("bin/tool", "another-name"), ("empty", "empty-too"), ("run/fifo", "run/fifo2")]:
        assert (path / one).lstat().st_ino == (path / two).lstat().st_ino


def test_a_first_name_may_come_later_in_order(cache: Path) -> None:
    source = MemorySource()
    first = regular(source, b"z", b"content")
    path = build_farm(cache, "k", [further(b"a", first), first], source, ROOT).path

    assert (path / "a").stat().st_ino == (path / "z").stat().st_ino


@pytest.mark.parametrize("userxattr", [False, True])
def test_deletions_are_marked_for_overlay(cache: Path, userxattr: bool) -> None:
    source = MemorySource()
    tree = [
        Entry(b"d", IMPLIED),
        Entry(b"d/gone", WHITEOUT),
        directory(b"hides", 0o711, uid=4, opaque=True),
        regular(source, b"hides/f", b"x"),
        directory(b"marked", xattrs=((b"trusted.overlay.opaque", b"y"), (b"user.overlay.opaque", b"y"))),
    ]
    abilities = SimpleNamespace(root=True, trusted_xattrs=not userxattr)
    path = build_farm(cache, "k", tree, source, abilities).path
    facts = describe(path)
    prefix = b"user.overlay." if userxattr else b"trusted.overlay."

    assert (stat.S_ISCHR(facts[b"d/gone"][0]), facts[b"d/gone"][4]) == (True, 0)
    assert facts[b"d"][:4] == (stat.S_IFDIR | 0o755, 0, 0, 0)
    assert facts[b"hides"][3] == directory(b"").inode.mtime_ns  # type: ignore[union-attr]
    assert facts[b"hides"][5] == ((prefix + b"opaque", b"y"),)
    assert facts[b"marked"][5] == ((prefix + b"overlay.opaque", b"y"),)
    assert build_farm(cache, "k", tree, source, abilities, boot="next").built is False


def test_overlay_shows_what_the_marks_mean(cache: Path, tmp_path: Path) -> None:
    """The kernel itself is asked: deletions and opaque directories hide, image attributes steer nothing."""
    source = MemorySource()
    lower = [
        directory(b"d"),
        regular(source, b"d/gone", b"1"),
        regular(source, b"d/stays", b"2"),
        directory(b"hides"),
        regular(source, b"hides/old", b"3"),
        directory(b"marked"),
        regular(source, b"marked/old", b"4"),
    ]
    upper = [
        directory(b"d"),
        Entry(b"d/gone", WHITEOUT),
        directory(b"hides", opaque=True),
        regular(source, b"hides/new", b"5"),
        directory(b"marked", xattrs=((b"trusted.overlay.opaque", b"y"), (b"trusted.overlay.redirect", b"/hides"))),
    ]
    below = build_farm(cache, "below", lower, source, ROOT).path
    above = build_farm(cache, "above", upper, source, ROOT).path
    merged = tmp_path / "merged"
    merged.mkdir()
    subprocess.run(["mount", "-t", "overlay", "none", "-o", f"lowerdir={above}:{below}", merged], check=True)
    try:
        names = {os.fspath(p.relative_to(merged)) for p in merged.rglob("*")}
    finally:
        subprocess.run(["umount", merged], check=True)

    assert names == {"d", "d/stays", "hides", "hides/new", "marked", "marked/old"}


def test_deep_farms_need_few_descriptors(cache: Path) -> None:
    source = MemorySource()
    levels = deep(1200)
    tree = ordered([*levels, *(regular(source, e.path + b"/f", b"%d" % i) for i, e in enumerate(levels))])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        path = build_farm(cache, "k", tree, source, ROOT).path
        assert build_farm(cache, "k", tree, source, ROOT, boot="next").built is False
        facts = describe(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        remove_tree(cache)  # pytest's own tidying would recurse too deep
    facts.pop(b"")

    assert facts == expected(tree, source)


def test_the_link_limit_of_the_filesystem_starts_a_further_pool_file(cache: Path) -> None:
    """The real limit, 65,000 on ext4, not a pretended one; elsewhere nothing is started."""
    source = MemorySource()
    popular = regular(source, b"p", b"popular")
    first = popular._replace(path=b"z0")
    tree = ordered([popular._replace(path=b"f%05d" % number) for number in range(65_001)])
    group = ordered([first, further(b"z1", first), further(b"z2", first)])
    path = build_farm(cache, "k", [*tree, *group], source, ROOT).path

    assert {(path / name).read_bytes() for name in ("f00000", "f65000", "z0")} == {b"popular"}
    assert len({(path / name).stat().st_ino for name in ("z0", "z1", "z2")}) == 1
    if pool_file(cache, popular).stat().st_nlink == 65_000:
        assert pool_file(cache, popular, 1).stat().st_nlink == 6
        assert source.asked == [popular.inode and popular.inode.digest] * 2


def _limit_links(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    real_link = os.link

    def limited(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        if os.stat(source, dir_fd=src_dir_fd, follow_symlinks=False).st_nlink >= limit:
            raise OSError(errno.EMLINK, "Too many links")
        real_link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", limited)


@pytest.mark.parametrize("taken", range(5))
def test_a_group_that_meets_the_limit_moves_as_a_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """However full the pool file is already, the names of one inode stay together."""
    _limit_links(monkeypatch, 6)
    source = MemorySource()
    single = regular(source, b"single", b"content")
    for number in range(taken):
        build_farm(cache, f"before{number}", [single], source, ROOT)
    first = single._replace(path=b"g0")
    tree = [first, *(further(b"g%d" % number, first) for number in range(1, 4))]
    path = build_farm(cache, "k", tree, source, ROOT).path

    assert len({(path / f"g{number}").stat().st_ino for number in range(4)}) == 1
    assert (path / "g0").stat().st_nlink == 5 if taken > 1 else True
    facts = describe(path)
    facts.pop(b"")
    assert facts == expected(tree, source)
    assert build_farm(cache, "k", tree, source, ROOT, boot="next").built is False


def test_a_group_larger_than_any_inode_can_count_is_split(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit_links(monkeypatch, 6)
    source = MemorySource()
    for data in (b"", b"content"):
        first = regular(source, b"g00", data)
        tree = [first, *(further(b"g%02d" % number, first) for number in range(1, 20))]
        path = build_farm(cache, f"k{len(data)}", tree, source, ROOT).path
        assert [(path / f"g{number:02}").read_bytes() for number in range(20)] == [data] * 20


def test_contents_are_asked_for_in_order_and_once(cache: Path) -> None:
    source = MemorySource()
    tree = [regular(source, b"f%04d" % number, b"%d" % (number // 2)) for number in range(2000)]
    build_farm(cache, "k", tree, source, ROOT)
    wanted = list(dict.fromkeys(e.inode.digest for e in tree if e.inode))

    assert source.asked == wanted


@pytest.mark.parametrize("entries", [[directory(b"a/b")], [further(b"a", other(b"missing", "p"))]])
def test_entries_that_make_no_tree_are_refused_and_leave_nothing(cache: Path, entries: Sequence[Entry]) -> None:
    with pytest.raises(InvalidInput):
        build_farm(cache, "k", entries, MemorySource(), ROOT)

    assert os.listdir(cache / "trees") == []


def test_a_missing_content_leaves_no_farm_and_no_damaged_pool_file(cache: Path) -> None:
    source = MemorySource()
    tree = [regular(source, b"%d" % number, b"%d" % number) for number in range(10)]
    source.blobs.popitem()
    with pytest.raises(Corrupt):
        build_farm(cache, "k", tree, source, ROOT)
    assert os.listdir(cache / "trees") == []

    source.add(b"9")
    assert build_farm(cache, "k", tree, source, ROOT, boot="next").built


class Killing(MemorySource):
    """Kills its process when the given content is asked for."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        for number, chunks in enumerate(super().contents(digests)):
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunks


@pytest.mark.parametrize("at", [0, 1, 257, 599])
def test_a_killed_build_leaves_debris_that_the_next_one_removes(cache: Path, at: int) -> None:
    source = Killing(at)
    tree = [regular(source, b"%03d" % number, b"%d" % number) for number in range(600)]
    child = os.fork()
    if not child:
        build_farm(cache, "k", tree, source, ROOT)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert find_farm(cache, "k") is None
    assert len(debris(cache)) == len(os.listdir(cache / "trees")) == 1

    sound = MemorySource()
    sound.blobs = source.blobs
    path = build_farm(cache, "k", tree, sound, ROOT).path
    assert debris(cache) == []
    facts = describe(path)
    facts.pop(b"")
    assert facts == expected(tree, sound)


def test_debris_of_a_living_build_is_left_alone(cache: Path) -> None:
    """A build inside of a build: the inner one tidies up, and must not touch the outer one's folder."""

    class Nesting(MemorySource):
        def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
            build_farm(cache, "inner", [directory(b"d")], MemorySource(), ROOT)
            yield from super().contents(digests)

    source = Nesting()
    path = build_farm(cache, "outer", [regular(source, b"f", b"x")], source, ROOT).path

    assert os.listdir(path) == ["f"]
    assert find_farm(cache, "inner") is not None


def test_of_two_builds_of_one_farm_both_succeed_and_one_stays(cache: Path) -> None:
    class Overtaken(MemorySource):
        def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
            if not (cache / "trees" / "k").exists():
                other_source = MemorySource()
                other_source.blobs = self.blobs
                build_farm(cache, "k", tree, other_source, ROOT)
            yield from super().contents(digests)

    source = Overtaken()
    tree = [regular(source, b"f", b"x"), regular(source, b"g", b"y")]
    info = build_farm(cache, "k", tree, source, ROOT)

    assert not info.built
    assert sorted(os.listdir(info.path)) == ["f", "g"]
    assert debris(cache) == []


def test_a_farm_of_another_boot_is_verified_and_adopted(cache: Path) -> None:
    source = MemorySource()
    tree = every_kind(source)
    build_farm(cache, "k", tree, source, ROOT, boot="one")
    source.asked.clear()
    assert find_farm(cache, "k", boot="two") is None

    adopted = build_farm(cache, "k", tree, source, ROOT, boot="two")
    assert (adopted.built, source.asked) == (False, [])
    assert find_farm(cache, "k", boot="two") == adopted.path


def _cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(2)


def _flip(path: Path) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut file": lambda farm: _cut(farm / "bin/ping"),
    "flipped bit": lambda farm: _flip(farm / "bin/ping"),
    "zeros": lambda farm: (farm / "bin/ping").write_bytes(bytes(4)),
    "mode": lambda farm: (farm / "bin/tool").chmod(0o755),
    "owner": lambda farm: os.chown(farm / "notes", 1, 1),
    "time": lambda farm: os.utime(farm / "large", (1, 1)),
    "lost capability": lambda farm: os.removexattr(farm / "bin/ping", "security.capability"),
    "lost name": lambda farm: (farm / "large").unlink(),
    "lost link": lambda farm: (farm / "run/link").unlink(),
    "lost folder": lambda farm: remove_tree(farm / "shut"),
    "strange name": lambda farm: (farm / "run" / "strange").write_bytes(b""),
    "another kind": lambda farm: _link(farm / "large", "/etc/passwd"),
    "another target": lambda farm: _link(farm / "run/link", "/x"),
    "folder's mode": lambda farm: (farm / "shut").chmod(0o755),
    "root's mode": lambda farm: farm.chmod(0o777),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_at_the_first_use_of_a_boot_and_made_good(cache: Path, damage: str) -> None:
    """Whatever a power cut left: the farm and the pool files behind it are made again."""
    source = MemorySource()
    tree = every_kind(source)
    path = build_farm(cache, "k", tree, source, ROOT, boot="one").path
    DAMAGE[damage](path)
    info = build_farm(cache, "k", tree, source, ROOT, boot="two")

    assert info.built
    assert describe(info.path) == expected(tree, source)
    assert debris(cache) == []


def test_a_damaged_pool_file_is_not_linked_into_a_new_farm(cache: Path) -> None:
    source = MemorySource()
    entry = regular(source, b"f", b"content")
    build_farm(cache, "one", [entry], source, ROOT, boot="one")
    _flip(pool_file(cache, entry))
    path = build_farm(cache, "two", [entry], source, ROOT, boot="two").path

    assert (path / "f").read_bytes() == b"content"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": "one"}'])
def test_a_torn_description_is_none(cache: Path, text: str) -> None:
    source = MemorySource()
    tree = [regular(source, b"f", b"x")]
    build_farm(cache, "k", tree, source, ROOT, boot="one")
    (cache / "trees" / "k.json").write_text(text)
    assert find_farm(cache, "k", boot="one") is None

    assert not build_farm(cache, "k", tree, source, ROOT, boot="one").built
    assert json.loads((cache / "trees" / "k.json").read_text())["boot"] == "one"


def test_a_farm_without_a_folder_is_built(cache: Path) -> None:
    source = MemorySource()
    build_farm(cache, "k", [regular(source, b"f", b"x")], source, ROOT)
    (cache / "trees" / "k" / "f").unlink()
    (cache / "trees" / "k").rmdir()

    assert find_farm(cache, "k") is None
    assert build_farm(cache, "k", [regular(source, b"f", b"x")], source, ROOT).built


def test_an_ordinary_user_builds_farms_for_userxattr_mounts(tmp_path: Path) -> None:
    source = MemorySource()
    tree = [*every_kind(source), Entry(b"zz-gone", WHITEOUT), directory(b"zz-hides", opaque=True)]
    tree[0] = directory(b"", 0o555)
    abilities = SimpleNamespace(root=False, trusted_xattrs=False)

    def work() -> str:
        infos = [build_farm(tmp_path / "cache", "k", tree, source, abilities, boot=boot) for boot in ("one", "two")]
        return repr([(info.built, len(info.warnings) > 0) for info in infos])

    assert as_nobody(work, tmp_path) == "[(True, True), (True, True)]"  # it has files that he cannot verify
    facts = describe(tmp_path / "cache" / "trees" / "k")
    assert facts[b"zz-hides"][5] == ((b"user.overlay.opaque", b"y"),)
    assert facts[b"zz-gone"][4] == 0
    assert facts[b"shut/in"][4] == b"in"
