"""Measure beside the reference command and write docs/benchmarks.md and its plot.

``python -m bench.run [--only apply,diff] [--rounds 5] [--keep PARTS]``; the corpus is ``$LADING_CORPUS`` or
``build/corpus``. Parts that are not measured keep the text that the page has of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.parts import PARTS, Bench, names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"
PLOT = ROOT / "docs/benchmarks.svg"


def machine() -> list[str]:
    """What it was measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    peer = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "containers-storage"], capture_output=True, text=True, check=False
    ).stdout
    return [
        "# Benchmarks\n",
        "Made by `make bench`. Both commands run in turn on the same machine; figures are medians with the smallest and",
        "largest run behind them, ratios are taken pair by pair. Creating files costs very different amounts from minute",
        "to minute on virtual machines, so ratios to the peer's fastest run are shown, too.\n",
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({model}), Linux {platform.release()},",
        f"Python {platform.python_version()}; peer: Debian's containers-storage {peer}.\n",
        "![Wall times and sizes](benchmarks.svg)\n",
    ]  # fmt: skip


def plot(bench: Bench) -> None:
    """Draw the paired figures as bars, an axis each."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    if not bench.figures:
        return
    figure, axes = pyplot.subplots(1, len(bench.figures), figsize=(4 * len(bench.figures), 3.2), squeeze=False)
    for axis, (title, values) in zip(axes[0], bench.figures.items(), strict=True):
        labels = list(values)
        heights = [sorted(values[label])[len(values[label]) // 2] for label in labels]
        low = [height - min(values[label]) for height, label in zip(heights, labels, strict=True)]
        high = [max(values[label]) - height for height, label in zip(heights, labels, strict=True)]
        bars = axis.bar(labels, heights, yerr=[low, high], capsize=4, color=["#8c8c8c", "#1f6f8b"])
        axis.bar_label(bars, fmt="%.2f" if max(heights) < 100 else "%.0f", label_type="center", color="white")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("MB" if "MB" in title else "seconds")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> int:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"parts, with commas: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    corpus = Path(os.environ.get("LADING_CORPUS", ROOT / "build/corpus"))
    old = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=\n<!-- |\Z)", PAGE.read_text(), re.DOTALL)) if PAGE.exists() else {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=corpus) as folder:
        bench = Bench(Path(folder), corpus, arguments.rounds)
        for name in names(arguments.only):
            print(f"measuring {name}", flush=True)
            old[name] = "\n".join(PARTS[name](bench))
            print(old[name], flush=True)
        bench.peer.clear()
    parts = [f"<!-- {name} -->\n{old[name].strip()}\n" for name in PARTS if name in old]
    PAGE.write_text("\n".join([*machine(), *parts]))
    if len(bench.figures) == 3 or not PLOT.exists():
        plot(bench)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
