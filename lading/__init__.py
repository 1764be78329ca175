"""Lading: layers, images and containers in a content-addressed store with a relational catalog.

All of it is loaded on first use, so that ``import lading`` costs nothing, and the command has its signals in hand
before anything that takes time.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the one of ``typing``, without loading that
if TYPE_CHECKING:
    from typing import Any

    from lading.config import Settings
    from lading.errors import LadingError
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
    if name == "LadingError":
        from lading.errors import LadingError

        return LadingError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
