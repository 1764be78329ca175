"""A process that stores and deletes layers, or collects: ``python -m tests.interleave.worker KIND ROOT RUN ...``."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from collections.abc import Callable

from lading import Settings, Store
from tests.interleave.test_schedules import TARS

#: Layers that a process keeps; it deletes the oldest beyond that, so that contents come and go all the time.
KEPT = 3


def opened(root: str, run: str) -> Store:
    """The store, with packs that wear out soon."""
    return Store.open(root, run=run, driver="vfs", settings=Settings(repack_share=0.2, workers=1))


def ingest(root: str, run: str, seed: str, count: str) -> None:
    """Store layers, give some back at once, delete older ones; print what is left, a layer and its tar each."""
    chosen = random.Random(int(seed))
    kept: list[tuple[str, int]] = []
    with opened(root, run) as store:
        for _ in range(int(count)):
            number = chosen.randrange(len(TARS))
            kept.append((store.layers.import_(io.BytesIO(TARS[number])).id, number))
            if chosen.random() < 0.2:
                layer, number = chosen.choice(kept)
                with store.layers.diff(layer, compression=0) as chunks:
                    if b"".join(chunks) != TARS[number]:
                        raise SystemExit(f"layer {layer} is not tar {number}")
            while len(kept) > chosen.randrange(KEPT + 1):
                store.layers.delete(kept.pop(0)[0])
    print(json.dumps(kept))


def collect(root: str, run: str, stop: str) -> None:
    """Collect until a file is there; print how often."""
    times = 0
    with opened(root, run) as store:
        while not os.path.exists(stop):
            store.gc()
            times += 1
    print(json.dumps(times))


KINDS: dict[str, Callable[..., None]] = {"ingest": ingest, "collect": collect}

if __name__ == "__main__":
    KINDS[sys.argv[1]](*sys.argv[2:])
