"""The pool: published once, found again, believed only after a look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lading.errors import Busy
from lading.materialize.attributes import Attributes
from lading.materialize.cachelock import cache_lock
from lading.materialize.pool import Pool, pool_name
from lading.values import Inode, inode_key
from tests.materialize.conftest import MemorySource
from tests.materialize.samples import regular

KEY = bytes(range(20))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "tree").mkdir()
    descriptor = os.open(tmp_path / "tree", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def opened(tmp_path: Path, boot: str = "boot") -> Pool:
    return Pool(tmp_path / "cache", Attributes(as_root=os.geteuid() == 0), boot)


def sample(tmp_path: Path, data: bytes = b"data") -> Inode:
    """A file in the tree, and the inode that describes it."""
    path = tmp_path / "tree" / "file"
    path.write_bytes(data)
    path.chmod(0o644)
    inode = regular(MemorySource(), b"file", data, uid=os.geteuid(), gid=os.getegid()).inode
    assert inode is not None
    os.utime(path, ns=(inode.mtime_ns, inode.mtime_ns))
    return inode


def test_what_was_published_is_linked_out(tmp_path: Path, tree: int) -> None:
    inode = sample(tmp_path)
    key = inode_key(inode)
    with opened(tmp_path) as pool:
        assert not pool.link_out(key, inode, b"early", tree)
        pool.publish(key, b"file", tree)
        assert pool.link_out(key, inode, b"late", tree)

    assert (tmp_path / "tree" / "late").samefile(tmp_path / "cache" / "pool" / pool_name(key))
    assert sorted(os.listdir(tmp_path / "tree")) == ["file", "late"]


def test_the_first_publisher_wins(tmp_path: Path, tree: int) -> None:
    inode = sample(tmp_path)
    key = inode_key(inode)
    with opened(tmp_path) as pool:
        pool.publish(key, b"file", tree)
        first = os.stat(tmp_path / "tree" / "file").st_ino
        (tmp_path / "tree" / "file").unlink()
        sample(tmp_path)
        pool.publish(key, b"file", tree)

    assert os.stat(tmp_path / "cache" / "pool" / pool_name(key)).st_ino == first


def test_names_spread_over_folders_and_number_further_files() -> None:
    assert pool_name(KEY) == "00/000102030405060708090a0b0c0d0e0f10111213"
    assert pool_name(KEY, 2) == pool_name(KEY) + ".2"


@pytest.mark.parametrize("damage", [b"dat", b"date", b"data+"])
def test_files_of_another_boot_are_looked_at_once(tmp_path: Path, tree: int, damage: bytes) -> None:
    """Sound ones are noted for the rest of the boot; damaged ones go."""
    inode = sample(tmp_path)
    key = inode_key(inode)
    with opened(tmp_path, "one") as pool:
        pool.publish(key, b"file", tree)
    with opened(tmp_path, "two") as pool:
        assert pool.link_out(key, inode, b"two", tree)
    (tmp_path / "tree" / "file").write_bytes(damage)
    with opened(tmp_path, "two") as pool:
        assert pool.link_out(key, inode, b"again", tree)  # this boot has seen it: rot meanwhile is for check
    with opened(tmp_path, "three") as pool:
        assert not pool.link_out(key, inode, b"three", tree)

    assert not (tmp_path / "cache" / "pool" / pool_name(key)).exists()
    assert [name for name in os.listdir(tmp_path / "cache" / "pool") if name.startswith(".")] == []


def test_a_list_cut_by_a_kill_is_continued(tmp_path: Path, tree: int) -> None:
    inode = sample(tmp_path)
    key = inode_key(inode)
    with opened(tmp_path) as pool:
        pool.publish(key, b"file", tree)
    ledger = tmp_path / "cache" / "pool" / ".boot-boot"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-5])
    with opened(tmp_path) as pool:
        assert pool.link_out(key, inode, b"out", tree)

    assert ledger.read_bytes() == whole


def test_dropping_removes_every_file_of_an_inode(tmp_path: Path, tree: int) -> None:
    inode = sample(tmp_path)
    key = inode_key(inode)
    with opened(tmp_path) as pool:
        pool.publish(key, b"file", tree)
        pool.skip_full(key)
        (tmp_path / "tree" / "file").rename(tmp_path / "tree" / "first")
        sample(tmp_path)
        pool.publish(key, b"file", tree)
        assert len(os.listdir(tmp_path / "cache" / "pool" / key.hex()[:2])) == 2
        pool.drop(key)
        assert not pool.link_out(key, inode, b"out", tree)

    assert os.listdir(tmp_path / "cache" / "pool" / key.hex()[:2]) == []
    assert (tmp_path / "tree" / "first").read_bytes() == b"data"


def test_the_lock_lets_builders_in_together_and_eviction_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with cache_lock(cache), cache_lock(cache):
        with pytest.raises(Busy, match="held by process"), cache_lock(cache, exclusive=True, wait_s=0.05):
            pass
    with cache_lock(cache, exclusive=True), pytest.raises(Busy), cache_lock(cache, wait_s=0.05):
        pass
