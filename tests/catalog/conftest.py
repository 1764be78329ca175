"""What the tests of the catalog share: one without a store around it, and things for records to refer to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from lading.catalog import content
from lading.catalog.database import Catalog
from lading.values import KIND_BIG_DATA, BigData, Location, PackContents

Opener = Callable[[Path], Catalog]


def open_catalog(folder: Path, *, read_only: bool = False, wait_s: float = 30) -> Catalog:
    """Open the catalog of a folder, making it when it is not there."""
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    return Catalog.open(
        folder / "catalog.db", folder / "journal", folder / "lock",
        create=not read_only, read_only=read_only, wait_s=wait_s,
    )  # fmt: skip


def add_object(catalog: Catalog, data: bytes) -> bytes:
    """Record an object as if a pack held it."""
    digest = blake3(data).digest()
    pack = os.urandom(16).hex()
    item = Location(digest, KIND_BIG_DATA, pack, 16, len(data), len(data), 0)
    content.register_packs(catalog, [PackContents(pack, len(data) + 100, (item,))], 0)
    return digest


def add_content(catalog: Catalog, key: str) -> str:
    """Make an empty content ready under a key."""
    number = content.store_content(
        catalog, diff_id=key, size=0, recipe=add_object(catalog, key.encode()), entries=[], uids=(), gids=(),
        diff_bytes=0, epoch=0,
    )  # fmt: skip
    with catalog.write("ready") as tx:
        return content.ready(tx, number, key)


def item(catalog: Catalog, key: str, data: bytes, digest: str = "") -> BigData:
    """Make a data item whose bytes are recorded."""
    return BigData(key, len(data), digest or f"sha256:{data.hex()}", add_object(catalog, data))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalog."""
    opened = open_catalog(tmp_path / "catalog")
    yield opened
    opened.close()
