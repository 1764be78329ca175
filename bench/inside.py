"""What is measured within one process of its own: ``python -m bench.inside TASK ARGUMENT...`` prints JSON."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

#: Plain bytes of one task of the pool in :func:`limit`.
BATCH_SIZE = 2 << 20


def limit(tar: str) -> dict[str, Any]:
    """Hash and compress the unique file contents of a layer with all cores, and nothing else.

    No ingest can be faster on this machine without doing less. Reading and parsing the tar, asking what is known,
    writing and syncing are left out. The second figure adds the digest of the whole stream, which every ingest owes.
    """
    from lading.objects.digest import blake3_digest
    from lading.objects.frame import DEFAULT_LEVEL, compress
    from lading.values import FRAME_SIZE

    contents: dict[bytes, bytes] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None and (data := file.read()):
                contents[blake3_digest(data)] = data

    def work(batch: list[bytes]) -> int:
        stored = 0
        for data in batch:
            blake3_digest(data)
            view = memoryview(data)
            stored += sum(
                len(compress(view[at : at + FRAME_SIZE], DEFAULT_LEVEL)[1]) for at in range(0, len(data), FRAME_SIZE)
            )
        return stored

    def batches() -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        size = 0
        for data in contents.values():
            batch.append(data)
            size += len(data)
            if size >= BATCH_SIZE:
                yield batch
                batch, size = [], 0
        yield batch

    plain = Path(tar).read_bytes()
    results: dict[str, Any] = {"objects": len(contents), "bytes": sum(map(len, contents.values()))}
    for name, with_stream in (("objects_s", False), ("stream_s", True)):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = time.perf_counter()
            digest = pool.submit(hashlib.sha256, plain) if with_stream else None
            results["stored"] = sum(pool.map(work, batches()))
            if digest is not None:
                digest.result()
            results[name] = time.perf_counter() - started
    results["level"] = DEFAULT_LEVEL
    return results


def records(root: str, run: str, count: str, sync: str = "full") -> dict[str, Any]:
    """Make layers, then an image of each, each a commit of its own."""
    from lading import Store
    from lading.config import Settings

    number = int(count)
    with Store.open(root, run=run, settings=Settings(sync=sync)) as store:
        started = time.perf_counter()
        layers = [store.layers.create(names=[f"layer-{index}"]).id for index in range(number)]
        middle = time.perf_counter()
        for index, layer in enumerate(layers):
            store.images.create(layer, names=[f"image-{index}"])
        ended = time.perf_counter()
    return {"layers_s": middle - started, "images_s": ended - middle, "peak": _peak()}


def questions(root: str, run: str, name: str) -> dict[str, Any]:
    """Ask an open store, many times; microseconds for each answer."""
    from lading import Store

    with Store.open(root, run=run) as store:
        found = store.exists(name)
        results: dict[str, Any] = {"exists_us": _repeated(lambda: store.exists(name))}
        results["absent_us"] = _repeated(lambda: store.exists("no-such-name"))
        if found:
            results["get_us"] = _repeated(lambda: store.images.get(name))
        started = time.perf_counter()
        images = store.images.all()
        results["list_s"] = time.perf_counter() - started
        results["images"] = len(images)
    return results


def _repeated(question: Callable[[], object], times: int = 300) -> float:
    question()
    started = time.perf_counter()
    for _ in range(times):
        question()
    return (time.perf_counter() - started) / times * 1e6


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def big_tar(size: str) -> None:
    """Write a layer with one file to standard output: half of it compresses, none of it repeats."""
    total = int(size)
    out = sys.stdout.buffer
    info = tarfile.TarInfo("large")
    info.size = total
    out.write(info.tobuf(tarfile.PAX_FORMAT))
    block = 1 << 20
    for number in range(total // block):
        noise = hashlib.shake_128(number.to_bytes(8, "big")).digest(block // 64)
        # Cheap to make, so that the generator is not what is measured: a counter keeps every part of it different.
        out.write(
            b"".join(noise + number.to_bytes(8, "big") * (len(noise) // 8) for _ in range(block // len(noise) // 2))
        )
    out.write(bytes(1024))
    out.flush()


TASKS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "limit": limit,
    "records": records,
    "questions": questions,
    "big-tar": big_tar,
}

if __name__ == "__main__":
    answer = TASKS[sys.argv[1]](*sys.argv[2:])
    if answer is not None:
        print(json.dumps(answer))
