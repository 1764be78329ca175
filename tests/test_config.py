"""Settings out of a file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lading import Settings, Store, config
from lading.errors import InvalidInput


def loaded(tmp_path: Path, text: str) -> Settings:
    """Read a configuration file with this text."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    return config.load({"LADING_CONFIG": str(path)}, 0).settings


def test_how_to_sync_is_chosen_in_the_file(tmp_path: Path) -> None:
    """Everything is synced unless told otherwise; nothing but the two words will do."""
    assert [loaded(tmp_path, text).sync for text in ("", 'sync = "relaxed"')] == ["full", "relaxed"]
    with pytest.raises(InvalidInput, match="sync must be one of full, relaxed"):
        loaded(tmp_path, 'sync = "none"')


@pytest.mark.parametrize("split", [False, True])
def test_split_stores_are_never_relaxed(tmp_path: Path, split: bool) -> None:
    """Records of one store name the other's, and each could lose its own."""
    settings = Settings(sync="relaxed", image_store=str(tmp_path / "images") if split else "")
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=settings) as store:
        assert [part.catalog.relaxed for part in store._context.stores] == [not split] * (1 + split)


def test_a_file_beside_the_catalog_is_not_kept_without_what_came_before_it(tmp_path: Path) -> None:
    """Such a file is always durable, so the records are made durable first."""
    with Store.open(tmp_path / "root", run=tmp_path / "run", settings=Settings(sync="relaxed")) as store:
        layer = store.layers.create(id="l")
        store.containers.create(id="c", layer_id="cl")
        store.layers.set_data(layer.id, "k", io.BytesIO(b"v"))
        store.containers.write_file("c", "folder/file", b"data")
        with store._context.catalog.read() as conn:
            from lading.catalog.journal import head

            assert head(conn).is_durable
