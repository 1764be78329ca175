"""Cached EROFS images: ``cache/erofs/NAME.img`` and what tells how to check it, ``NAME.json``. Finding them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lading.errors import Busy
from lading.materialize.cachelock import IMAGE_SUFFIX, LOCK_SUFFIX, MARKER_SUFFIX, REFS_SUFFIX, boot_id
from lading.materialize.mounttable import file_lock

#: Seconds to wait for another process that builds the same; then it is built once more.
_SHARE_WAIT_S: Final = 60.0
_MARKER_SIZE_MAX: Final = 1 << 20


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
    described = read_description(folder / (name + MARKER_SUFFIX))
    if described is None or described["boot"] != (boot or boot_id()):
        return None
    found = as_described(folder, name, described)
    if found is not None:
        os.utime(folder / (name + MARKER_SUFFIX))
    return found


@contextmanager
def sharing(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time build a view; whoever waited too long goes on beside it."""
    lock = file_lock(folder / f".{name}{LOCK_SUFFIX}", wait_s=_SHARE_WAIT_S)
    try:
        lock.__enter__()
    except Busy:
        yield
        return
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def read_description(path: Path) -> Mapping[str, Any] | None:
    """Read what was noted of an image; None when there is nothing, or only what a power cut left."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        data = file.read(_MARKER_SIZE_MAX)
    try:
        values = json.loads(data)
    except ValueError:
        return None
    needed = {"boot", "durable", "size", "meta_size", "meta_digest", "entries", "files", "bytes", "warnings"}
    return values if isinstance(values, dict) and needed <= values.keys() else None


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
