"""The figures as a page and a plot: docs/benchmarks.md, docs/benchmarks.svg."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.measure import OURS, PEER

Figures = dict[str, Any]


def write(kept: Figures, folder: Path) -> None:
    """Write the page from all figures there are, and draw the plot."""
    lines = [
        "# Benchmarks\n",
        "Made by `make bench`; the figures themselves are in [benchmarks.json](benchmarks.json). Both commands run in turn on one",
        "machine, each round on a fresh store whose removal is not timed. A figure is the median, with the smallest and largest",
        "run behind it; a ratio is the median of the rounds' ratios (ours divided by theirs). Creating files costs very different",
        "amounts from minute to minute on virtual machines, so the comparison with the peer's fastest run is shown as well.\n",
        "![Wall time and bytes at rest, beside the peer](benchmarks.svg)\n",
    ]  # fmt: skip
    for name, section in SECTIONS.items():
        if name in kept:
            entry = kept[name]
            lines += [*section(entry["figures"], kept), _made(entry), ""]
    (folder / "benchmarks.md").write_text("\n".join(lines))
    _plot(kept, folder / "benchmarks.svg")


def _made(entry: Figures) -> str:
    on = entry["machine"]
    return (
        f"\n<sub>{on['date']}; {entry['rounds']} rounds; {on['cores']} cores ({on['cpu']}), Linux {on['kernel']}, "
        f"Python {on['python']}, SQLite {on['SQLite']}; {PEER} {on[PEER]}</sub>"
    )


def _seconds(values: Figures) -> str:
    return f"{values['median']:.2f} s ({values['min']:.2f}–{values['max']:.2f})"


def _megabytes(values: Figures) -> str:
    return f"{values['median'] / 1e6:.0f} MB"


def _rows(costs: Figures) -> Iterator[str]:
    yield f"| | {PEER} | {OURS} |"
    yield "| --- | --- | --- |"
    for field, title, form in (
        ("wall_s", "wall", _seconds),
        ("cpu_s", "processor", _seconds),
        ("peak", "peak memory, largest process", _megabytes),
    ):
        yield f"| {title} | {form(costs[field][PEER])} | {form(costs[field][OURS])} |"


def _ratios(costs: Figures) -> Iterator[str]:
    wall, cpu = costs["wall_s"], costs["cpu_s"]
    yield f"- wall, median of the paired ratios: **{1 / wall['ratio']:.3f}**"
    yield f"- our median wall time to its fastest: **{wall[OURS]['median'] / wall[PEER]['min']:.2f}**"
    yield f"- our median processor time to its smallest: **{cpu[OURS]['median'] / cpu[PEER]['min']:.2f}**"


def _applydiff(figures: Figures, kept: Figures) -> list[str]:
    lines = ["## Taking a layer in: `applydiff`"]
    for layer, costs in figures.items():
        lines += [f"\n### {layer} ({costs['bytes']:,} bytes)\n", *_rows(costs), "", *_ratios(costs)]
    if "limit" in kept:
        limit = kept["limit"]["figures"]
        lines += [
            "\nThe limit on this machine, for `node`: hashing and compressing its",
            f"{limit['objects']:,} distinct contents ({limit['bytes']:,} bytes) on all cores at zstd level {limit['level']} and nothing",
            f"else takes {_seconds(limit['objects_s'])}; with the sha256 of the stream, which every ingest owes, {_seconds(limit['stream_s'])}.",
        ]
    return lines


def _diff(figures: Figures, kept: Figures) -> list[str]:
    del kept
    lines = [
        "## Giving a layer back: `diff -u` to a file\n",
        "Every output was compared with its input: identical, all of them.\n",
    ]
    lines += [f"| layer | {PEER} | {OURS} | ratio |", "| --- | --- | --- | --- |"]
    for layer, costs in figures.items():
        wall = costs["wall_s"]
        lines.append(f"| {layer} | {_seconds(wall[PEER])} | {_seconds(wall[OURS])} | {1 / wall['ratio']:.2f} |")
    return lines


def _series(figures: Figures, kept: Figures) -> list[str]:
    del kept
    rest = figures["at_rest"]
    return [
        f"## Eight layers in one store ({figures['bytes']:,} bytes of tar)\n", *_rows(figures),
        f"| at rest, sizes of all files | {rest[PEER]['sizes']:,} | {rest[OURS]['sizes']:,} |",
        f"| at rest, blocks | {rest[PEER]['blocks']:,} | {rest[OURS]['blocks']:,} |", "",
        "Ours includes the catalog, the journal and a reserve of 8 MiB that a full disk may have.",
    ]  # fmt: skip


def _again(figures: Figures, kept: Figures) -> list[str]:
    del kept
    added = figures["added"]
    return [
        "## The same layer again, under another parent\n", *_rows(figures),
        f"| bytes added | {added[PEER]:,} | {added[OURS]:,} |",
    ]  # fmt: skip


def _records(figures: Figures, kept: Figures) -> list[str]:
    del kept
    ours, peer, number = figures[OURS], figures[PEER], figures["number"]
    lines = [
        f"## {number:,} layers and {number:,} images\n",
        "Ours in one process through the library, each commit synced; the peer has a command for each.\n",
    ]
    lines += [f"| | {PEER} | {OURS} |", "| --- | --- | --- |"]
    for key, title in (("layers_s", "a layer"), ("images_s", "an image")):
        lines.append(f"| {title} | {peer[key] / number * 1e3:.2f} ms | {ours[key]['median'] / number * 1e3:.2f} ms |")
    return lines


def _questions(figures: Figures, kept: Figures) -> list[str]:
    del kept
    lines = [
        "## Questions to stores of several sizes\n",
        "By the library, in one process; `images` by the command as well.\n",
    ]
    lines += [
        "| layers and images | `exists` | `exists` of nothing | image by name | list of images, a row | command `images`, ours | theirs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, entry in figures.items():
        library, wall = entry["library"], entry["commands"]["images"]["wall_s"]
        get = f"{library['get_us']['median']:.0f} µs" if "get_us" in library else "–"
        row = f"{library['list_s']['median'] / int(size) * 1e6:.1f} µs" if int(size) else "–"
        lines.append(
            f"| {int(size):,} | {library['exists_us']['median']:.0f} µs | {library['absent_us']['median']:.0f} µs | {get} | {row} | {wall[OURS]['median']:.2f} s | {wall[PEER]['median']:.2f} s |"
        )
    return lines


def _start(figures: Figures, kept: Figures) -> list[str]:
    del kept
    lines = ["## Start-up\n", f"The interpreter alone: {figures['interpreter']['wall_s']['median'] * 1e3:.0f} ms.\n"]
    who = list(figures["version"])
    lines += ["| command | " + " | ".join(who) + " |", "| --- |" + " --- |" * len(who)]
    for command in ("version", "exists", "layers"):
        lines.append(
            f"| `{command}` | "
            + " | ".join(f"{figures[command][each]['wall_s']['median'] * 1e3:.0f} ms" for each in who)
            + " |"
        )
    return lines


def _memory(figures: Figures, kept: Figures) -> list[str]:
    del kept
    lines = [
        f"## A layer of one file of {figures['bytes']:,} bytes, through a pipe\n",
        f"| | {PEER} | {OURS} |",
        "| --- | --- | --- |",
    ]
    peer, ours = figures[PEER], figures[OURS]
    return [
        *lines,
        f"| wall | {peer['wall_s']:.1f} s | {ours['wall_s']:.1f} s |",
        f"| processor | {peer['cpu_s']:.1f} s | {ours['cpu_s']:.1f} s |",
        f"| peak memory, largest process | {peer['peak'] / 1e6:.0f} MB | {ours['peak'] / 1e6:.0f} MB |",
        f"| at rest | {peer['at_rest']:,} | {ours['at_rest']:,} |",
    ]


def _first_file(figures: Figures, _: Figures) -> list[str]:
    low = figures[OURS]["median"] / figures[PEER]["min"]
    return [
        "## From a tar to a file that can be read\n",
        "`create-layer`, `applydiff` of node.tar, `mount`, reading one file; commands.\n",
        f"| | {PEER} | {OURS} |",
        "| --- | --- | --- |",
        f"| wall | {_seconds(figures[PEER])} | {_seconds(figures[OURS])} |",
        f"\nMedian of the paired ratios {1 / figures['ratio']:.2f}; our median is {low:.2f} of the peer's fastest run.",
    ]


def _cold_start(figures: Figures, _: Figures) -> list[str]:
    ours, peer = figures[OURS], figures[PEER]
    return [
        "## Cold start: base and node stored, nothing in the cache\n",
        f"From `mount` until `node --version` was printed by `chroot`: {_seconds(ours)}. The peer's two `applydiff`s, which are its",
        f"unpacking, take {_seconds(peer)}: {ours['median'] / peer['median']:.2f} of their median, "
        f"{ours['median'] / peer['min']:.2f} of the fastest.",
    ]  # fmt: skip


def _views(figures: Figures, _: Figures) -> list[str]:
    image, warm, farm, deep, command = (figures[key] for key in ("image", "warm", "farm", "deep", "command"))
    bound = 1.06 * image["content"] + 64 * image["entries"]
    rate = image["content"] / image["seconds"] / 1e6
    return [
        "## Views\n",
        "| what | figure |",
        "| --- | --- |",
        f"| mount of a cached image, in the library | {warm['mount'] * 1e3:.1f} ms |",
        f"| the same, command | {command['mount']['median'] * 1e3:.0f} ms; `exists`, which is start-up, {command['start']['median'] * 1e3:.0f} ms |",
        f"| container with 65,536 mapped ids made and mounted, in the library | {warm['mapped'] * 1e3:.1f} ms, {warm['written']} bytes written |",
        f"| EROFS image of node, entries read from the catalog | {image['seconds']:.2f} s, {rate:.0f} MB/s of content |",
        f"| its size | {image['size']:,} bytes of {image['content']:,} content in {image['entries']:,} entries; {image['size'] / bound:.2f} of 1.06 × content + 64 an entry |",
        f"| farm of pynode, node and py in the pool | {farm['farm']:.2f} s; `tar -x` {farm['tar']:.2f} s |",
        f"| {deep['files']:,} `stat`s in {deep['layers']} layers | stacked {deep['stacked']['stat'] * 1e3:.0f} ms, flattened {deep['flattened']['stat'] * 1e3:.0f} ms, as configured by default {deep['default']['stat'] * 1e3:.0f} ms |",
        f"| mount of these, cached | stacked {deep['stacked']['mount'] * 1e3:.0f} ms, flattened {deep['flattened']['mount'] * 1e3:.0f} ms |",
    ]  # fmt: skip


def _durability(figures: Figures, _: Figures) -> list[str]:
    lines = [
        "## What durability costs\n",
        '`sync = "full"`, the default, beside `sync = "relaxed"`, in turn, each on a new store. Records are made by the library in one',
        "process, a commit each. Packs are synced under both settings: only commits that add are not.\n",
        "| | full | relaxed | relaxed to full, paired |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    count = figures["records"]
    rows = (
        ("applydiff_s", f"`applydiff` of {figures['layer']} ({figures['bytes']:,} bytes)", 1, "s"),
        ("layers_s", "a layer's record", 1e3 / count, "ms"),
        ("images_s", "an image's record", 1e3 / count, "ms"),
    )
    for what, title, scale, unit in rows:
        found = figures[what]
        cells = [
            f"{found[mode]['median'] * scale:.2f} {unit} ({found[mode]['min'] * scale:.2f}–{found[mode]['max'] * scale:.2f})"
            for mode in ("full", "relaxed")
        ]
        ratio = found["ratio"]
        lines.append(
            f"| {title} | {cells[0]} | {cells[1]} | {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) |"
        )
    return lines


def _collection(figures: Figures, _: Figures) -> list[str]:
    rows: tuple[tuple[str, Callable[[Figures], str]], ...] = (
        ("images", lambda each: f"{each['images']:,}"),
        ("objects", lambda each: f"{each['objects']:,}"),
        ("entries", lambda each: f"{each['entries']:,}"),
        ("dry run, in the library", lambda each: _milliseconds(each["plan_s"])),
        ("`gc`, in the library", lambda each: _milliseconds(each["gc_s"])),
        ("`gc` with nothing to do", lambda each: _milliseconds(each["nothing_s"])),
        ("`gc`, command", lambda each: _milliseconds(each["command_s"])),
        ("`version`, which is start-up", lambda each: _milliseconds(each["version_s"])),
        ("the catalog's part of `check`, which recounts everything", lambda each: f"{each['check']['catalog']:.2f} s"),
    )
    sizes = list(figures.values())
    return [
        "## Collecting one deleted image with its five layers\n",
        "The garbage is the same, the stores are not. Each run deletes another image; ours alone, since the peer has no collection.\n",
        "| layers | " + " | ".join(f"{each['layers']:,}" for each in sizes) + " |",
        "| --- |" + " --- |" * len(sizes),
        *(f"| {title} | " + " | ".join(form(each) for each in sizes) + " |" for title, form in rows),
    ]


def _milliseconds(values: Figures) -> str:
    return f"{values['median'] * 1e3:.0f} ms ({values['min'] * 1e3:.0f}–{values['max'] * 1e3:.0f})"


def _check(figures: Figures, _: Figures) -> list[str]:
    rates = [figures["bytes"] / figures["content_s"][key] / 1e6 for key in ("median", "max", "min")]
    return [
        "## Checks of a store of all eight layers\n",
        f"{figures['objects']:,} objects of {figures['bytes']:,} bytes in {figures['packs']} packs; commands, start-up included.\n",
        "| what | figure |",
        "| --- | --- |",
        f"| `check`: catalog, packs with their indexes, records | {_seconds(figures['plain_s'])}, peak memory {figures['plain_peak'] / 1e6:.0f} MB |",
        f"| `check --content`: every byte as well | {_seconds(figures['content_s'])}, peak memory {figures['content_peak'] / 1e6:.0f} MB |",
        f"| the same, of file content | {rates[0]:.0f} MB/s ({rates[1]:.0f}–{rates[2]:.0f}) |",
        f"| `check --heal` of a missing pack of {figures['lost']:,} bytes, eight tars given | {figures['heal_s']:.1f} s |",
        "\nReading every byte is bound by the interpreter: two threads decode and hash small objects hardly faster than one, two",
        "processes did the same bytes at 470 to 530 MB/s in a trial.",
    ]  # fmt: skip


SECTIONS = {
    "applydiff": _applydiff, "diff": _diff, "series": _series, "again": _again, "memory": _memory, "records": _records,
    "durability": _durability, "collection": _collection, "check": _check,
    "questions": _questions, "start": _start, "first_file": _first_file, "cold_start": _cold_start, "views": _views,
}  # fmt: skip


def _plot(kept: Figures, path: Path) -> None:
    """Bars beside bars: a panel for each comparison."""
    panels: list[tuple[str, str, Figures]] = []
    if "node" in kept.get("applydiff", {}).get("figures", {}):
        panels.append(("applydiff, node", "seconds", kept["applydiff"]["figures"]["node"]["wall_s"]))
    if "first_file" in kept:
        panels.append(("tar to first file, node", "seconds", kept["first_file"]["figures"]))
    if "node" in kept.get("diff", {}).get("figures", {}):
        panels.append(("diff -u, node", "seconds", kept["diff"]["figures"]["node"]["wall_s"]))
    if "series" in kept:
        rest = kept["series"]["figures"]["at_rest"]
        sizes = {tool: dict.fromkeys(("median", "min", "max"), rest[tool]["sizes"] / 1e6) for tool in (PEER, OURS)}
        panels.append(("eight layers at rest", "MB", sizes))
    if not panels:
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lading"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
    for axis, (title, unit, values) in zip(axes[0], panels, strict=True):
        heights = [values[tool]["median"] for tool in (PEER, OURS)]
        low = [values[tool]["median"] - values[tool]["min"] for tool in (PEER, OURS)]
        high = [values[tool]["max"] - values[tool]["median"] for tool in (PEER, OURS)]
        bars = axis.bar(
            [PEER, OURS], heights, yerr=[low, high], capsize=4, color=["#9a9a9a", "#1f6f8b"], ecolor="#444444"
        )
        axis.bar_label(
            bars, labels=[f"{height:,.2f}" if unit == "seconds" else f"{height:,.0f}" for height in heights], padding=3
        )
        axis.margins(y=0.15)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
