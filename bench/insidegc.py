"""A large store, made fast, and collections in it: ``python -m bench.insidegc TASK ARGUMENT...`` prints JSON."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import tarfile
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from lading import Store
from lading.catalog import content as catalog_content
from lading.catalog import images as catalog_images
from lading.catalog import layers as catalog_layers
from lading.flows import bigdata, ingest
from lading.flows.context import Context
from lading.objects.streams import InputStream
from lading.objects.tar import ingest_tar
from lading.values import Image, Layer

#: Layers of one image, none of them another's.
CHAIN: Final = 5

#: Images that are stored together: their layers' objects share packs, and their records a transaction.
TOGETHER: Final = 100

#: Files that many layers have.
COMMON: Final = 1000


def layer_tar(number: int) -> bytes:
    """A small layer: files of its own, two that others have as well, in folders that all have."""
    own = random.Random(number)
    files = {f"usr/lib/package-{number % 400}/{number}-{each}": own.randbytes(300) * 4 for each in range(4)}
    for each in (own.randrange(COMMON), own.randrange(COMMON)):
        files[f"usr/share/common/{each}"] = random.Random(-1 - each).randbytes(500) * 4
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files}):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def fill(root: str, run: str, images: str) -> dict[str, Any]:
    """Make a store of many images, each with layers of its own, a manifest and a config.

    The rows are those that the library makes; only the commits are fewer.
    """
    started = time.perf_counter()
    with Store.open(root, run=run) as store:
        for first in range(0, int(images), TOGETHER):
            _fill(store._context, range(first, min(first + TOGETHER, int(images))))
        figures = dict(store.query("SELECT 'layers', count(*) FROM layer UNION ALL SELECT 'images', count(*) FROM image "
            "UNION ALL SELECT 'objects', count(*) FROM object UNION ALL SELECT 'entries', count(*) FROM entry")[1])  # fmt: skip
        settled = time.perf_counter()
        first_gc = store.gc()
        ended = time.perf_counter()
    return {**figures, "fill_s": settled - started, "first_gc_s": ended - settled, "first_gc": first_gc.as_dict()}


def _fill(context: Context, images: range) -> None:
    with context.epochs.shared() as epoch:
        stored = []
        with context.writer() as writer:
            for number in range(images.start * CHAIN, images.stop * CHAIN):
                source = InputStream(io.BytesIO(layer_tar(number)))
                sink = ingest.RecipeSink(writer)
                tar = ingest_tar(source.read, sink)
                summary = source.summary()
                stored.append((tar, summary, sink.finish(summary)))
                source.close()
            packs = writer.finish()
        catalog_content.register_packs(context.catalog, packs, epoch)
        ready = [
            catalog_content.store_content(
                context.catalog, diff_id=summary.diff_digest, size=summary.diff_size, recipe=recipe, entries=tar.entries,
                uids=tar.uids, gids=tar.gids, diff_bytes=tar.diff_bytes, epoch=epoch,
            )
            for tar, summary, recipe in stored
        ]  # fmt: skip
        documents = {
            number: {"manifest": b"manifest %d" % number * 20, "config": b"config %d" % number * 50}
            for number in images
        }
        flat = {f"{number} {key}": data for number, items in documents.items() for key, data in items.items()}
        items = dict(zip(flat, bigdata.store_items(context, flat, epoch), strict=True))
        with context.catalog.write("create") as tx:
            for at, (_, summary, _) in enumerate(stored):
                number = images.start * CHAIN + at
                key = catalog_content.ready(tx, ready[at], summary.diff_digest)
                catalog_layers.create_layer(
                    tx,
                    Layer(
                        _id("layer", number), parent=_id("layer", number - 1) if number % CHAIN else "", contents=(key,),
                        replay=key, diff_digest=key, diff_size=summary.diff_size, created_ns=time.time_ns(),
                    ),
                )  # fmt: skip
            for number in images:
                top = _id("layer", (number + 1) * CHAIN - 1)
                image = Image(
                    _id("image", number), names=(f"example.org/image:{number}",), layer=top, created_ns=time.time_ns()
                )
                catalog_images.create_image(tx, image)
                for key in documents[number]:
                    item = items[f"{number} {key}"]
                    bigdata.put_items(tx, "image", image.id, [type(item)(key, item.size, item.digest, item.object)])


def _id(kind: str, number: int) -> str:
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()


def collect(root: str, run: str, number: str) -> dict[str, Any]:
    """Delete one image with its layers; then tell what a dry run and a collection take, in one process."""
    with Store.open(root, run=run) as store:
        times = [time.perf_counter()]
        store.images.delete(_id("image", int(number)))
        times.append(time.perf_counter())
        planned = store.gc(dry_run=True)
        times.append(time.perf_counter())
        done = store.gc()
        times.append(time.perf_counter())
        store.gc()
        times.append(time.perf_counter())
    assert planned == done, f"{planned} {done}"
    assert done.contents == CHAIN
    names = ("delete_s", "plan_s", "gc_s", "nothing_s")
    return dict(zip(names, (after - before for before, after in pairwise(times)), strict=True))


def delete(root: str, run: str, number: str) -> None:
    """Delete one image with its layers."""
    with Store.open(root, run=run) as store:
        store.images.delete(_id("image", int(number)))


def check(root: str, run: str) -> dict[str, Any]:
    """Check the store's catalog and its packs' presence: the full mark is part of it."""
    with Store.open(root, run=run) as store:
        report = store.check(modifications=False)
    assert not report.findings, report.findings[:3]
    return {name: seconds for name, seconds, _ in report.depths}


TASKS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "fill": fill,
    "collect": collect,
    "delete": delete,
    "check": check,
}

if __name__ == "__main__":
    answer = TASKS[sys.argv[1]](*sys.argv[2:])
    if answer is not None:
        print(json.dumps(answer))
