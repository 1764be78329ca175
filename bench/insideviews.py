"""What is measured of views within one process: ``python -m bench.insideviews TASK ARGUMENT...`` prints JSON."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from lading import Store
from lading.catalog import content
from lading.config import Settings
from lading.idmaps import MapRequest, Maps
from lading.materialize import erofs
from lading.values import IDMap

MAPS = Maps((IDMap(0, 100_000, 65_536),), (IDMap(0, 100_000, 65_536),))
LAYERS_DEEP = 100
FILES_DEEP = 10_000
REPEATS = 9


@contextmanager
def opened(folder: str, **settings: Any) -> Iterator[Store]:
    """The store of a benchmark's folder."""
    root = Path(folder)
    with Store.open(root / "graph", run=root / "run", driver="overlay", settings=Settings(**settings)) as store:
        yield store


def _timed(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def image(folder: str, layer: str) -> dict[str, Any]:
    """Write a layer's EROFS image several times: seconds with reading the catalog, sizes."""
    with opened(folder) as store, tempfile.TemporaryDirectory(dir=folder) as scratch:
        context = store._context
        key = store.layers.get(layer).contents[0]
        seconds = []
        for number in range(5):
            begin = time.perf_counter()
            with context.catalog.read() as conn:
                entries = content.entries(conn, key)
            with open(Path(scratch) / str(number), "xb+") as file:
                info = erofs.write_image(file.fileno(), entries, context.objects)
            seconds.append(time.perf_counter() - begin)
        return {
            "seconds": statistics.median(seconds), "content": info.bytes, "size": info.size, "entries": info.entries,
        }  # fmt: skip


def warm(folder: str, image_name: str) -> dict[str, Any]:
    """Mount a container whose views are cached; start one with maps. Seconds, each in this process."""
    with opened(folder) as store:
        store.cache.prefetch(image_name)
        plain, mapped = [], []
        for _ in range(REPEATS):
            container = store.containers.create(image_name)
            plain.append(_timed(lambda: store.mount(container.id)))  # noqa: B023 - called at once
            store.unmount(container.id)
            store.containers.delete(container.id)
        written = 0
        for _ in range(REPEATS):
            before = sum(store.cache.sizes().values())

            def start() -> None:
                nonlocal container
                container = store.containers.create(image_name, idmap=MapRequest(MAPS))
                store.mount(container.id)

            mapped.append(_timed(start))
            written += sum(store.cache.sizes().values()) - before
            area = store.root / "layers" / container.layer
            written += sum(item.stat().st_size for item in area.rglob("upper/**/*") if item.is_file())
            store.unmount(container.id)
            store.containers.delete(container.id)
        return {"mount": statistics.median(plain), "mapped": statistics.median(mapped), "written": written}


def farm(folder: str, tar: str) -> dict[str, Any]:
    """Build the farm of ``pynode`` with the pool of its parts, beside GNU tar unpacking it."""
    ours, theirs = [], []
    with opened(folder, strategy="farm") as store:
        store.cache.prefetch("node")
        for number in range(5):
            target = Path(folder) / f"tar{number}"
            target.mkdir()
            theirs.append(_timed(lambda: subprocess.run(["tar", "-xf", tar, "-C", target], check=True)))  # noqa: B023
            subprocess.run(["rm", "-rf", target], check=True)
            for name in os.listdir(store.root / "cache/trees"):
                if not name.startswith("root-"):
                    subprocess.run(["rm", "-rf", store.root / "cache/trees" / name], check=True)
            store.cache.prefetch("node")
            store.cache.prefetch("py")
            os.sync()
            ours.append(_timed(lambda: store.cache.prefetch("pynode")))
    return {"farm": statistics.median(ours), "tar": statistics.median(theirs)}


def deep(folder: str) -> dict[str, Any]:
    """Look at 10,000 files of an image of 100 layers, stacked, flattened, and as configured by default."""
    with opened(folder) as store:
        top = ""
        for number in range(LAYERS_DEEP):
            buffer = BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                for item in range(FILES_DEEP // LAYERS_DEEP):
                    info = tarfile.TarInfo(f"d{item % 20}/{number:03}-{item:03}")
                    info.size = 10
                    tar.addfile(info, BytesIO(b"%010d" % item))
            buffer.seek(0)
            top = store.layers.import_(buffer, top).id
        image_id = store.images.create(top).id
    found: dict[str, Any] = {"layers": LAYERS_DEEP, "files": FILES_DEEP}
    names = [f"d{item % 20}/{number:03}-{item:03}" for number in range(LAYERS_DEEP) for item in range(100)]
    for label, settings, flatten in (
        ("stacked", {"flatten_depth": 400}, False), ("flattened", {}, True), ("default", {}, False)
    ):  # fmt: skip
        with opened(folder, **settings) as store:
            store.cache.prefetch(image_id, flatten=flatten)
            seconds, mounting = [], []
            for _ in range(5):
                begin = time.perf_counter()
                path = store.images.mount(image_id, flatten=flatten)
                mounting.append(time.perf_counter() - begin)
                seconds.append(_timed(lambda: [os.stat(path / name) for name in names]))  # noqa: B023 - called at once
                store.images.unmount(image_id)
            found[label] = {"stat": statistics.median(seconds), "mount": statistics.median(mounting)}
    return found


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"image": image, "warm": warm, "farm": farm, "deep": deep}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
