"""Parts of the benchmark about views: from a tar to a file that can be read, and mounts of what is stored."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.measure import OURS, PEER, StoreOf, compare, fresh, in_turn, run, settle, spread, warm
from bench.parts import STARTS, Bench

#: A file of the node layer, and a program of it.
FILE = "usr/share/doc/ca-certificates/copyright"
PROGRAM = ("/usr/bin/node", "--version")


def _inside(task: str, *arguments: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run([sys.executable, "-m", "bench.insideviews", task, *map(str, arguments)])[1])
    return answer


def _mount(store: StoreOf, record: str) -> tuple[float, Path]:
    cost, text = run(store.command("mount", record))
    return cost.wall_s, Path(text.strip())


def first_file(bench: Bench) -> dict[str, Any]:
    """From a tar to a file that can be read: create-layer, applydiff, mount, read."""
    figures: dict[str, list[float]] = {PEER: [], OURS: []}
    warm(bench.tar("node"))
    for number in range(bench.rounds):
        for tool in in_turn(number):
            store = fresh(tool, bench.scratch)
            settle()
            begin = time.perf_counter()
            layer = store.create_layer()
            store.do("applydiff", "-f", bench.tar("node"), layer)
            _, path = _mount(store, layer)
            (path / FILE).read_bytes()
            figures[tool].append(time.perf_counter() - begin)
            store.remove()
    result = compare(figures[PEER], figures[OURS])
    bench.tell(
        f"first file: {result[PEER]['median']:.2f} s, {result[OURS]['median']:.2f} s, ratio {result['ratio']:.2f}"
    )
    return result


def _two_layers(store: StoreOf, bench: Bench) -> float:
    """Store base and node; tell the seconds of the two applydiffs."""
    base = store.create_layer()
    seconds = store.do("applydiff", "-f", bench.tar("base"), base).wall_s
    node = store.create_layer(base)
    seconds += store.do("applydiff", "-f", bench.tar("node"), node).wall_s
    run(store.command("create-image", "--name", "image", node))
    run(store.command("create-container", "--name", "container", "image"))
    return seconds


def cold_start(bench: Bench) -> dict[str, Any]:
    """With base and node stored and no cache: mount until ``node --version`` is printed; beside the peer's applydiffs."""
    for layer in ("base", "node"):
        warm(bench.tar(layer))
    figures: dict[str, list[float]] = {PEER: [], OURS: []}
    for number in range(bench.rounds):
        for tool in in_turn(number):
            store = fresh(tool, bench.scratch)
            settle()
            stored = _two_layers(store, bench)
            settle()
            if tool == PEER:
                figures[PEER].append(stored)
            else:
                begin = time.perf_counter()
                _, path = _mount(store, "container")
                subprocess.run(["chroot", path, *PROGRAM], check=True, stdout=subprocess.DEVNULL)
                figures[OURS].append(time.perf_counter() - begin)
            store.remove()
    result = compare(figures[PEER], figures[OURS])
    bench.tell(f"cold start: {result[OURS]['median']:.2f} s, beside applydiffs {result[PEER]['median']:.2f} s")
    return result


def views(bench: Bench) -> dict[str, Any]:
    """Mounts of what is cached, images, farms and deep stacks, each in a process of its own."""
    store = fresh(OURS, bench.scratch)
    _two_layers(store, bench)
    run(store.command("mount", "container"))
    run(store.command("unmount", "container"))
    mounting, starting = [], []
    for _ in range(STARTS):
        starting.append(run(store.command("exists", "image"))[0].wall_s)
        mounting.append(_mount(store, "container")[0])
        run(store.command("unmount", "container"))
    layer = next(item for item in json.loads(run(store.command("images", "--json"))[1]))["layer"]
    result: dict[str, Any] = {
        "command": {"mount": spread(mounting), "start": spread(starting)},
        "image": _inside("image", store.folder, layer),
        "warm": _inside("warm", store.folder, "image"),
    }
    result["difference"] = statistics.median(mounting) - statistics.median(starting)
    store.remove()
    store = fresh(OURS, bench.scratch)
    for name in ("node", "py", "pynode"):
        run(store.command("import-layer", "--id", name, "--file", str(bench.tar(name))))
    result["farm"] = _inside("farm", store.folder, bench.tar("pynode"))
    store.remove()
    store = fresh(OURS, bench.scratch)
    result["deep"] = _inside("deep", store.folder)
    store.remove()
    bench.tell(json.dumps(result))
    return result
