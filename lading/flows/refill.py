"""Giving damaged objects their bytes back, from every copy there is; nothing is ever deleted here but what holds nothing.

Each source's gain is committed by itself, so that a repair may be killed at any instant and run again. What comes back is
stored as new objects in new packs, by its digest, and takes the damaged rows over; the damaged bytes stay where they are,
as dead ones, until a collection. Only packs that are themselves broken (cut, or with a damaged index) are put aside: what
is sound in them is copied out first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lading.catalog import content as catalog_content
from lading.catalog import damage as catalog_damage
from lading.catalog import packs, reach
from lading.errors import Busy, Full, LadingError, ReadOnly
from lading.flows import damage, journaling, sources
from lading.flows.context import Context
from lading.flows.sources import Offer, Wanted
from lading.flows.tidying import reason
from lading.values import Location, printable


@dataclass(frozen=True, slots=True)
class HealReport:
    """What was given back."""

    healed: tuple[tuple[str, int], ...]  #: name of a source, and objects that came from it
    left: int  #: objects, and contents without a recipe, that are still damaged
    warnings: tuple[str, ...] = ()  #: sources that could not be used, and what could not be done
    unused: bool = False  #: a source of the caller's could not be read to its end: it may have what is missing

    def lines(self) -> list[str]:
        """For people."""
        found = [f"healed {count} objects from {name}" for name, count in self.healed]
        return [*found, *self.warnings, *([f"{self.left} objects are still damaged"] if self.left else [])]


def check_sources(given: Sequence[str]) -> None:
    """Look whether copies are there.

    Raises:
        InvalidInput, NotFound: one is not, or is something else.
    """
    for source in given:
        sources.given(source)


def heal(context: Context, given: Sequence[str] = ()) -> HealReport:
    """Refill every object that is noted as damaged, in the store and in a split-off image store.

    Args:
        context: the store; a check has noted what is damaged.
        given: further sources: ``FILE.tar``, ``oci:DIR[:TAG]``, ``docker-archive:FILE``.

    Raises:
        InvalidInput, NotFound: a source is not there, or is something else; nothing was done.
        ReadOnly: the store cannot be written to.
        Full, OSError: nor can it be now; what was given back before is.
    """
    context.need_writable()
    offered = [(printable(source), offer) for source in given for offer in sources.given(source)]
    own = {name for name, _ in offered}
    unused = False
    healed: dict[str, int] = {}
    warnings: list[str] = []
    left = 0
    for part in context.stores[: context.writable_stores]:
        broken, unread = _broken(part)
        warnings += unread
        lost = sources.wanted(part)
        restored = _restore_listings(part, lost)
        if restored:
            healed["the catalog"] = healed.get("the catalog", 0) + restored
            lost = sources.wanted(part)
        for name, offer in _offers(context, part, lost, offered):
            try:
                count = _refill(part, lost, offer)
            except (LadingError, OSError) as error:
                if _is_own(part, error):
                    raise
                warnings.append(f"{name}: {reason(error)}")
                unused = unused or name in own
                continue
            if count:
                healed[name] = healed.get(name, 0) + count
        _renew_snapshot(part, lost, healed)
        _put_aside(part, broken, warnings)
        left += _still_needed(part)
    return HealReport(tuple(healed.items()), left, tuple(dict.fromkeys(warnings)), unused)


def _is_own(context: Context, error: LadingError | OSError) -> bool:
    """Tell whether it is the store itself that cannot be written, whatever the source."""
    if isinstance(error, OSError):
        return isinstance(error.filename, str) and Path(error.filename).is_relative_to(context.root)
    return isinstance(error, Full | ReadOnly | Busy)


def _offers(
    context: Context, part: Context, lost: Wanted, offered: Sequence[tuple[str, Offer]]
) -> Iterator[tuple[str, Offer]]:
    """Name the sources, the nearest first; no more of them than are needed."""
    own: list[tuple[str, Offer]] = [
        ("another pack", sources.from_packs), ("the catalog", sources.from_listings), ("the cache", sources.from_images),
        ("the cache", sources.from_pool), ("a write area", sources.from_areas),
    ]  # fmt: skip
    own += [
        (f"store {printable(str(other.root))}", sources.from_store(other))
        for other in context.stores
        if other is not part
    ]
    for item in (*own, *offered):
        if not lost:
            return
        yield item


def _refill(context: Context, lost: Wanted, offer: Offer) -> int:
    """Take what one source has.

    Returns:
        How many objects were given back.

    Raises:
        LadingError, OSError: the source is damaged, or there is no room. What it gave before is kept in the former case.
    """
    failure: Exception | None = None
    with context.epochs.shared() as epoch, context.writer(lost.others, floor=False) as writer:
        try:
            offer(context, writer, lost)
        except LadingError as error:
            failure = error
        catalog_content.register_packs(context.catalog, writer.finish(), epoch)
    before = lost.names()
    for key, opener in list(lost.diffs.items()):
        _store_again(context, key, opener)
        del lost.diffs[key]
    _restore_listings(context, lost)
    now = sources.wanted(context)
    lost.places, lost.recipes, lost.hollow = now.places, now.recipes, now.hollow
    if failure is not None:
        raise failure
    return len(before - now.names())


def _store_again(context: Context, key: str, opener: sources.Opener) -> None:
    """Store a diff as if a layer were made of it: its content is there, and gets what it lacks, its entries included."""
    from lading.flows.ingest import ingesting

    with (
        opener() as stream,
        ingesting(context, stream, expected=key) as diff,
        context.catalog.write("heal") as tx,
    ):
        diff.commit(tx)


def _restore_listings(context: Context, lost: Wanted) -> int:
    """Point contents without a listing to it, if it is stored: its digest is their key.

    Returns:
        How many.
    """
    count = 0
    for key, recipe in lost.recipes.items():
        digest = sources.listing_of(key)
        if recipe is None and digest:
            with context.catalog.read() as conn:
                content = catalog_content.find_content(conn, key)
                stored = digest in catalog_damage.packs_of(conn, [digest])
            if content is not None and stored:
                count += catalog_damage.replace_recipe(context.catalog, content.id, digest)
    return count


def _still_needed(context: Context) -> int:
    """How much is damaged that a record needs."""
    lost = sources.wanted(context)
    with context.catalog.read() as conn:
        objects = sum(1 for digest in lost.places if catalog_damage.users(conn, digest))
        hollow = set(catalog_content.hollow(conn)) - {key for key, recipe in lost.recipes.items() if recipe is not None}
    return objects + len({key for key, recipe in lost.recipes.items() if recipe is None} | hollow)


def _renew_snapshot(context: Context, lost: Wanted, healed: dict[str, int]) -> None:
    """Make the journal's snapshot anew if it is lost: all it says is in the catalog."""
    with context.catalog.read() as conn:
        damaged = [
            digest for digest in lost.places if any(user.kind == "store" for user in catalog_damage.users(conn, digest))
        ]
    if damaged and journaling.snapshot_if_needed(context, damaged=True):
        healed["the catalog"] = healed.get("the catalog", 0) + 1


def _broken(context: Context) -> tuple[list[str], list[str]]:
    """Look at packs that are missing, cut, or have no sound index, and note what is in them.

    Returns:
        Their names, and a sentence for each pack that could not be looked at: it is left as it is.
    """
    with context.catalog.read() as conn:
        recorded = reach.recorded_packs(conn)
    found, unread = damage.presence(context, recorded)
    names = []
    for name in dict.fromkeys(finding.pack for finding in found):
        with context.catalog.read() as conn:
            objects = catalog_damage.objects_in(conn, name)
        sentences = damage.looked_at_again(context, objects)[1]
        if not sentences:  # else nobody knows what is sound in it
            names.append(name)
        unread += sentences
    return names, unread


def _put_aside(context: Context, broken: Sequence[str], warnings: list[str]) -> None:
    """Copy what is sound out of broken packs, and remove those that hold nothing any more."""
    from lading.objects.durable import Staging
    from lading.objects.repack import repack

    for name in broken:
        with context.epochs.shared() as epoch:
            with context.catalog.read() as conn:
                damaged = {item.digest for item in catalog_damage.damaged(conn)}
                sound: list[Location] = [
                    item for item in catalog_damage.objects_in(conn, name) if item.digest not in damaged
                ]
            if sound:
                staging = Staging(context.layout.staging)
                try:
                    made = repack(context.backend, staging, sound)
                except (LadingError, OSError) as error:
                    if _is_own(context, error):
                        raise
                    warnings.append(f"pack {name} left as it is: {reason(error)}")
                    continue
                finally:
                    staging.close()
                catalog_damage.move(context.catalog, made, name, epoch)
        for gone in packs.forget(context.catalog, [name]):
            context.backend.delete(gone)
