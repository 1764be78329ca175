"""What durability costs: a store that syncs every commit beside a relaxed one, in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from bench.measure import OURS, fresh, settle, spread, warm
from bench.parts import Bench, inside

#: The two settings of ``sync``; the first is the default.
MODES: Final = ("full", "relaxed")

#: Layer whose ingest is measured.
LAYER: Final = "node"

#: Layers, and images, made one commit each.
RECORDS: Final = 1_000


@contextmanager
def _configured(bench: Bench, mode: str) -> Iterator[None]:
    """Let commands find a configuration that says how to sync."""
    path = bench.scratch / "config.toml"
    path.write_text(f'sync = "{mode}"\n')
    before = os.environ.get("LADING_CONFIG")
    os.environ["LADING_CONFIG"] = str(path)
    try:
        yield
    finally:
        del os.environ["LADING_CONFIG"]
        if before is not None:
            os.environ["LADING_CONFIG"] = before


def durability(bench: Bench) -> dict[str, Any]:
    """Apply a layer, and make records, under both settings, each on a new store."""
    warm(bench.tar(LAYER))
    figures: dict[str, dict[str, list[float]]] = {
        what: {mode: [] for mode in MODES} for what in ("applydiff_s", "layers_s", "images_s")
    }
    for number in range(bench.rounds):
        for mode in MODES if number % 2 == 0 else MODES[::-1]:
            store = fresh(OURS, bench.scratch)
            with _configured(bench, mode):
                target = store.create_layer()
                settle()
                figures["applydiff_s"][mode].append(store.do("applydiff", "-f", bench.tar(LAYER), target).wall_s)
            store.remove()
            store = fresh(OURS, bench.scratch)
            settle()
            made = inside("records", store.graph, store.run_root, RECORDS, mode)
            for what in ("layers_s", "images_s"):
                figures[what][mode].append(made[what])
            store.remove()
    results: dict[str, Any] = {"layer": LAYER, "bytes": bench.tar(LAYER).stat().st_size, "records": RECORDS}
    for what, by_mode in figures.items():
        pairs = zip(by_mode["relaxed"], by_mode["full"], strict=True)
        ratios = [relaxed / full for relaxed, full in pairs]
        results[what] = {mode: spread(values) for mode, values in by_mode.items()} | {"ratio": spread(ratios)}
        medians = [results[what][mode]["median"] for mode in MODES]
        bench.tell(
            f"{what}: full {medians[0]:.3f}, relaxed {medians[1]:.3f}, ratio {results[what]['ratio']['median']:.2f}"
        )
    return results
