"""What nothing names any more outside of the packs' accounts: leftovers of killed commands, views of what is gone.

Each is found by comparing names, all at once, and only what differs is looked at. A name costs a microsecond
or two; none of these folders has one for each layer of a store that is not in use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lading.catalog import reach
from lading.flows import areas, directories, lowers
from lading.flows.context import Context
from lading.materialize import cache
from lading.objects.durable import debris


def next_epoch(context: Context) -> int:
    """Open the next epoch, under the writer lock: while garbage is condemned there the epoch stays what it is.

    Returns:
        The last epoch that nobody holds any more.
    """
    with context.catalog.write_rows("gc: next epoch", durable=False):
        context.epochs.advance()
    return context.epochs.retired()


def clear_staging(context: Context, *, dry_run: bool) -> int:
    """Remove what killed writers left.

    Returns:
        Bytes of the files.
    """
    from lading.flows.accounting import files_below
    from lading.materialize.beneath import remove_tree

    total = 0
    for folder, _ in debris(context.layout.staging):
        total += files_below(folder)
        if not dry_run:
            remove_tree(folder)
    return total


def clear_directories(context: Context, *, dry_run: bool) -> int:
    """Remove directories of images and containers that are gone.

    Returns:
        Bytes of the files.
    """
    from lading.flows.accounting import files_below

    total = 0
    for folder in directories.orphans(context):
        total += files_below(folder)
        if not dry_run:
            areas.discard(context, folder)
    return total


def _unrecorded(context: Context, ended: int) -> list[str]:
    """Packs that were published and never recorded: their writer was killed in between.

    A writer that is still at work holds an epoch, so none is taken for dead while any is held.
    """
    if ended < context.epochs.current() - 1:
        return []
    listed = list(context.backend)
    with context.catalog.read() as conn:
        recorded = reach.recorded_packs(conn)
    return [name for name in listed if name not in recorded]


def remove_unrecorded(context: Context, ended: int) -> int:
    """Remove packs that were never recorded.

    Args:
        context: the store.
        ended: the last ended epoch.

    Returns:
        Bytes of the files.
    """
    freed = 0
    candidates = _unrecorded(context, ended)
    if not candidates:
        return 0
    # Whoever publishes from now on holds the next epoch: only older ones can be dead.
    if next_epoch(context) < context.epochs.current() - 1:
        return 0
    with context.catalog.read() as conn:
        recorded = reach.recorded_packs(conn)
    for name in candidates:
        if name not in recorded:
            freed += context.backend.size(name) or 0
            context.backend.delete(name)
    return freed


def unrecorded_size(context: Context, ended: int) -> int:
    """Bytes of packs that were never recorded; see :func:`remove_unrecorded`."""
    return sum(context.backend.size(name) or 0 for name in _unrecorded(context, ended))


def drop_views(context: Context) -> int:
    """Drop views of contents that are gone from the cache. What is mounted stays until a later collection.

    Returns:
        Bytes of the files.

    Raises:
        Busy: views are being built, or looked for, all the while.
    """
    root = context.layout.cache
    with context.catalog.read() as conn:
        keys, unread = reach.gone_keys(conn), reach.views_unread(conn)
    freed = 0
    going = _going(context, keys)
    if going or cache.has_debris(root):
        # Asked again under the cache's lock: until then a content may be stored again, or a view mounted.
        freed = cache.evict(root, keep=lambda: _kept(context), budget=0 if going else cache.UNLIMITED).bytes
    left = {lowers.stem_of(name) for name in _stale(context, keys)}
    done = [key for key in keys if lowers.name_of(key) not in left]
    if done or (unread and not left):
        reach.views_dropped(context.catalog, done, all_known=not left)
    return freed


def droppable_views(context: Context, keys: Collection[str]) -> int:
    """Bytes that dropping the views of some contents would free; see :func:`drop_views`.

    Args:
        context: the store.
        keys: of the contents that are gone, or about to go.
    """
    root = context.layout.cache
    going = _going(context, keys)
    if not going and not cache.has_debris(root):
        return 0
    budget = 0 if going else cache.UNLIMITED
    return cache.evict(root, keep=_kept(context, keys), budget=budget, dry_run=True).bytes


def _kept(context: Context, keys: Collection[str] | None = None) -> set[str]:
    """Names of the views that stay."""
    if keys is None:
        with context.catalog.read() as conn:
            keys = reach.gone_keys(conn)
    going = _going(context, keys)
    return {name for name in cache.present(context.layout.cache) if name not in going}


def _going(context: Context, keys: Iterable[str]) -> set[str]:
    """Names of the views that go."""
    stale = _stale(context, keys)
    return stale - lowers.mounted_views(context) if stale else stale


def _stale(context: Context, keys: Iterable[str]) -> set[str]:
    """Names of the views whose contents are gone, mounted ones among them.

    Args:
        context: the store.
        keys: of the contents that went, or are about to, since the cache was last compared with all contents. It is
            compared again where that was never done, or where other stores may have lost contents without a note.
    """
    present = cache.present(context.layout.cache)
    if not present:
        return set()
    stems = {lowers.name_of(key) for key in keys}
    with context.catalog.read() as conn:
        unread = reach.views_unread(conn)
    if not unread and len(context.stores) == 1:
        return {name for name in present if lowers.stem_of(name) in stems or name.startswith(lowers.SHOWN_PREFIX)}
    live = lowers.live_stems(context, without=stems)
    return {name for name in present if lowers.stem_of(name) not in live and not name.startswith(lowers.ROOT_PREFIX)}
