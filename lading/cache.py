"""``store.cache``: the verbs of the views made of layers, each a line into a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lading import flows

if TYPE_CHECKING:
    from lading.flows.caching import Prefetched, View
    from lading.flows.context import Context
    from lading.materialize.cache import Eviction


class Cache:
    """A store's views. Each can be made again, so that only a mount is a reason to keep one."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def all(self) -> list[View]:
        """List the views, the most recently used first."""
        return flows.caching.views(self._context)

    def sizes(self) -> dict[str, int]:
        """Tell the cache's bytes by class: images, trees, the pool of files, other."""
        return flows.caching.sizes(self._context)

    def evict(self, *, budget: int | str = 0, dry_run: bool = False) -> Eviction:
        """Remove the least recently used views until the cache has at most ``budget`` bytes (or a text like
        ``500M``); what is mounted stays.

        Raises:
            InvalidInput: a text that is no size.
            Busy: views were being built or mounted for longer than the wait allows.
        """
        return flows.caching.evict(self._context, budget=budget, dry_run=dry_run)

    def prefetch(self, ref: str, *, flatten: bool = False) -> Prefetched:
        """Make what a mount of an image, layer or container needs, and sync it."""
        return flows.caching.prefetch(self._context, ref, flatten=flatten)

    def check(self) -> tuple[int, list[str]]:
        """Compare images with what they should be; damaged ones are removed.

        Images of one content are compared byte for byte, others by size and metadata.

        Returns:
            How many were looked at, and names of the damaged.
        """
        return flows.caching.check(self._context)
