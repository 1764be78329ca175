"""The part of the benchmark about checks: of a store of all eight layers, without and with reading every byte."""

from __future__ import annotations

import csv
import io
from typing import Any

from bench.measure import OURS, run, settle, spread
from bench.parts import LAYERS, Bench, filled


def check(bench: Bench) -> dict[str, Any]:
    """``check``, then ``check --content``, each a command of its own; then healing a missing pack from tars."""
    store, _, _ = filled(bench, OURS)
    settle()
    plain = [store.do("check", "--max", "1000h") for _ in range(bench.rounds)]
    content = [store.do("check", "--max", "1000h", "--content") for _ in range(bench.rounds)]
    _, text = run(store.command("sql", "--csv", "SELECT objects, bytes FROM v_scrub"))
    objects, size = (int(value) for value in list(csv.reader(io.StringIO(text)))[1])
    packs = sorted((store.graph / "objects/packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    lost = packs[-1].stat().st_size
    packs[-1].unlink()
    given = [word for layer in LAYERS for word in ("--from", str(bench.tar(layer)))]
    heal = store.do("check", "--max", "1000h", "--heal", *given)
    store.do("check", "--max", "1000h", "--content")  # fails unless everything is sound again
    store.remove()
    result: dict[str, Any] = {
        "objects": objects, "bytes": size, "packs": len(packs), "lost": lost, "heal_s": heal.wall_s,
        "plain_s": spread([cost.wall_s for cost in plain]), "content_s": spread([cost.wall_s for cost in content]),
        "plain_peak": max(cost.peak for cost in plain), "content_peak": max(cost.peak for cost in content),
    }  # fmt: skip
    rate = size / result["content_s"]["median"] / 1e6
    bench.tell(
        f"check {result['plain_s']['median']:.2f} s, --content {result['content_s']['median']:.2f} s, {rate:.0f} MB/s; "
        f"a pack of {lost} bytes healed in {heal.wall_s:.1f} s"
    )
    return result
