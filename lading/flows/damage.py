"""Damaged objects: telling who needs them, noting them in the catalog, and not counting on them.

What is noted is never relied on when something is stored, so that the same content, coming in again, heals it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Final

from lading.catalog import content as catalog_content
from lading.catalog import damage as catalog_damage
from lading.errors import Busy, Corrupt, Full, ReadOnly
from lading.objects.backend import PackMissing, PackUnreadable
from lading.values import KIND_RECIPE, Location, printable

if TYPE_CHECKING:
    from lading.flows.context import Context
    from lading.objects.backend import PackBackend
    from lading.objects.reader import DigestMismatch
    from lading.objects.verify import Finding, Pace

#: Records named in one sentence; a base layer's file may be needed by thousands.
NAMED_MAX: Final = 5

#: How often an object is looked up again because a collection moved it while it was read.
_MOVES_MAX: Final = 3

#: Errors that are the same for every pack.
NO_MEANS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

#: Sizes of objects remembered between two recipes: those of two layers often name the same ones.
_SIZES_MAX: Final = 100_000


class DamagedObject(Corrupt):
    """Stored bytes are wrong or unreadable; says whose they are."""

    def __init__(self, digest: bytes, why: str, layers: Sequence[str], images: Sequence[str]) -> None:
        needed = [*_named("layer", layers), *_named("image", images)]
        super().__init__(why + (f"; needed by {', '.join(needed)}" if needed else ""))
        self.digest = digest
        self.layers = tuple(layers)
        self.images = tuple(images)


def _named(kind: str, ids: Sequence[str]) -> list[str]:
    found = [f"{kind} {printable(record_id)}" for record_id in ids[:NAMED_MAX]]
    return [*found, f"{len(ids) - NAMED_MAX} more {kind}s"] if len(ids) > NAMED_MAX else found


def explain(context: Context, error: DigestMismatch) -> DamagedObject:
    """Say which layers and images a damaged object belongs to, and note it where that is possible.

    Noting is for the sake of whoever stores the same content next: that it cannot be done now is no reason to hide
    what was found.
    """
    with context.catalog.read() as conn:
        place = catalog_content.locate(conn, [error.digest]).get(error.digest)
        users = catalog_damage.users(conn, error.digest)
        layers = sorted({user.id for user in users if user.kind == "layer"})
        images = {user.id for user in users if user.kind == "image"}
        images.update(catalog_damage.images_above(conn, layers))
    if place is not None and not context.catalog.connection().in_transaction:
        record(context, [place], [])
    return DamagedObject(error.digest, str(error), layers, sorted(images))


def record(context: Context, damaged: Sequence[Location], sound: Sequence[Location], at_ns: int | None = None) -> bool:
    """Note what was found, where the store may be written to and has room for it.

    Returns:
        Whether it was noted.
    """
    if not context.writable or context.catalog.read_only:
        return False
    at_ns = at_ns or time.time_ns()
    with suppress(Full, ReadOnly, Busy):
        catalog_damage.note_damaged(context.catalog, damaged, at_ns)
        catalog_damage.note_sound(context.catalog, sound, at_ns)
        return True
    return False


def confirmed(context: Context, backend: PackBackend, findings: Sequence[Finding]) -> list[Finding]:
    """Drop what only looked damaged because a collection moved or removed it while it was read.

    An object that lies elsewhere now is read there.
    """
    from lading.objects.verify import verify_objects

    kept: list[Finding] = []
    pending = list(findings)
    for _ in range(_MOVES_MAX):
        if not pending:
            break
        with context.catalog.read() as conn:
            now = catalog_content.locate(conn, [finding.digest for finding in pending])
        kept += [finding for finding in pending if now.get(finding.digest) == finding.location]
        moved = [now[f.digest] for f in pending if f.digest in now and now[f.digest] != f.location]
        moved.sort(key=lambda location: (location.pack, location.offset))
        pending = list(verify_objects(backend, moved, workers=context.workers))
    return kept + pending


def verified(
    context: Context, backend: PackBackend, locations: Sequence[Location], pace: Pace | None = None
) -> tuple[list[Finding], list[Location]]:
    """Read and hash objects; of recipes, whether what they name is recorded as well: a diff needs no more than that.

    Returns:
        What is damaged, and the objects that are sound. One that a collection moved meanwhile is never among the latter.

    Raises:
        OSError: something could not be read for a reason that says nothing about the bytes.
    """
    from lading.objects.verify import verify_objects

    suspect = list(verify_objects(backend, locations, workers=context.workers, pace=pace))
    found = confirmed(context, backend, suspect)
    digests = {finding.digest for finding in suspect}
    sound = [item for item in locations if item.digest not in digests]
    empty = hollow(context, [item for item in sound if item.kind == KIND_RECIPE])
    lacking = {finding.digest for finding in empty}
    return [*found, *empty], [item for item in sound if item.digest not in lacking]


def hollow(context: Context, recipes: Sequence[Location]) -> list[Finding]:
    """Find recipes, sound as objects, that name something that is not recorded."""
    from lading.objects.reader import ObjectReader
    from lading.objects.recipe import read_references
    from lading.objects.verify import Finding

    if not recipes:
        return []
    places = {item.digest: item for item in recipes}
    found = []
    recorded: dict[bytes, int] = {}
    reader = ObjectReader(context.backend, lambda digests: {digest: places[digest] for digest in digests})
    try:
        for item in recipes:
            try:
                named = {
                    part.digest: part.size
                    for part in read_references(next(reader.contents([item.digest], verify=False)))
                }
            except PackMissing:
                continue  # replaced since it was verified
            except Corrupt as error:
                found.append(Finding(item.pack, f"object {item.digest.hex()} in pack {item.pack}: {error}", item))
                continue
            if len(recorded) > _SIZES_MAX:
                recorded.clear()
            with context.catalog.read() as conn:
                recorded |= catalog_content.sizes(conn, [digest for digest in named if digest not in recorded])
            lost = sum(1 for digest, size in named.items() if recorded.get(digest) != size)
            if lost:
                words = f"a recipe that names {lost} objects that are not there"
                found.append(Finding(item.pack, f"object {item.digest.hex()} in pack {item.pack}: {words}", item))
    finally:
        reader.close()
    return found


def presence(context: Context, packs: Mapping[str, int]) -> tuple[list[Finding], list[str]]:
    """Look whether packs are there, in their size and with a sound index.

    Args:
        context: one store.
        packs: names and bytes.

    Returns:
        What is wrong, and a sentence for each pack that could not be looked at.

    Raises:
        OSError: this process has not the means to look at any.
    """
    from lading.objects.verify import check_presence

    found: list[Finding] = []
    unread: list[str] = []
    for name, size in packs.items():
        try:
            found += check_presence(context.backend, {name: size})
        except OSError as error:
            if error.errno in NO_MEANS:
                raise
            unread.append(_unread(name, error))
    return found, unread


def _unread(pack: str, error: OSError) -> str:
    return f"pack {pack} could not be checked: {(error.strerror or str(error)).lower()}"


def looked_at_again(context: Context, locations: Sequence[Location]) -> tuple[list[Finding], list[str]]:
    """Read objects that are, or may be, damaged, and note what is found, the sound ones too.

    Returns:
        What is damaged, and a sentence for each pack that could not be looked at.
    """
    found: list[Finding] = []
    unread: list[str] = []
    for name, objects in groupby(locations, key=lambda item: item.pack):
        try:
            confirmed_here, sound = verified(context, context.backend, list(objects))
        except OSError as error:
            unread.append(_unread(name, error))
            continue
        record(context, [item.location for item in confirmed_here if item.location is not None], sound)
        found += confirmed_here
    return found, unread


def any_noted(context: Context) -> bool:
    """Tell whether anything in a store is noted as damaged."""
    with context.catalog.read() as conn:
        return conn.execute("SELECT 1 FROM object WHERE damaged_at IS NOT NULL LIMIT 1").fetchone() is not None


class Counted:
    """Tells which objects need not be stored: those that are recorded, and whose pack is there in its full size.

    Each pack is looked at once. A pack that is missing, cut or unreadable is noted as damaged, so that what is stored again takes
    its objects' places.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sound: dict[str, bool] = {}

    def __call__(self, digests: Sequence[bytes]) -> set[bytes]:
        """Count on these; see :class:`lading.objects.writer.ObjectWriter`."""
        with self._context.catalog.read() as conn:
            found = catalog_damage.packs_of(conn, digests)
        for name, size in sorted(set(found.values())):
            if name not in self._sound:
                self._sound[name] = self._is_whole(name, size) or self._was_replaced(name)
        missing = {digest for digest, (name, _) in found.items() if not self._sound[name]}
        return found.keys() - missing

    def _is_whole(self, name: str, size: int) -> bool:
        try:
            return self._context.backend.size(name) == size
        except PackUnreadable:
            return False

    def _was_replaced(self, name: str) -> bool:
        """Note a pack's objects as damaged, unless a collection has forgotten the pack since it was looked up."""
        with self._context.catalog.read() as conn:
            objects = catalog_damage.objects_in(conn, name)
        if not objects:
            return True
        catalog_damage.note_damaged(self._context.catalog, objects, time.time_ns())
        return False
