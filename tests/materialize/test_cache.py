"""The cache's accounts: every byte counted once, and what goes is what was said."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lading.errors import Busy
from lading.materialize.cache import evict, measure
from lading.materialize.cachelock import cache_lock
from lading.materialize.farm import build_farm, find_farm
from lading.values import Entry
from tests.materialize.conftest import MemorySource
from tests.materialize.samples import ROOT, describe, every_kind, regular

pytestmark = pytest.mark.privileged


def bytes_below(folder: Path) -> int:
    """Sizes of all regular files, each inode once: the measure that everything here is held to."""
    sizes = {}
    for path, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(path, name))
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three farms, "old" used longest ago; "both" is in two of them, "extra-…" in one."""
    source = MemorySource()
    both = regular(source, b"both", b"b" * 1000)
    root = tmp_path / "cache"
    for number, (key, size) in enumerate([("old", 100), ("mid", 20), ("new", 3)]):
        tree: list[Entry] = [regular(source, b"extra-" + key.encode(), b"e" * size), regular(source, b"none", b"")]
        build_farm(root, key, tree if key == "new" else [both, *tree], source, ROOT)
        os.utime(root / "trees" / f"{key}.json", (number, number))
    return root


def marker_size(cache: Path, key: str) -> int:
    return (cache / "trees" / f"{key}.json").stat().st_size


def test_the_measure_counts_every_inode_once(cache: Path) -> None:
    measured = measure(cache)
    pool = sorted(size for kind, _, size in measured if kind == "pool")

    assert sum(size for _, _, size in measured) == bytes_below(cache)
    assert pool == [3, 20, 100, 1000]
    assert [(key, size) for kind, key, size in measured if kind == "tree"] == [
        (key, marker_size(cache, key)) for key in ("mid", "new", "old")
    ]


def test_strange_files_are_counted_too(cache: Path, tmp_path: Path) -> None:
    for name in ("strange", "trees/strange", "pool/strange", "later/format/file"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(b"1234567")
    (cache / "trees" / ".building-x" / "tree").mkdir(parents=True)
    (cache / "trees" / ".building-x" / "tree" / "f").write_bytes(b"123")

    assert sum(size for _, _, size in measure(cache)) == bytes_below(cache)
    assert measure(tmp_path / "nowhere") == []


def test_evicting_everything_leaves_no_bytes_of_trees(cache: Path) -> None:
    before = bytes_below(cache)
    planned = evict(cache, dry_run=True)
    assert bytes_below(cache) == before

    done = evict(cache)
    assert done == planned
    assert done.trees == ("old", "mid", "new")
    assert before - bytes_below(cache) == done.bytes
    assert os.listdir(cache / "trees") == []
    assert {kind for kind, _, _ in measure(cache)} == {"other"}


@pytest.mark.parametrize("kept", [set(), {"old"}, {"mid"}, {"new"}, {"old", "new"}])
@pytest.mark.parametrize("budget", [0, 500, 1500, 1800, 5000])
def test_the_plan_is_exact_for_any_budget(cache: Path, budget: int, kept: set[str]) -> None:
    before = bytes_below(cache)
    planned = evict(cache, keep=kept, budget=budget, dry_run=True)
    done = evict(cache, keep=kept, budget=budget)

    assert done == planned
    assert before - bytes_below(cache) == done.bytes
    assert bytes_below(cache) <= budget or {"old", "mid", "new"} - set(done.trees) == kept
    for key in {"old", "mid", "new"} - set(done.trees):
        farm = find_farm(cache, key)
        assert farm is not None
        assert (farm / f"extra-{key}").exists()


def test_the_least_recently_used_goes_first(cache: Path) -> None:
    """Finding a farm is using it."""
    find_farm(cache, "old")
    extra = 20 + marker_size(cache, "mid")

    assert evict(cache, budget=bytes_below(cache) - 1).trees == ("mid",)
    assert evict(cache, budget=bytes_below(cache), dry_run=True).bytes == 0
    assert extra > 20


def test_a_shared_file_goes_with_its_last_tree(cache: Path) -> None:
    first = evict(cache, keep={"mid", "new"})
    second = evict(cache, keep={"new"})

    assert first.bytes < 1000 < second.bytes


def test_files_of_the_pool_without_a_tree_go_first(cache: Path) -> None:
    (cache / "trees" / "old" / "extra-old").unlink()
    done = evict(cache, budget=bytes_below(cache) - 1)

    assert (done.trees, len(done.pool), done.bytes) == ((), 1, 100)


def test_debris_goes_whatever_the_budget_is(cache: Path) -> None:
    class Killing(MemorySource):
        def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
            for number, chunks in enumerate(super().contents(digests)):
                if number == 550:
                    time.sleep(0.3)  # for the writing threads to put something into the pool
                    os.kill(os.getpid(), signal.SIGKILL)
                yield chunks

    source = Killing()
    tree = [regular(source, b"%03d" % number, b"%d" % number) for number in range(600)]
    child = os.fork()
    if not child:
        build_farm(cache, "killed", tree, source, ROOT)
        os._exit(0)
    os.waitpid(child, 0)
    (cache / "trees" / "gone.json").write_text("{}")
    before = bytes_below(cache)
    planned = evict(cache, budget=1 << 40, dry_run=True)
    done = evict(cache, budget=1 << 40)

    assert done == planned
    assert before - bytes_below(cache) == done.bytes
    assert len(done.debris) == 2
    assert {"killed", "gone.json"}.isdisjoint(os.listdir(cache / "trees"))
    assert evict(cache, keep={"old", "mid", "new"}).pool  # what the killed build had put into the pool


def test_trees_of_every_kind_are_evicted_exactly(tmp_path: Path) -> None:
    source = MemorySource()
    cache = tmp_path / "cache"
    tree = every_kind(source)
    for key in ("one", "two"):
        build_farm(cache, key, tree, source, ROOT)
    before = bytes_below(cache)
    done = evict(cache, keep={"two"})

    assert before - bytes_below(cache) == done.bytes
    assert describe(cache / "trees" / "two") != {}


def test_an_empty_folder_that_others_keep_beside_the_trees_stays(cache: Path) -> None:
    (cache / "trees" / "root-0555-0-0").mkdir(mode=0o555)
    evict(cache)

    assert os.listdir(cache / "trees") == ["root-0555-0-0"]


def test_eviction_waits_for_users_of_the_cache_and_gives_up(cache: Path) -> None:
    with cache_lock(cache), pytest.raises(Busy):
        evict(cache, wait_s=0.05)
    with cache_lock(cache):
        assert evict(cache, dry_run=True).trees == ("old", "mid", "new")


def test_nothing_to_evict_is_no_error(tmp_path: Path) -> None:
    assert evict(tmp_path / "nowhere").bytes == 0
    (tmp_path / "empty").mkdir()
    assert evict(tmp_path / "empty").bytes == 0
