"""One suite that every pack backend passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lading.objects.backend import PackBackend, PackMissing, ShortRead
from lading.objects.folder import FolderBackend
from lading.objects.memory import MemoryBackend

NAME = "0" * 31 + "a"
OTHER = "f" * 32

Staged = Callable[[bytes], Path]


@pytest.fixture
def staged(tmp_path: Path) -> Staged:
    """Makes staged files."""

    def make(data: bytes) -> Path:
        path = tmp_path / f"staged-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(data)
        return path

    return make


class PackBackendContract:
    """Every backend passes this; a subclass provides ``backend``."""

    def test_publishing_twice_keeps_the_first(self, backend: PackBackend, staged: Staged) -> None:
        """The second publish reports that the pack was there, and its staged file is gone."""
        second = staged(b"y")
        assert backend.publish(staged(b"x"), NAME)
        assert not backend.publish(second, NAME)

        assert backend.read(NAME, 0, 1) == b"x"
        assert list(backend) == [NAME]
        assert not second.exists()

    def test_reads_are_exact(self, backend: PackBackend, staged: Staged) -> None:
        """Neither fewer bytes nor bytes from beyond the end."""
        backend.publish(staged(b"0123456789"), NAME)

        assert backend.read(NAME, 2, 3) == b"234"
        assert backend.read(NAME, 10, 0) == b""
        with pytest.raises(ShortRead):
            backend.read(NAME, 8, 3)

    def test_absence_is_told_and_deletion_may_be_repeated(self, backend: PackBackend, staged: Staged) -> None:
        """A missing pack has no size, cannot be read, and can be deleted."""
        backend.publish(staged(b"x"), NAME)

        assert backend.size(OTHER) is None
        with pytest.raises(PackMissing):
            backend.read(OTHER, 0, 1)
        assert backend.delete(NAME)
        assert not backend.delete(NAME)
        assert backend.size(NAME) is None

    def test_names_ascend(self, backend: PackBackend, staged: Staged) -> None:
        """Whatever the order of publishing."""
        for name in (OTHER, NAME):
            backend.publish(staged(name.encode()), name)

        assert list(backend) == [NAME, OTHER]
        assert backend.size(NAME) == 32


class TestFolder(PackBackendContract):
    """Packs in a folder."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> FolderBackend:
        return FolderBackend(tmp_path / "packs")

    def test_an_open_pack_serves_reads_of_more_files_than_stay_open(
        self, backend: FolderBackend, staged: Staged
    ) -> None:
        """Descriptors are bounded."""
        names = [f"{number:032x}" for number in range(40)]
        for name in names:
            backend.publish(staged(name.encode()), name)

        assert [backend.read(name, 0, 32) for name in names * 2] == [name.encode() for name in names * 2]
        backend.close()


class TestMemory(PackBackendContract):
    """The twin in memory."""

    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()
