"""Measure beside the reference command; keep the figures in docs/benchmarks.json; write the page and the plot.

``python -m bench.run [--only applydiff,diff] [--rounds 5] [--layers node,base]``. The corpus is ``$LADING_CORPUS`` or
``build/corpus``. Parts that are not measured keep the figures of an earlier run, with its date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import checking, durability, gcparts, page, parts, viewparts

#: Everything that can be measured, in order.
PARTS = {
    **parts.PARTS,
    **{part.__name__: part for part in (viewparts.first_file, viewparts.cold_start, viewparts.views)},
    "durability": durability.durability,
    "collection": gcparts.collection,
    "check": checking.check,
}
ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs/benchmarks.json"


def machine() -> dict[str, str]:
    """What it was measured on."""
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ": ?"
    )
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": str(os.cpu_count()), "cpu": cpu.partition(":")[2].strip(),
        "kernel": platform.release(), "python": platform.python_version(), **parts.versions(),
    }  # fmt: skip


def main() -> int:
    """Measure, keep, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"parts, with commas: {', '.join(PARTS)}")
    parser.add_argument(
        "--layers", help="layers that applydiff and diff measure, with commas; all of them if not given"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (5)")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(PARTS)
    unknown = set(wanted) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # As for any installed program: a start does not compile anything.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    corpus = Path(os.environ.get("LADING_CORPUS", ROOT / "build/corpus"))
    binary = ROOT / "dist/lading"
    kept: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=corpus) as folder:
        layers = tuple(arguments.layers.split(",")) if arguments.layers else tuple(parts.LAYERS)
        bench = parts.Bench(corpus, Path(folder), arguments.rounds, binary if binary.exists() else None, layers)
        for name in wanted:
            print(name, flush=True)
            kept[name] = {"machine": machine(), "rounds": arguments.rounds, "figures": PARTS[name](bench)}
            FIGURES.write_text(json.dumps(kept, indent=1) + "\n")
    page.write(kept, ROOT / "docs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
