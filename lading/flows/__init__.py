"""The flows: one module each, loaded when it is first needed, so that a command pays only for its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lading.flows import (
        accounting as accounting,
    )
    from lading.flows import (
        bigdata as bigdata,
    )
    from lading.flows import (
        caching as caching,
    )
    from lading.flows import (
        checking as checking,
    )
    from lading.flows import (
        checkouts as checkouts,
    )
    from lading.flows import (
        collect as collect,
    )
    from lading.flows import (
        containers as containers,
    )
    from lading.flows import (
        copying as copying,
    )
    from lading.flows import (
        directories as directories,
    )
    from lading.flows import (
        driver as driver,
    )
    from lading.flows import (
        export as export,
    )
    from lading.flows import (
        images as images,
    )
    from lading.flows import (
        importing as importing,
    )
    from lading.flows import (
        journaling as journaling,
    )
    from lading.flows import (
        layers as layers,
    )
    from lading.flows import (
        layerstore as layerstore,
    )
    from lading.flows import (
        mounting as mounting,
    )
    from lading.flows import (
        opening as opening,
    )
    from lading.flows import (
        owners as owners,
    )
    from lading.flows import (
        rebuild as rebuild,
    )
    from lading.flows import (
        records as records,
    )
    from lading.flows import (
        refill as refill,
    )
    from lading.flows import (
        repair as repair,
    )
    from lading.flows import (
        sealing as sealing,
    )
    from lading.flows import (
        sharing as sharing,
    )
    from lading.flows import (
        snapshots as snapshots,
    )
    from lading.flows import (
        staging as staging,
    )
    from lading.flows import (
        upkeep as upkeep,
    )


def __getattr__(name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
