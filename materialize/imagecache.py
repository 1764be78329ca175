"""Cached EROFS images: ``cache/erofs/NAME.img`` and what tells how to check it, ``NAME.json``. Finding them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lading.errors import Busy
from lading.locks import file_lock
from lading.materialize.cachelock import (
    IMAGE_SUFFIX,
    LOCK_SUFFIX,
    MARKER_SUFFIX,
    REFS_SUFFIX,
    boot_id,
    read_description,
)

#: Seconds to wait for another process that builds the same; then it is built once more.
_SHARE_WAIT_S: Final = 60.0
#: What a description tells.
_NOTED: Final = ("boot", "durable", "size", "meta_size", "meta_digest", "entries", "files", "bytes", "warnings")


@dataclass(frozen=True, slots=True)
class Image:
    """A cached image that is ready to be mounted."""

    path: Path
    size: int
    meta_size: int
    meta_digest: str
    entries: int
    files: int
    bytes: int
    warnings: tuple[str, ...]
    built: bool = False  #: made by this call


def find_image(cache_root: Path, name: str, *, boot: str | None = None) -> Image | None:
    """Look for an image that was built or verified in this boot, and note that it is used.

    Hold :func:`lading.materialize.pool.cache_lock` shared until it is mounted, or eviction may remove it.
    """
    folder = cache_root / "erofs"
    described = read_note(folder, name)
    if described is None or described["boot"] != (boot or boot_id()):
        return None
    found = as_described(folder, name, described)
    if found is not None:
        os.utime(folder / (name + MARKER_SUFFIX))
    return found


@contextmanager
def sharing(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time build a view; whoever waited too long goes on beside it."""
    with ExitStack() as held:
        with suppress(Busy):
            held.enter_context(
                file_lock(folder / f".{name}{LOCK_SUFFIX}", f"view {name}", "build", wait_s=_SHARE_WAIT_S)
            )
        yield


def read_note(folder: Path, name: str) -> Mapping[str, Any] | None:
    """Read an image's description; None when there is none."""
    return read_description(folder / (name + MARKER_SUFFIX), _NOTED)


def as_described(folder: Path, name: str, values: Mapping[str, Any]) -> Image | None:
    """The image, if its file is there and has the recorded size."""
    path = folder / (name + IMAGE_SUFFIX)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if status.st_size != values["size"]:
        return None
    return Image(
        path, values["size"], values["meta_size"], values["meta_digest"], values["entries"], values["files"],
        values["bytes"], tuple(values["warnings"]),
    )  # fmt: skip


def drop_image(folder: Path, name: str) -> None:
    """Remove an image; the description first, so that none is left without."""
    for suffix in (MARKER_SUFFIX, IMAGE_SUFFIX, REFS_SUFFIX):
        with suppress(FileNotFoundError):
            os.unlink(folder / (name + suffix))
