"""Where a damaged object's bytes may still be found. Everything here only *offers*: what has not the wanted digest is dropped.

An offer goes through a writer of objects that counts everything but the wanted digests as stored already.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from lading.catalog import content as catalog_content
from lading.catalog import damage as catalog_damage
from lading.errors import Corrupt, InvalidInput, LadingError
from lading.flows.context import Context
from lading.flows.damage import NO_MEANS
from lading.values import KIND_LISTING, KIND_RECIPE, Location, Readable, printable

if TYPE_CHECKING:
    from lading.objects.writer import ObjectWriter


#: Begins the key of a content that came as no tar; the digest of its listing follows.
_NATIVE: Final = "native:"

#: Opens a stream from its begin, as often as it is called.
Opener = Callable[[], AbstractContextManager[Readable]]


@dataclass
class Wanted:
    """The damaged objects of a store that nothing has given back yet."""

    places: dict[bytes, Location] = field(default_factory=dict)  #: where each is recorded
    recipes: dict[str, bytes | None] = field(
        default_factory=dict
    )  #: by key: damaged recipe; None when none is recorded
    hollow: set[bytes] = field(
        default_factory=set
    )  #: recipes that are sound, and name what is not there: no copy helps
    diffs: dict[str, Opener] = field(default_factory=dict)  #: by key: the diff of one of these, where it was found

    def others(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of some digests that are not wanted."""
        listings = {listing_of(key) for key, recipe in self.recipes.items() if recipe is None}
        wanted = (self.places.keys() - self.hollow) | listings
        return {digest for digest in digests if digest not in wanted}

    def names(self) -> set[bytes | str]:
        """Digests of what is damaged, keys of what is missing."""
        return {*self.places, *(key for key, recipe in self.recipes.items() if recipe is None)}

    def __bool__(self) -> bool:
        return bool(self.places or self.recipes)


def listing_of(key: str) -> bytes:
    """The digest that the listing of a content must have; empty for one that came as a tar."""
    return bytes.fromhex(key.removeprefix(_NATIVE)) if key.startswith(_NATIVE) else b""


def wanted(context: Context) -> Wanted:
    """What a store has lost."""
    with context.catalog.read() as conn:
        places = {item.digest: item for item in catalog_damage.damaged(conn)}
        missing = catalog_damage.without_recipe(conn)
        recipes: dict[str, bytes | None] = dict(catalog_damage.damaged_recipes(conn))
    hollow = {item.digest for item in places.values() if item.kind == KIND_RECIPE and _is_known_sound(context, item)}
    return Wanted(places, recipes | dict.fromkeys(missing), hollow)


#: Offers what a place has of the wanted objects.
Offer = Callable[[Context, "ObjectWriter", Wanted], None]


def _offer(writer: ObjectWriter, kind: int, chunks: Iterable[bytes]) -> None:
    target = writer.stream(kind)
    for chunk in chunks:
        target.write(chunk)
    target.close()


def _has_digest(chunks: Iterable[bytes], digest: bytes) -> bool:
    state = blake3()
    for chunk in chunks:
        state.update(chunk)
    return state.digest() == digest


def from_packs(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
    """Further copies in packs, those that were never recorded included: their indexes tell."""
    from lading.objects.pack import read_index
    from lading.objects.reader import ObjectReader

    copies: dict[bytes, Location] = {}
    for name in context.backend:
        with suppress(Corrupt, OSError):
            for item in read_index(context.backend, name).objects:
                place = lost.places.get(item.digest)
                if place is not None and item.digest not in copies and _is_sound(context, item):
                    copies[item.digest] = item
    reader = ObjectReader(context.backend, lambda digests: {digest: copies[digest] for digest in digests})
    try:
        for digest in sorted(copies):
            _offer(writer, lost.places[digest].kind, next(reader.contents([digest])))
    finally:
        reader.close()


def _is_sound(context: Context, item: Location) -> bool:
    from lading.objects.verify import verify_objects

    return not list(verify_objects(context.backend, [item], workers=1))


def _is_known_sound(context: Context, item: Location) -> bool:
    """The same; what may not be read is not known to be sound."""
    try:
        return _is_sound(context, item)
    except OSError as error:
        if error.errno in NO_MEANS:
            raise
        return False


def from_listings(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
    """The listing of a content that came as no tar: it is one function of the entries."""
    from lading.materialize.listing import listing

    for key in lost.recipes:
        if listing_of(key):
            with context.catalog.read() as conn:
                entries = catalog_content.entries(conn, key)
            _offer(writer, KIND_LISTING, listing(entries))


def from_store(other: Context) -> Offer:
    """Another store that is opened together with this one."""

    def offer(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
        del context
        with other.epochs.shared():
            with other.catalog.read() as conn:
                found = sorted(catalog_content.locate(conn, list(lost.places)))
            for digest in found:
                with suppress(LadingError, OSError):
                    if _has_digest(next(other.reader.contents([digest])), digest):
                        _offer(writer, lost.places[digest].kind, next(other.reader.contents([digest])))

    return offer


def from_images(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
    """Cached EROFS images, of whatever contents."""
    from lading.materialize import erofsread
    from lading.materialize.imagebuild import has_sound_metadata
    from lading.materialize.imagecache import as_described, read_note

    sizes = _sizes(context, lost)
    folder = context.layout.cache / "erofs"
    for note in sorted(folder.glob("*.json")) if sizes else ():
        values = read_note(folder, note.stem)
        image = as_described(folder, note.stem, values) if values is not None else None
        if image is None:
            continue
        with suppress(Corrupt, OSError), _opened(image.path) as descriptor:
            if not has_sound_metadata(context.layout.cache, note.stem):
                continue
            for extents in erofsread.candidates(descriptor, image.meta_size, sizes):
                _offer_if_wanted(writer, lost, erofsread.read(descriptor, extents), erofsread.read(descriptor, extents))


def from_pool(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
    """Files that farms are made of."""
    from lading.materialize.pool import pool_name

    with context.catalog.read() as conn:
        places = catalog_damage.places(conn, list(lost.places))
    for place in places:
        path = context.layout.cache / "pool" / pool_name(place.key)
        _offer_file(writer, lost, place, path)


def from_areas(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
    """Files of write areas that are full trees: what was not written to is a copy."""
    with context.catalog.read() as conn:
        paths = catalog_damage.paths_of(conn, list(lost.places))
        places = {place.digest: place for place in catalog_damage.places(conn, list(lost.places))}
        layers = [row[0] for row in conn.execute("SELECT id FROM layer WHERE write_kind = 'tree'")]
    for layer_id in layers:
        for tree in sorted((context.layout.layers / layer_id).glob("*/tree")):
            for digest, path in paths:
                if digest in places:
                    _offer_beneath(writer, lost, places[digest], tree, path)


def _offer_beneath(writer: ObjectWriter, lost: Wanted, place: catalog_damage.Place, tree: Path, path: bytes) -> None:
    from lading.materialize.beneath import open_beneath

    with suppress(OSError):
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            descriptor = open_beneath(root, path)
        finally:
            os.close(root)
        try:
            _offer_descriptor(writer, lost, place, descriptor)
        finally:
            os.close(descriptor)


def _offer_file(writer: ObjectWriter, lost: Wanted, place: catalog_damage.Place, path: Path) -> None:
    with suppress(OSError), _opened(path) as descriptor:
        _offer_descriptor(writer, lost, place, descriptor)


def _offer_descriptor(writer: ObjectWriter, lost: Wanted, place: catalog_damage.Place, descriptor: int) -> None:
    from lading.materialize.erofsread import read

    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size == place.size:
        runs = place.sparse or ((0, place.size),)
        if _has_digest(read(descriptor, runs), place.digest):
            _offer(writer, lost.places[place.digest].kind, read(descriptor, runs))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sizes(context: Context, lost: Wanted) -> dict[int, set[tuple[tuple[int, int], ...]]]:
    """Sizes of the files that have a wanted object for their content, with the runs that are stored of them."""
    with context.catalog.read() as conn:
        places = catalog_damage.places(conn, list(lost.places))
    sizes: dict[int, set[tuple[tuple[int, int], ...]]] = {}
    for place in places:
        sizes.setdefault(place.size, set()).add(place.sparse)
    return sizes


def _offer_if_wanted(writer: ObjectWriter, lost: Wanted, once: Iterable[bytes], again: Iterable[bytes]) -> None:
    """Hash a candidate, and read it once more to store it if it is wanted."""
    state = blake3()
    for chunk in once:
        state.update(chunk)
    place = lost.places.get(state.digest())
    if place is not None:
        _offer(writer, place.kind, again)


class _Sieve:
    """Takes a tar apart; of its contents only those of a wanted size are stored. See ``objects.tarbase.TarSink``."""

    def __init__(self, writer: ObjectWriter, lost: Wanted) -> None:
        self._kinds = {place.size: place.kind for place in lost.places.values()}
        self._writer = writer

    def literal(self, data: bytes) -> None:
        """Let go of what is no content."""

    def put(self, data: bytes) -> bytes:
        """Offer a small file's content."""
        kind = self._kinds.get(len(data))
        return blake3(data).digest() if kind is None else self._writer.put(data, kind)

    def stream(self, chunks: Iterator[bytes], size: int) -> bytes:
        """Offer a large file's content."""
        kind = self._kinds.get(size)
        if kind is None:
            state = blake3()
            for chunk in chunks:
                state.update(chunk)
            return state.digest()
        target = self._writer.stream(kind)
        for chunk in chunks:
            target.write(chunk)
        return target.close()


def from_tar(opener: Opener) -> Offer:
    """A layer's tar, plain or compressed. One that is the diff of a content without sound recipe is noted in the latter's
    place: storing it once more gives the recipe back."""

    def offer(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
        from lading.objects.streams import InputStream
        from lading.objects.tar import ingest_tar
        from lading.objects.tarbase import TarLimits

        limits = TarLimits(entries_max=context.settings.entries_max, size_max=context.settings.size_max)
        with opener() as raw:
            source = InputStream(raw)
            try:
                ingest_tar(source.read, _Sieve(writer, lost), limits)
                key = source.summary().diff_digest
            finally:
                source.close()
        if key in lost.recipes:
            lost.diffs[key] = opener

    return offer


def given(source: str) -> list[Offer]:
    """What somebody gives: ``FILE.tar``, ``oci:DIR[:TAG]`` or ``docker-archive:FILE``.

    Raises:
        InvalidInput, NotFound: there is no such thing, or it is something else.
    """
    if not source.startswith(("oci:", "docker-archive:")) or os.path.exists(source):
        path = Path(source)
        if not path.is_file():
            words = "is no regular file" if path.exists() else "no such file"
            raise InvalidInput(f"open {printable(source)}: {words}")
        if not os.access(path, os.R_OK):
            raise InvalidInput(f"open {printable(source)}: permission denied")
        return [from_tar(lambda: path.open("rb"))]
    from lading.flows import importing

    offers: list[Offer] = []
    for image in importing.sources(source):
        offers.append(_from_documents((image.manifest, image.config)))
        offers += [from_tar(blob.open) for blob, _ in image.layers]
    return offers


def _from_documents(documents: Iterable[bytes]) -> Offer:
    def offer(context: Context, writer: ObjectWriter, lost: Wanted) -> None:
        del context
        for data in documents:
            place = lost.places.get(blake3(data).digest())
            if place is not None:
                writer.put(data, place.kind)

    return offer
