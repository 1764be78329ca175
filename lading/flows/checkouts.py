"""Checkouts: a layer's whole tree written into a folder of the caller's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lading.flows import mounting, stores, views
from lading.flows.context import Context, Progress
from lading.materialize.copy import copy_tree


@dataclass(frozen=True, slots=True)
class CheckoutReport:
    """What a checkout wrote."""

    path: Path
    files: int
    bytes: int
    warnings: tuple[str, ...]


def checkout(context: Context, ref: str, destination: Path, *, progress: Progress | None) -> CheckoutReport:
    """Write a layer's whole tree into a new folder."""
    layer = mounting.layer_of_any(context, ref)
    with stores.epochs(context):
        live = views.LiveFiles(context.objects)
        tree = views.with_root(layer, views.stack(context, layer, live).tree())
        report = copy_tree(destination, tree, live, as_root=os.geteuid() == 0, progress=progress)
    return CheckoutReport(destination, report.files, report.bytes, tuple(report.warnings))
