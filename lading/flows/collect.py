"""Collection: rows first, then bytes. The dry run computes the plan that the run carries out.

Garbage is condemned, the epoch is advanced, and what was condemned goes once its epoch has ended: in the
same run when nothing else is going on, else in a later one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

from lading.catalog import content as catalog_content
from lading.catalog import packs as catalog_packs
from lading.catalog import reach
from lading.catalog.engine import Connection
from lading.catalog.packs import SMALL_PACK, PackUse
from lading.errors import Busy, Full, LadingError
from lading.flows import areas, journaling, leftovers, reserve
from lading.flows.context import Context
from lading.flows.ingest import shadowed
from lading.flows.tidying import tidying
from lading.objects.durable import Staging
from lading.objects.pack import pack_size_of
from lading.objects.recipe import read_references
from lading.objects.repack import Unmovable, repack
from lading.values import Location

#: Small packs are merged once there are this many of them: each holds a data item or two.
SMALL_PACKS_MIN: Final = 32


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """Packs whose live objects go into one new pack."""

    packs: tuple[PackUse, ...]
    objects: tuple[Location, ...]
    size: int  #: bytes of the new pack


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection does, or did. Sizes are bytes of files."""

    contents: int  #: contents that go
    objects: int  #: objects that go
    packs_removed: int
    packs_rewritten: int
    pack_bytes: int  #: of packs removed, minus those of packs written
    cache_bytes: int
    debris_bytes: int  #: unfinished files and write areas that nothing names; not part of ``freed_bytes``
    deferred_bytes: int = 0  #: stored bytes that running operations still hold
    warnings: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """Bytes of pack and cache files removed, minus those written."""
        return self.pack_bytes + self.cache_bytes

    def lines(self) -> list[str]:
        """For people, a line a fact."""
        lines = [
            f"contents: {self.contents}",
            f"objects: {self.objects}",
            f"packs: {self.packs_removed} removed, {self.packs_rewritten} rewritten, {self.pack_bytes} bytes",
            f"cache: {self.cache_bytes} bytes",
            f"debris: {self.debris_bytes} bytes",
        ]
        if self.deferred_bytes:
            lines.append(f"deferred: {self.deferred_bytes} bytes, until running operations have ended")
        return [*lines, f"freed: {self.freed_bytes} bytes"]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "contents": self.contents, "objects": self.objects, "packs_removed": self.packs_removed,
            "packs_rewritten": self.packs_rewritten, "pack_bytes": self.pack_bytes, "cache_bytes": self.cache_bytes,
            "debris_bytes": self.debris_bytes, "deferred_bytes": self.deferred_bytes, "freed_bytes": self.freed_bytes,
        }  # fmt: skip


@dataclass
class GcPlan:
    """What a collection would do now. Carrying it out computes it anew: the world may have moved on."""

    report: GcReport
    _context: Context = field(repr=False)
    _used: bool = field(default=False, repr=False)

    @property
    def freed_bytes(self) -> int:
        """See ``GcReport.freed_bytes``."""
        return self.report.freed_bytes

    @property
    def deferred_bytes(self) -> int:
        """See ``GcReport.deferred_bytes``."""
        return self.report.deferred_bytes

    def lines(self) -> list[str]:
        """For people."""
        return self.report.lines()

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return self.report.as_dict()

    def execute(self) -> GcReport:
        """Carry the plan out, once.

        Raises:
            RuntimeError: it was carried out already.
        """
        if self._used:
            raise RuntimeError("a plan is carried out once")
        self._used = True
        return gc(self._context, dry_run=False)


def plan(context: Context) -> GcPlan:
    """Compute what a collection would do now, changing nothing."""
    return GcPlan(gc(context, dry_run=True), context)


def gc(context: Context, *, dry_run: bool) -> GcReport:
    """Collect garbage, or say what a collection would do, in the store and in a split-off image store."""
    parts = context.stores[: context.writable_stores]
    if dry_run:
        return _sum([_planned(part) for part in parts])
    context.need_writable()
    reports = []
    for part in parts:
        reports.append(part.with_room(partial(_collect, part)))
        with tidying(str(part.layout.reserve)):
            reserve.put_back(part.layout)
    return _sum(reports)


def _sum(reports: Sequence[GcReport]) -> GcReport:
    if len(reports) == 1:
        return reports[0]
    names = [item.name for item in fields(GcReport) if item.name != "warnings"]
    sums = {name: sum(getattr(report, name) for report in reports) for name in names}
    return GcReport(**sums, warnings=tuple(words for report in reports for words in report.warnings))


def _collect(context: Context) -> GcReport:
    warnings: list[str] = []
    context.catalog.make_durable("gc")  # whatever is removed below is removed because of what was committed before
    debris_bytes = leftovers.clear_staging(context, dry_run=False)
    area_bytes, area_warnings = areas.collect_debris(context, dry_run=False)
    area_bytes += leftovers.clear_directories(context, dry_run=False)
    warnings += area_warnings
    with suppress(Full):  # a long journal is no harm; the next collection has more room
        journaling.snapshot_if_needed(context)
    _read_recipes(context)
    ended = leftovers.next_epoch(context)
    contents = reach.condemn_contents(context.catalog, context.epochs.current, ended)
    ended = leftovers.next_epoch(context)
    gone_contents = reach.delete_contents(context.catalog, ended)
    reach.condemn_objects(context.catalog, context.epochs.current, ended)
    ended = leftovers.next_epoch(context)
    objects = reach.delete_objects(context.catalog, ended)
    with context.catalog.read() as conn:
        uses = catalog_packs.candidates(conn)
        deferred = int(
            conn.execute("SELECT coalesce(sum(stored_size), 0) FROM object WHERE condemned IS NOT NULL").fetchone()[0]
        )
        empty, rewrites = _decide(context, conn, uses, frozenset())
    context.catalog.make_durable("gc")  # records that changed meanwhile, too, have let go of what goes now
    removed = _remove_packs(context, empty)
    rewritten, saved = _rewrite(context, rewrites, warnings)
    orphans = leftovers.remove_unrecorded(context, ended)
    try:
        evicted = leftovers.drop_views(context)
    except Busy as error:  # somebody builds or mounts all the while: the next collection tries again
        evicted = 0
        warnings.append(f"cache left as it is: {error}")
    return GcReport(
        max(contents, gone_contents), objects, len(empty), rewritten, removed + saved, evicted,
        debris_bytes + area_bytes + orphans, deferred, tuple(warnings),
    )  # fmt: skip


def _read_recipes(context: Context) -> None:
    """Note what only recipes name, in a catalog of a version that did not: once, before anything is condemned."""
    with context.catalog.read() as conn:
        if not catalog_content.unread_recipes(conn):
            return
    with context.epochs.shared():
        with context.catalog.read() as conn:
            unread = catalog_content.unread_recipes(conn)
        for content_id, key in unread:
            with context.catalog.read() as conn:
                recipe = catalog_content.recipe_of(conn, key)
                entries = catalog_content.entries(conn, key)
            if recipe is None:
                continue
            named = {part.digest for part in read_references(next(context.reader.contents([recipe])))}
            catalog_content.note_shadowed(context.catalog, content_id, shadowed(named, entries))
    catalog_content.recipes_read(context.catalog)


def _planned(context: Context) -> GcReport:
    """The same computation, on a snapshot, with what would be deleted taken for deleted."""
    ended = context.epochs.would_retire()
    with context.catalog.read() as conn:
        doomed = reach.doomed(conn, ended)
        stored = _stored(conn, doomed.objects)
        if ended < context.epochs.current():  # somebody holds an epoch: nothing can be deleted now
            empty: list[PackUse] = []
            rewrites: list[_Rewrite] = []
        else:
            uses = catalog_packs.candidates(conn, ended, doomed.objects)
            empty, rewrites = _decide(context, conn, uses, doomed.objects)
            stored = 0
    saved = sum(sum(use.size for use in item.packs) - item.size for item in rewrites)
    debris_bytes = leftovers.clear_staging(context, dry_run=True) + areas.collect_debris(context, dry_run=True)[0]
    debris_bytes += leftovers.clear_directories(context, dry_run=True)
    return GcReport(
        doomed.contents, len(doomed.objects), len(empty), sum(len(item.packs) for item in rewrites),
        sum(use.size for use in empty) + saved, leftovers.droppable_views(context, doomed.keys),
        debris_bytes + leftovers.unrecorded_size(context, ended), stored,
    )  # fmt: skip


def _stored(conn: Connection, objects: Iterable[int]) -> int:
    total = 0
    for batch in catalog_content.batches(sorted(objects), catalog_content.LOOKUP_ROWS):
        marks = ",".join("?" * len(batch))
        total += conn.execute(
            f"SELECT coalesce(sum(stored_size), 0) FROM object WHERE id IN ({marks})", batch
        ).fetchone()[0]
    return total


def _decide(
    context: Context, conn: Connection, uses: Sequence[PackUse], dead: frozenset[int] | set[int]
) -> tuple[list[PackUse], list[_Rewrite]]:
    """Choose the packs to remove and those to rewrite."""
    empty = [use for use in uses if not use.objects]
    share = context.settings.repack_share
    worn = [use for use in uses if use.objects and use.payload - use.live > share * use.payload]
    chosen = {use.id for use in worn}
    # A pack of no size is the list of objects that are in no pack.
    small = [use for use in uses if use.objects and use.id not in chosen and 0 < use.size < SMALL_PACK]
    groups = [[use] for use in worn]
    if len(small) >= SMALL_PACKS_MIN:
        groups += _grouped(small, context.settings.pack_size)
    rewrites = []
    for group in groups:
        objects = [item for use in group for item in catalog_packs.live_objects(conn, use.id, use.name, dead)]
        rewrites.append(_Rewrite(tuple(group), tuple(objects), pack_size_of(objects)))
    return empty, rewrites


def _grouped(small: Sequence[PackUse], bound: int) -> list[list[PackUse]]:
    """Fill new packs with small ones, in order."""
    groups: list[list[PackUse]] = [[]]
    size = 0
    for use in small:
        if groups[-1] and size + use.live > bound:
            groups.append([])
            size = 0
        groups[-1].append(use)
        size += use.live
    return [group for group in groups if len(group) > 1]


def _remove_packs(context: Context, packs: Sequence[PackUse]) -> int:
    """Forget empty packs, then delete their files.

    Returns:
        Bytes of the files.
    """
    sizes = {use.name: use.size for use in packs}
    gone = catalog_packs.forget(context.catalog, list(sizes)) if sizes else []
    for name in gone:
        context.backend.delete(name)
    return sum(sizes[name] for name in gone)


def _rewrite(context: Context, rewrites: Sequence[_Rewrite], warnings: list[str]) -> tuple[int, int]:
    """Rewrite packs one group at a time; a damaged one stays as it is, until its objects are repaired or gone.

    Returns:
        Packs replaced, and bytes saved.
    """
    count = saved = 0
    for item in rewrites:
        names = [use.name for use in item.packs]
        with context.epochs.shared() as epoch:
            staging = Staging(context.layout.staging)
            try:
                made = repack(context.backend, staging, item.objects)
            except Unmovable as error:
                # Noted once, so that later collections leave the pack alone and `check` names what it holds.
                if catalog_packs.note_damage(context.catalog, error.location, time.time_ns()):
                    warnings.append(f"packs left as they are: {error}")
                continue
            except LadingError as error:
                warnings.append(f"packs left as they are: {error}")
                continue
            finally:
                staging.close()
            if not catalog_packs.relocate(context.catalog, made, names, epoch):
                context.backend.delete(made.name)  # another collection was first
                continue
        for name in names:
            context.backend.delete(name)
        count += len(names)
        saved += sum(use.size for use in item.packs) - made.size
    return count, saved
