"""Lading: layers, images and containers in a content-addressed store with a relational catalog.

``Store`` is loaded on first use, so that ``import lading`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lading.errors import LadingError

if TYPE_CHECKING:
    from lading.config import Settings
    from lading.store import Store

__all__ = ["LadingError", "Settings", "Store", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Store":
        from lading.store import Store

        return Store
    if name == "Settings":
        from lading.config import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
