"""Contents: what they name must be recorded before anything of them can be seen."""

from __future__ import annotations

import pytest

from lading.catalog import content
from lading.catalog.database import Catalog
from lading.errors import Corrupt
from lading.values import PRESENT, Entry, Inode
from tests.catalog.conftest import add_object

KEY = "sha256:" + "ab" * 32


@pytest.mark.parametrize("lacking", ["recipe", "file", "shadowed"])
def test_a_content_that_names_what_is_not_recorded_is_refused(catalog: Catalog, lacking: str) -> None:
    """Nobody ever sees it; with the object recorded, the same one is taken."""

    def known(what: str) -> bytes:
        return bytes(32) if what == lacking else add_object(catalog, what.encode())

    def stored(recipe: bytes, of_file: bytes, shadowed: bytes) -> int:
        entries = [Entry(b"f", PRESENT, Inode("f", 0o644, 0, 0, 0, 4, of_file))]
        return content.store_content(
            catalog, diff_id=KEY, size=1024, recipe=recipe, entries=entries, uids=(0,), gids=(0,), diff_bytes=4, epoch=0,
            shadowed=[shadowed],
        )  # fmt: skip

    with pytest.raises(Corrupt, match="not recorded"):
        stored(known("recipe"), known("file"), known("shadowed"))

    with catalog.read() as conn:
        assert content.find_content(conn, KEY) is None
        assert list(conn.execute("SELECT key FROM content WHERE state = 'ready'")) == []
    number = stored(*(add_object(catalog, what.encode()) for what in ("recipe", "file", "shadowed")))
    with catalog.write("ready") as tx:
        assert content.ready(tx, number, KEY) == KEY
    with catalog.read() as conn:
        assert [entry.path for entry in content.entries(conn, KEY)] == [b"f"]
