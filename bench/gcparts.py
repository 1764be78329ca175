"""Collections: what they cost in a small store and in a large one, for the same garbage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from bench.insidegc import CHAIN
from bench.measure import OURS, StoreOf, fresh, run, settle, spread
from bench.parts import Bench

#: Store sizes, in images of ``CHAIN`` layers each.
IMAGES: Final = (200, 20_000)


def collection(bench: Bench) -> dict[str, Any]:
    """Delete one image with its layers, of few and of many, and collect."""
    results: dict[str, Any] = {}
    for images in IMAGES:
        store = fresh(OURS, bench.scratch)
        bench.tell(f"making a store of {images * CHAIN} layers in {images} images")
        figures = _inside("fill", store, images)
        inside, commands = [], []
        for number in range(bench.rounds):
            settle()
            inside.append(_inside("collect", store, number * 7))
            _inside("delete", store, number * 7 + 3)
            settle()
            commands.append(store.do("gc").wall_s)
        results[str(images)] = {
            **figures,
            **{key: spread([each[key] for each in inside]) for key in inside[0]},
            "command_s": spread(commands),
            "version_s": spread([store.do("version").wall_s for _ in range(bench.rounds)]),
            "check": _inside("check", store),
        }
        bench.tell(json.dumps(results[str(images)]))
        store.remove()
    return results


def _inside(task: str, store: StoreOf, *arguments: str | Path | int) -> dict[str, Any]:
    """Run a task of ``bench.insidegc`` on a store, in a process of its own."""
    words = [sys.executable, "-m", "bench.insidegc", task, str(store.graph), str(store.run_root), *map(str, arguments)]
    output = run(words)[1]
    answer: dict[str, Any] = json.loads(output) if output.strip() else {}
    return answer
