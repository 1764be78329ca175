"""Publishing a file: what is durable when it returns, whoever began it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lading.objects import durable


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "folder of a maker that was killed"])
def test_all_names_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Also that of a folder which somebody else made and may not have synced."""
    final = tmp_path / "packs/ab/name.pack"
    final.parent.parent.mkdir()
    if there:
        final.parent.mkdir()
    staged = tmp_path / "staged"
    staged.write_bytes(b"x")
    synced: list[Path] = []

    def noting(folder: Path) -> None:
        if final.exists():
            synced.append(folder)

    monkeypatch.setattr(durable, "fsync_dir", noting)
    assert durable.publish(staged, final)
    assert synced == [final.parent, final.parent.parent]
