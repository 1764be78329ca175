"""Making and checking cached EROFS images.

An image is written in ``cache/erofs/.building-…/`` and renamed into place when it is complete, its description
after it. Nothing waits for a disk: an image that another boot wrote and nobody has synced since is compared with
its entries in full before it is used; one that was synced, by the digest of its metadata and its size alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lading import private
from lading.materialize import erofs
from lading.materialize.beneath import DIRECTORY, remove_tree, told
from lading.materialize.cachelock import (
    BUILDING_PREFIX,
    IMAGE_SUFFIX,
    MARKER_SUFFIX,
    REFS_SUFFIX,
    boot_id,
    cache_lock,
    make_private,
)
from lading.materialize.copy import clean_building, make_building
from lading.materialize.erofsplan import Redirect
from lading.materialize.imagecache import Image, as_described, drop_image, find_image, read_note, sharing
from lading.values import ContentSource, Entry

Entries = Callable[[], Sequence[Entry]]


def build_image(
    cache_root: Path,
    name: str,
    entries: Entries,
    source: ContentSource,
    *,
    boot: str | None = None,
    redirect: Redirect | None = None,
    prepare: Callable[[Sequence[Entry]], bytes] | None = None,
) -> Image:
    """Make an image, or verify the one that another boot left.

    Args:
        cache_root: the store's cache folder.
        name: a plain file name that does not begin with a dot.
        entries: called at most once, when they are needed.
        source: where contents come from.
        boot: id of this boot; None: the kernel's.
        redirect: see :func:`lading.materialize.erofs.write_image`.
        prepare: with ``redirect``: provides for the contents elsewhere; returns keys of the pool files.

    Raises:
        Corrupt: a content is missing or damaged.
        Full, ReadOnly: as told by the filesystem.

    Concurrency: a second process that wants the same image waits for the first one's.
    """
    boot = boot or boot_id()
    with told(cache_root), cache_lock(cache_root):
        folder = cache_root / "erofs"
        make_private(folder)
        with sharing(folder, name):
            found = find_image(cache_root, name, boot=boot)
            if found is not None:
                return found
            known: list[Sequence[Entry]] = []

            def once() -> Sequence[Entry]:
                if not known:
                    known.append(entries())
                return known[0]

            adopted = _adopt(folder, name, once, boot, redirect)
            return adopted or _build(folder, name, once(), source, boot, redirect, prepare)


def _adopt(folder: Path, name: str, entries: Entries, boot: str, redirect: Redirect | None) -> Image | None:
    """Verify an image of another boot; a damaged one goes."""
    values = read_note(folder, name)
    found = as_described(folder, name, values) if values is not None and redirect is None else None
    if found is None or values is None:
        return None  # images without contents are small: written again rather than verified with their pool files
    descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        sound = erofs.meta_digest(descriptor, found.meta_size).hex() == found.meta_digest
        if sound and not values["durable"]:
            sound = not erofs.damaged_files(descriptor, entries())
            if sound:
                with told(found.path):
                    os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not sound:
        drop_image(folder, name)
        return None
    _describe(folder, name, {**values, "boot": boot, "durable": True})
    return found


def check_image(cache_root: Path, name: str, entries: Sequence[Entry]) -> bool:
    """Compare an image with its description and with its entries, every byte; a damaged one goes.

    Returns:
        Whether it was sound.
    """
    folder = cache_root / "erofs"
    values = read_note(folder, name)
    found = as_described(folder, name, values) if values is not None else None
    sound = False
    if found is not None:
        descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            sound = erofs.meta_digest(descriptor, found.meta_size).hex() == found.meta_digest
            sound = sound and not erofs.damaged_files(descriptor, entries)
        finally:
            os.close(descriptor)
    if not sound:
        drop_image(folder, name)
    return sound


def make_durable(cache_root: Path, name: str) -> None:
    """Sync an image, so that the next boot need not read all of it before the first use."""
    folder = cache_root / "erofs"
    values = read_note(folder, name)
    if values is None or values["durable"]:
        return
    path = folder / (name + IMAGE_SUFFIX)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with told(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _describe(folder, name, {**values, "durable": True})


def _build(
    folder: Path, name: str, entries: Sequence[Entry], source: ContentSource, boot: str,
    redirect: Redirect | None, prepare: Callable[[Sequence[Entry]], bytes] | None,
) -> Image:  # fmt: skip
    parent = os.open(folder, DIRECTORY)
    try:
        clean_building(parent, BUILDING_PREFIX)
        building, descriptor = make_building(parent, BUILDING_PREFIX)
        try:
            inside = folder / building
            if prepare is not None:
                with open(private.opened(inside / "refs", os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as refs:
                    refs.write(prepare(entries))
                os.rename(inside / "refs", folder / (name + REFS_SUFFIX))
            file = private.opened("image", os.O_RDWR | os.O_CREAT | os.O_EXCL, dir_fd=descriptor)
            try:
                info = erofs.write_image(file, entries, source, redirect=redirect)
            finally:
                os.close(file)
            values = {
                "boot": boot, "durable": False, "size": info.size, "meta_size": info.meta_size,
                "meta_digest": info.meta_digest.hex(), "entries": info.entries, "files": info.files,
                "bytes": info.bytes, "warnings": list(info.warnings),
            }  # fmt: skip
            os.rename(inside / "image", folder / (name + IMAGE_SUFFIX))
            _describe(folder, name, values)
        finally:
            remove_tree(building, dir_fd=parent)
            os.close(descriptor)
    finally:
        os.close(parent)
    return Image(
        folder / (name + IMAGE_SUFFIX), info.size, info.meta_size, info.meta_digest.hex(), info.entries, info.files,
        info.bytes, info.warnings, built=True,
    )  # fmt: skip


def _describe(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    parent = os.open(folder, DIRECTORY)
    try:
        building, descriptor = make_building(parent, BUILDING_PREFIX)
        try:
            with told(folder / (name + MARKER_SUFFIX)):
                made = private.opened("marker", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=descriptor)
                with open(made, "w") as marker:
                    json.dump(dict(values), marker)
            os.rename("marker", name + MARKER_SUFFIX, src_dir_fd=descriptor, dst_dir_fd=parent)
        finally:
            remove_tree(building, dir_fd=parent)
            os.close(descriptor)
    finally:
        os.close(parent)


def has_sound_metadata(cache_root: Path, name: str) -> bool:
    """Compare an image's size and metadata with its description."""
    folder = cache_root / "erofs"
    values = read_note(folder, name)
    found = as_described(folder, name, values) if values is not None else None
    if found is None:
        return False
    descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return erofs.meta_digest(descriptor, found.meta_size).hex() == found.meta_digest
    finally:
        os.close(descriptor)
