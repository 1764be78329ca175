"""Collections, ingests, deletions and readers of one store, interleaved at every commit, by seed.

``LADING_INTERLEAVINGS`` is the number of schedules (a few when it is not set); ``LADING_INTERLEAVINGS_SEED`` the
first seed. Each schedule is one ingest at least beside one collection at least.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lading import Settings, Store
from lading.catalog import reach
from lading.errors import NotFound
from tests.flows.test_layers import taken_out
from tests.interleave.schedule import Scheduler, handing_over
from tests.tarmake import END, file

SCHEDULES = int(os.environ.get("LADING_INTERLEAVINGS", "150"))
SEED = int(os.environ.get("LADING_INTERLEAVINGS_SEED", "0"))

#: Schedules that one store goes through: what an earlier one left behind is what a later one meets.
PER_STORE = 25

#: Distinct layers. Each shares files with others, so that most of what is deleted is wanted again at once.
LAYERS = 4


def layer_tar(number: int) -> bytes:
    """A layer of three files out of six, one of them twice in the stream."""
    chosen = random.Random(number).sample(range(6), 3)
    parts = [file(b"f%d" % each, random.Random(each).randbytes(700) * 2) for each in chosen]
    return file(b"f%d" % chosen[0], b"replaced %d" % chosen[1]) + b"".join(parts) + END


TARS = [layer_tar(number) for number in range(LAYERS)]


class World:
    """A store, what was acknowledged of it, and what may be done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.stores = [
            Store.open(
                folder / "root", run=folder / "run", driver="vfs", settings=Settings(repack_share=0.2, workers=1)
            )
            for _ in range(4)
        ]
        self.layers: dict[str, int] = {}  #: acknowledged, and the tar that each was made of
        self.image = self.stores[0].images.create().id
        self.data: dict[str, bytes] = {}
        self.wanted = 0

    def acts(self) -> dict[str, Callable[[], object]]:
        """Draw what is done at once: one ingest, one collection, and two more of any kind.

        Before that, all layers of one tar are deleted, and it is most likely the one that comes in again.
        """
        self.wanted = self.random.randrange(LAYERS)
        if self.random.random() < 0.8:
            for layer in [layer for layer, number in self.layers.items() if number == self.wanted]:
                self._delete(self.stores[0], layer)
        kinds = ["ingest", "gc", *self.random.choices(["ingest", "gc", "delete", "data", "read", "apply"], k=2)]
        self.random.shuffle(kinds)
        return {
            f"{kind} {at}": self._act(kind, store, at)
            for at, (kind, store) in enumerate(zip(kinds, self.stores, strict=True))
        }

    def _act(self, kind: str, store: Store, at: int) -> Callable[[], object]:
        number = self.wanted if self.random.random() < 0.7 else self.random.randrange(LAYERS)
        chosen = self.random.choice(sorted(self.layers)) if self.layers else ""
        match kind:
            case "gc":
                return store.gc
            case "ingest":
                return lambda: self.layers.__setitem__(store.layers.import_(io.BytesIO(TARS[number])).id, number)
            case "delete":
                return lambda: self._delete(store, chosen)
            case "read":
                return lambda: self._read(store, chosen)
            case "apply":
                return lambda: self._apply(store, number)
            case _:
                # Each to a key of its own: of two that set one key, nobody could say whose bytes are to be there.
                return lambda: self._set_data(store, f"k{at}", random.Random(number % 6).randbytes(700) * 2)

    def _delete(self, store: Store, layer: str) -> None:
        if self.layers.pop(layer, None) is not None:
            store.layers.delete(layer)

    def _read(self, store: Store, layer: str) -> None:
        number = self.layers.get(layer)
        if number is not None:
            try:
                found = taken_out(store, layer)
            except NotFound:
                return  # deleted meanwhile
            assert found == TARS[number]

    def _apply(self, store: Store, number: int) -> None:
        """Make an empty layer and replace what it replays: contents lose their layer without a deletion."""
        layer = store.layers.create().id
        for each in ((number + 1) % LAYERS, number):
            store.layers.apply(layer, io.BytesIO(TARS[each]))
            self.layers[layer] = each

    def _set_data(self, store: Store, key: str, data: bytes) -> None:
        self.data.pop(key, None)
        store.images.set_data(self.image, key, io.BytesIO(data))
        self.data[key] = data

    def verify(self) -> None:
        """Whatever was acknowledged is there, byte for byte, and every note that a collection needs is there."""
        store = self.stores[0]
        for layer, number in self.layers.items():
            assert taken_out(store, layer) == TARS[number]
        for key, data in self.data.items():
            assert b"".join(store.images.data(self.image, key)) == data
        with store._context.catalog.read() as conn:
            assert reach.unreferenced_rows(conn) == []

    def close(self) -> None:
        """Look at every byte; then delete everything, and nothing may be left."""
        store = self.stores[0]
        assert store.check(content=True, modifications=False).findings == ()
        for layer in self.layers:
            store.layers.delete(layer)
        store.images.delete(self.image)
        store.gc()
        balance = store.balance().classes
        assert balance["packs: live"] == balance["packs: dead"] == balance["packs: unrecorded"] == 0
        counts = store.query(
            "SELECT (SELECT count(*) FROM content), (SELECT count(*) FROM object), (SELECT count(*) FROM pack)"
        )
        assert list(counts[1]) == [(0, 0, 0)]
        for each in self.stores:
            each.close()


@pytest.mark.parametrize("part", range(max(1, min(8, SCHEDULES // PER_STORE))))
def test_no_schedule_loses_an_object(part: int, memory: Path) -> None:
    """Nor leaves one behind that no collection finds."""
    parts = max(1, min(8, SCHEDULES // PER_STORE))
    seeds = range(SEED + part, SEED + SCHEDULES, parts)
    current: Scheduler | None = None
    with handing_over(lambda: current):
        for start in range(0, len(seeds), PER_STORE):
            folder = memory / str(start)
            world = World(folder, seeds[start])
            for seed in seeds[start : start + PER_STORE]:
                current = Scheduler(seed)
                try:
                    current.run(world.acts())
                    trace, current = current.trace, None
                    world.verify()
                except BaseException as error:
                    trace, current = (current.trace if current else trace), None
                    raise AssertionError(
                        f"seed {seed} (store of {seeds[start]}): {error!r}\n" + "\n".join(trace)
                    ) from error
            world.close()
            shutil.rmtree(folder)
