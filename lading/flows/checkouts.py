"""Checkouts: a layer's whole tree written into a folder of the caller's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.errors import InvalidInput, Unsupported
from lading.flows import lowers, mounting, stores, views
from lading.flows.context import Context, Progress
from lading.materialize import mounts as kernel
from lading.materialize import reflink
from lading.materialize.cachelock import cache_lock
from lading.materialize.copy import copy_tree, require_free
from lading.materialize.pool import Pool
from lading.materialize.poolfill import fill_pool, open_pool
from lading.values import ContentSource, Entry, printable


@dataclass(frozen=True, slots=True)
class CheckoutReport:
    """What a checkout wrote."""

    path: Path
    files: int
    bytes: int
    warnings: tuple[str, ...]


#: How files get into a checkout: "auto" shares blocks where the pool has a file and the filesystem can,
#: "copy" never does, "reflink" insists on it, "hardlink" shows the pool's own files, read-only.
WAYS: Final = ("auto", "copy", "reflink", "hardlink")


def checkout(
    context: Context, ref: str, destination: Path, *, way: str = "auto", progress: Progress | None = None
) -> CheckoutReport:
    """Write a layer's whole tree into a new folder, or show it there.

    Raises:
        InvalidInput: an unknown way.
        Unsupported: the filesystem or the user cannot do it this way.
    """
    if way not in WAYS:
        raise InvalidInput(f"unknown way of checking out: {printable(way)}; known: {', '.join(WAYS)}")
    if way == "hardlink":
        return _shown(context, ref, destination)
    with stores.epochs(context):
        layer = mounting.layer_of_any(context, ref)
        live = views.LiveFiles(context.objects)
        tree = views.with_root(layer, views.stack(context, layer, live).tree())
        as_root = os.geteuid() == 0
        with _clones(context, tree, live, destination, way) as pool:
            report = copy_tree(destination, tree, live, as_root=as_root, progress=progress, pool=pool)
    return CheckoutReport(destination, report.files, report.bytes, tuple(report.warnings))


@contextmanager
def _clones(
    context: Context, tree: Sequence[Entry], source: ContentSource, destination: Path, way: str
) -> Iterator[Pool | None]:
    """The pool to share blocks with; filled first where that is insisted on."""
    if way == "copy" or os.geteuid() != 0 or not context.writable:
        if way == "reflink":
            raise Unsupported("a checkout by reflinks needs root and a store that can be written to")
        yield None
        return
    cache = context.layout.cache
    able = reflink.works_between(cache, destination.absolute().parent)
    if not able:
        if way == "reflink":
            raise Unsupported(f"{cache} and {destination} do not share blocks: not one filesystem with reflinks")
        yield None
        return
    with cache_lock(cache, wait_s=context.settings.wait_s):
        if way == "reflink":
            fill_pool(cache, tree, source)
        with open_pool(cache) as pool:
            yield pool


def _shown(context: Context, ref: str, destination: Path) -> CheckoutReport:
    """Bind a tree of hard links, read-only: a link to a pool file is never handed to a writer."""
    if os.geteuid() != 0 or not context.abilities.overlay:
        raise Unsupported("a checkout by hard links is a read-only mount, which needs root; use --copy")
    context.need_writable()
    require_free(destination)
    with stores.epochs(context), cache_lock(context.layout.cache, wait_s=context.settings.wait_s):
        layer = mounting.layer_of_any(context, ref)
        live = views.LiveFiles(context.objects)
        tree = views.with_root(layer, views.stack(context, layer, live).tree())
        info = lowers.farm_of_tree(context, tree, live)
        destination.mkdir(mode=0o700, exist_ok=True)
        kernel.bind_read_only(info.path, destination)
    return CheckoutReport(destination, info.files, info.bytes, info.warnings)
