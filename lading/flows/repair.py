"""Removing what a check found damaged: images with their layers, and containers if told to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from lading.errors import InvalidInput, LadingError, NotFound
from lading.flows import containers, driver, images, layers, mounting, stores
from lading.flows.checking import CheckReport
from lading.flows.context import Context
from lading.flows.refill import HealReport

#: Steps from a layer to its root are counted up to here; a chain of parents that runs in a circle ends.
_DEPTH_MAX: Final = 100_000


def repair(
    context: Context, report: CheckReport, *, containers_too: bool, healed: HealReport | None = None
) -> list[str]:
    """Remove what a report names. Nothing in stores that are only read is touched.

    Args:
        context: the store.
        report: of a check just made.
        containers_too: remove damaged containers. Without it, images that they use stay.
        healed: what was given back before that check.

    Returns:
        A sentence for each removal that failed; things that are already gone are none.

    Raises:
        InvalidInput: something is still damaged, and a copy that the caller named could not be read to its end: it may
            have what is missing. Or records are not what was committed, so that what seems damaged may only miss them.
            Nothing was removed.
    """
    if report.forged:
        raise InvalidInput("nothing is deleted: run `lading catalog rebuild` first, which brings records back")
    if healed is not None and healed.unused and healed.left:
        raise InvalidInput("nothing is deleted: a copy that was named could not be used")
    failures: list[str] = []
    if containers_too:
        for container_id in report.ids("container"):
            _try(
                failures,
                f"deleting container {container_id}",
                partial(containers.delete, context, container_id),
            )
    for image_id in report.ids("image"):
        _try(failures, f"deleting image {image_id}", partial(images.delete, context, image_id, dry_run=False))
    unrecorded = set(driver.unrecorded(context))
    found_layers = report.ids("layer")
    recorded = [layer_id for layer_id in found_layers if layer_id not in unrecorded]
    for layer_id in sorted(recorded, key=lambda layer_id: -_depth(context, layer_id)):
        _try(failures, f"deleting layer {layer_id}", partial(_delete_layer, context, layer_id))
    for layer_id in found_layers:
        if layer_id in unrecorded:
            _try(failures, f"deleting storage layer {layer_id}", partial(driver.remove, context, layer_id))
    return failures


def _try(failures: list[str], what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except NotFound:
        return
    except LadingError as error:
        failures.append(f"{what}: {error}")


def _delete_layer(context: Context, layer_id: str) -> None:
    if stores.find_layer(context, layer_id, writable=True) is not None:
        mounting.unmount(context, layer_id, force=True)
        layers.delete(context, layer_id)


def _depth(context: Context, layer_id: str) -> int:
    depth = 0
    layer = stores.layer_by_id(context, layer_id)
    while layer is not None and layer.parent and depth < _DEPTH_MAX:
        layer = stores.layer_by_id(context, layer.parent, layer.origin)
        depth += 1
    return depth
