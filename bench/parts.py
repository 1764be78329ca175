"""The measurements. Each part takes a :class:`Bench` and gives figures for keeping, as plain JSON values."""

from __future__ import annotations

import filecmp
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.measure import OURS, PEER, Cost, StoreOf, compare, fresh, in_turn, run, settle, spread, warm

#: The corpus's layers in the order of a store's life, and the layer that each one lies on.
LAYERS: Final[dict[str, str]] = {
    "base": "",
    "py": "base",
    "node": "base",
    "gcc": "base",
    "pynode": "base",
    "app-4.2.10": "py",
    "app-4.2.11": "py",
    "app-4.2.13": "py",
}

#: Store sizes, in layers and as many images, for questions.
SIZES: Final = (0, 1_000, 50_000)

#: Bytes of the one file in the layer that tests the bound of memory.
BIG_FILE: Final = 4 << 30

#: The reference has no way to make records but a command for each; more of them than this would take hours.
PEER_RECORDS: Final = 1_000

#: Times a short command is started.
STARTS: Final = 20


@dataclass(frozen=True)
class Bench:
    """Where to find and put things, and how often to measure."""

    corpus: Path
    scratch: Path
    rounds: int
    binary: Path | None  #: the one-file command, if it has been made
    layers: tuple[str, ...] = tuple(LAYERS)  #: those that applydiff and diff measure, each by itself

    def tar(self, layer: str) -> Path:
        """A layer of the corpus."""
        return self.corpus / f"{layer}.tar"

    def tell(self, text: str) -> None:
        """Say what is going on."""
        print(f"   {text}", flush=True)


def inside(task: str, *arguments: str | Path | int) -> dict[str, Any]:
    """Run a task of ``bench.inside`` in a process of its own."""
    answer: dict[str, Any] = json.loads(run([sys.executable, "-m", "bench.inside", task, *map(str, arguments)])[1])
    return answer


def _costs(figures: dict[str, list[Cost]]) -> dict[str, Any]:
    """Compare wall time, processor time and peak memory of both programs."""
    return {
        field: compare(
            [getattr(cost, field) for cost in figures[PEER]], [getattr(cost, field) for cost in figures[OURS]]
        )
        for field in Cost._fields
    }


def applydiff(bench: Bench) -> dict[str, Any]:
    """Apply each layer to an empty layer of a new store."""
    results = {}
    for layer in bench.layers:
        warm(bench.tar(layer))
        figures: dict[str, list[Cost]] = {PEER: [], OURS: []}
        for number in range(bench.rounds):
            for tool in in_turn(number):
                store = fresh(tool, bench.scratch)
                target = store.create_layer()
                settle()
                figures[tool].append(store.do("applydiff", "-f", bench.tar(layer), target))
                store.remove()
        results[layer] = _costs(figures) | {"bytes": bench.tar(layer).stat().st_size}
        bench.tell(_line(layer, results[layer]))
    return results


def series(bench: Bench) -> dict[str, Any]:
    """Fill one store with all eight layers, in order; then tell what it has on disk."""
    figures: dict[str, list[Cost]] = {PEER: [], OURS: []}
    at_rest: dict[str, tuple[int, int]] = {}
    for layer in LAYERS:
        warm(bench.tar(layer))
    for number in range(bench.rounds):
        for tool in in_turn(number):
            store, _, costs = filled(bench, tool)
            figures[tool].append(
                Cost(sum(c.wall_s for c in costs), sum(c.cpu_s for c in costs), max(c.peak for c in costs))
            )
            settle()
            at_rest[tool] = store.bytes_at_rest()
            store.remove()
    results = _costs(figures)
    results["at_rest"] = {tool: {"sizes": sizes, "blocks": blocks} for tool, (sizes, blocks) in at_rest.items()}
    results["bytes"] = sum(bench.tar(layer).stat().st_size for layer in LAYERS)
    bench.tell(_line("eight layers", results) + f", at rest {at_rest}")
    return results


def filled(bench: Bench, tool: str) -> tuple[StoreOf, dict[str, str], list[Cost]]:
    """Make a store with all eight layers.

    Returns:
        The store, the layers' ids, and what applying each one cost.
    """
    store = fresh(tool, bench.scratch)
    ids: dict[str, str] = {}
    costs = []
    for layer, parent in LAYERS.items():
        ids[layer] = store.create_layer(ids.get(parent, ""))
        settle()
        costs.append(store.do("applydiff", "-f", bench.tar(layer), ids[layer]))
    return store, ids, costs


def diff(bench: Bench) -> dict[str, Any]:
    """Get each layer back as a file, from a store with all eight; compare it with what was applied."""
    stores = {tool: filled(bench, tool) for tool in (PEER, OURS)}
    out = bench.scratch / "out.tar"
    results = {}
    for layer in LAYERS:
        figures: dict[str, list[Cost]] = {PEER: [], OURS: []}
        for number in range(bench.rounds if layer in bench.layers else 1):
            for tool in in_turn(number):
                store, ids, _ = stores[tool]
                out.unlink(missing_ok=True)
                settle()
                figures[tool].append(store.do("diff", "-u", "-f", out, ids[layer]))
                if not filecmp.cmp(out, bench.tar(layer), shallow=False):
                    raise SystemExit(f"{tool}: the diff of {layer} is not what was applied")
        results[layer] = _costs(figures) | {"bytes": bench.tar(layer).stat().st_size}
        bench.tell(_line(layer, results[layer]))
    out.unlink()
    for store, _, _ in stores.values():
        store.remove()
    return results


def again(bench: Bench) -> dict[str, Any]:
    """Apply a layer once more, under another parent: what it costs and what it adds."""
    layer, first, second = "node", "base", "py"
    figures: dict[str, list[Cost]] = {PEER: [], OURS: []}
    added: dict[str, int] = {}
    for number in range(bench.rounds):
        for tool in in_turn(number):
            store = fresh(tool, bench.scratch)
            parents = [store.create_layer(), store.create_layer()]
            for parent, tar in zip(parents, (first, second), strict=True):
                store.do("applydiff", "-f", bench.tar(tar), parent)
            targets = [store.create_layer(parent) for parent in parents]
            store.do("applydiff", "-f", bench.tar(layer), targets[0])
            settle()
            before = store.bytes_at_rest()[0]
            figures[tool].append(store.do("applydiff", "-f", bench.tar(layer), targets[1]))
            added[tool] = store.bytes_at_rest()[0] - before
            store.remove()
    results = _costs(figures) | {"added": added}
    bench.tell(_line("again", results) + f", added {added}")
    return results


def limit(bench: Bench) -> dict[str, Any]:
    """What no ingest of the largest layer of small files can beat on this machine."""
    warm(bench.tar("node"))
    runs = [inside("limit", bench.tar("node")) for _ in range(bench.rounds)]
    results = runs[0] | {key: spread([each[key] for each in runs]) for key in ("objects_s", "stream_s")}
    bench.tell(
        f"limit {results['objects_s']['median']:.2f} s, with the stream's digest {results['stream_s']['median']:.2f} s"
    )
    return results


def records(bench: Bench) -> dict[str, Any]:
    """Make many records: ours in one process, as a library's user would; the reference has only commands."""
    number = PEER_RECORDS
    ours = []
    for _ in range(bench.rounds):
        store = fresh(OURS, bench.scratch)
        settle()
        ours.append(inside("records", store.graph, store.run_root, number))
        store.remove()
    peer = fresh(PEER, bench.scratch)
    settle()
    layers = [peer.do("create-layer", "--id", f"{index:064x}", "--name", f"layer-{index}") for index in range(number)]
    images = [peer.do("create-image", "--name", f"image-{index}", f"{index:064x}") for index in range(number)]
    peer.remove()
    results = {
        "number": number,
        OURS: {key: spread([each[key] for each in ours]) for key in ("layers_s", "images_s", "peak")},
        PEER: {"layers_s": sum(cost.wall_s for cost in layers), "images_s": sum(cost.wall_s for cost in images)},
    }
    bench.tell(f"records: {results}")
    return results


def questions(bench: Bench) -> dict[str, Any]:
    """Ask stores of several sizes, by commands and, for ours, within one process."""
    results: dict[str, Any] = {}
    for size in SIZES:
        name = f"image-{size // 2}"
        stores = {OURS: fresh(OURS, bench.scratch), PEER: fresh(PEER, bench.scratch)}
        bench.tell(f"making stores of {size} layers and images")
        inside("records", stores[OURS].graph, stores[OURS].run_root, size)
        _records_by_hand(stores[PEER], size)
        words = {"images": ["images"], "version": ["version"]}
        if size:
            words |= {"exists": ["exists", name], "image": ["image", name]}
        commands: dict[str, Any] = {}
        for label, command in words.items():
            figures: dict[str, list[Cost]] = {PEER: [], OURS: []}
            for number in range(max(bench.rounds, 5)):
                for tool in in_turn(number):
                    figures[tool].append(stores[tool].do(*command))
            commands[label] = _costs(figures)
            bench.tell(_line(f"{label} of {size}", commands[label]))
        library = [inside("questions", stores[OURS].graph, stores[OURS].run_root, name) for _ in range(bench.rounds)]
        keys = [key for key in library[0] if key != "images"]
        results[str(size)] = {
            "commands": commands,
            "library": {key: spread([each[key] for each in library]) for key in keys},
        }
        for store in stores.values():
            store.remove()
    return results


def _records_by_hand(store: StoreOf, size: int) -> None:
    """Give a store of the reference many records by multiplying real ones in its own files.

    Its command would need hours for as many: it writes all records at every change.
    """
    if not size:
        run(store.command("layers"))
        return
    layer = store.create_layer()
    run(store.command("create-image", "--name", "image-x", layer))
    for kind in ("layers", "images"):
        file = store.graph / f"overlay-{kind}" / f"{kind}.json"
        pattern = json.loads(file.read_text())[0]
        rows = []
        for index in range(size):
            row = dict(pattern, id=f"{index:064x}", names=[f"{kind[:-1]}-{index}"])
            row.pop("names-history", None)
            rows.append(row | {"layer": f"{index:064x}"} if kind == "images" else row)
        file.write_text(json.dumps(rows))


def start(bench: Bench) -> dict[str, Any]:
    """Start short commands on a small store."""
    stores = {PEER: fresh(PEER, bench.scratch), OURS: fresh(OURS, bench.scratch)}
    for store in stores.values():
        run(store.command("create-layer", "--name", "something"))
    runs = dict(stores)
    if bench.binary is not None:
        runs["one file"] = StoreOf(OURS, stores[OURS].folder, str(bench.binary))
    results: dict[str, Any] = {}
    for label, words in {"version": ["version"], "exists": ["exists", "something"], "layers": ["layers"]}.items():
        figures: dict[str, list[Cost]] = {who: [] for who in runs}
        for _ in range(STARTS):
            for who, store in runs.items():
                figures[who].append(store.do(*words))
        results[label] = {
            who: {"wall_s": spread([c.wall_s for c in costs]), "peak": spread([c.peak for c in costs])}
            for who, costs in figures.items()
        }
    interpreter = [run([sys.executable, "-c", "pass"])[0].wall_s for _ in range(STARTS)]
    results["interpreter"] = {"wall_s": spread(interpreter)}
    bench.tell(", ".join(f"{who} {each['wall_s']['median'] * 1000:.0f} ms" for who, each in results["exists"].items()))
    for store in stores.values():
        store.remove()
    return results


def memory(bench: Bench) -> dict[str, Any]:
    """Apply a layer with one large file that comes through a pipe; tell the peak of resident memory."""
    results: dict[str, Any] = {"bytes": BIG_FILE}
    for tool in (PEER, OURS):
        store = fresh(tool, bench.scratch)
        target = store.create_layer()
        settle()
        with subprocess.Popen(
            [sys.executable, "-m", "bench.inside", "big-tar", str(BIG_FILE)], stdout=subprocess.PIPE
        ) as source:
            assert source.stdout is not None
            cost = store.do("applydiff", target, stdin=source.stdout)
        results[tool] = cost._asdict() | {"at_rest": store.bytes_at_rest()[0]}
        store.remove()
        bench.tell(f"{tool}: one file of {BIG_FILE} bytes, peak {cost.peak / 1e6:.0f} MB, {cost.wall_s:.1f} s")
    return results


def _line(label: str, costs: dict[str, Any]) -> str:
    """One comparison in a line for whoever waits."""
    wall = costs["wall_s"]
    return (
        f"{label}: {PEER} {wall[PEER]['median']:.3f} s, {OURS} {wall[OURS]['median']:.3f} s, "
        f"ratio {wall['ratio']:.2f}; memory {costs['peak'][PEER]['median'] / 1e6:.0f} and "
        f"{costs['peak'][OURS]['median'] / 1e6:.0f} MB"
    )


PARTS: Final[dict[str, Callable[[Bench], dict[str, Any]]]] = {
    part.__name__: part for part in (applydiff, series, diff, again, limit, records, questions, start, memory)
}


def versions() -> dict[str, str]:
    """The programs that are compared, as their packages and libraries tell."""
    found = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", PEER], capture_output=True, text=True, check=False
    )
    sqlite = run([sys.executable, "-c", "import peewee; print(peewee.sqlite3.sqlite_version)"])[1].strip()
    return {
        PEER: found.stdout or "unknown",
        OURS: re.sub(r"^Version: ", "", run(StoreOf(OURS, Path("/nonexistent")).command("version"))[1].strip()),
        "SQLite": sqlite,
    }
