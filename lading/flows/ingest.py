"""A layer tar goes in: digests, objects and content rows, up to the one commit that the caller makes.

The order is the design: take the epoch's lock; write, sync and publish packs; insert the content's rows
hidden; then the caller's transaction makes them visible. A crash anywhere leaves unreferenced bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from lading.catalog import content as catalog_content
from lading.catalog import damage as catalog_damage
from lading.catalog.database import WriteTransaction
from lading.errors import InvalidInput
from lading.flows.context import Context, Progress
from lading.flows.reserve import input_size
from lading.objects.recipe import RecipeEncoder
from lading.objects.streams import InputStream, StreamSummary
from lading.objects.tar import ingest_tar
from lading.objects.tarbase import TarLimits, TarSummary
from lading.objects.writer import ObjectStream, ObjectWriter
from lading.values import KIND_DATA, KIND_RECIPE, Entry, PackContents, Readable

#: Recipe bytes gathered before they go to the object writer.
RECIPE_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Ingested:
    """A diff that is stored but not visible yet; valid while its epoch lock is held."""

    stream: StreamSummary
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    warnings: tuple[str, ...]
    content_id: int | None  #: rows waiting to become visible; None when the content was there, and whole
    epoch: int  #: the epoch whose lock is held

    @property
    def key(self) -> str:
        """Key of the content: the digest of the uncompressed stream."""
        return self.stream.diff_digest

    def entries(self, context: Context) -> list[Entry]:
        """Read its entries, visible or not yet."""
        with context.catalog.read() as conn:
            if self.content_id is not None:
                return catalog_content.waiting_entries(conn, self.content_id)
            return catalog_content.entries(conn, self.key)

    def commit(self, tx: WriteTransaction) -> str:
        """Make the content visible as part of a transaction.

        Returns:
            The content's key.
        """
        if self.content_id is not None:
            return catalog_content.ready(tx, self.content_id, self.key)
        return self.key


class RecipeSink:
    """Takes a tar apart: file content into objects, all else into the recipe."""

    def __init__(self, writer: ObjectWriter) -> None:
        self._writer = writer
        self._recipe: ObjectStream = writer.stream(KIND_RECIPE)
        self._encoder = RecipeEncoder(self._recipe.write)
        self.digests: set[bytes] = set()  #: of every object that the recipe names
        self.literal: Callable[[bytes], object] = self._encoder.literal

    def put(self, data: bytes) -> bytes:
        """Store a small file's content."""
        digest = self._writer.put(data)
        self.digests.add(digest)
        self._encoder.reference(digest, len(data))
        return digest

    def stream(self, chunks: Iterator[bytes], size: int) -> bytes:
        """Store a large file's content."""
        target = self._writer.stream(KIND_DATA)
        for chunk in chunks:
            target.write(chunk)
        digest = target.close()
        self.digests.add(digest)
        self._encoder.reference(digest, size)
        return digest

    def finish(self, summary: StreamSummary) -> bytes:
        """Close the recipe.

        Returns:
            The recipe's digest.
        """
        self._encoder.finish(summary.diff_size, summary.diff_digest.removeprefix("sha256:"))
        return self._recipe.close()


@contextmanager
def ingesting(
    context: Context, raw: Readable, *, expected: str = "", diff_id: str = "", progress: Progress | None = None
) -> Iterator[Ingested]:
    """Store a diff's bytes and hidden rows; hold the epoch lock for the caller's commit.

    Args:
        context: the store.
        raw: the stream as presented, plain or compressed.
        expected: a digest the stream must have, as presented or uncompressed; empty for any.
        diff_id: a digest it must have uncompressed; empty for any.
        progress: called with the bytes read.

    Raises:
        InvalidInput: no layer tar, a cut or damaged one, or another digest than expected. Nothing of it
            is visible.
    """
    context.need_writable()
    check_digest(expected)
    with context.epochs.shared() as epoch:
        wanted = input_size(raw)
        source = InputStream(_Counted(raw, progress) if progress else raw)
        try:
            found = _ingest(context, source, expected, diff_id, epoch, wanted)
            yield found
            context.warn_of(found.warnings)
        finally:
            source.close()


def _ingest(
    context: Context, source: InputStream, expected: str, diff_id: str, epoch: int, wanted: int | None
) -> Ingested:
    chosen = context.settings
    limits = TarLimits(entries_max=chosen.entries_max, size_max=chosen.size_max, tree_size_max=chosen.tree_size_max)
    with context.writer(wanted=wanted) as writer:
        sink = RecipeSink(writer)
        tar = ingest_tar(source.read, sink, limits)
        summary = source.summary()
        if expected and expected not in (summary.compressed_digest, summary.diff_digest):
            raise InvalidInput(f"the diff has digest {summary.diff_digest}, not {expected}")
        if diff_id and summary.diff_digest != diff_id:
            raise InvalidInput(f"layer {summary.diff_digest} is not the one the config lists: {diff_id}")
        content_id = None
        recipe = sink.finish(summary)
        packs = writer.finish()  # none when the diff is stored and sound
        with context.catalog.read() as conn:
            present = catalog_content.find_content(conn, summary.diff_digest)
        if present is None:
            content_id = store_content(
                context, packs, epoch=epoch, diff_id=summary.diff_digest, size=summary.diff_size, recipe=recipe,
                tar=tar, named=sink.digests,
            )  # fmt: skip
        elif packs or present.recipe != recipe:
            restore(context, present, packs, epoch=epoch, recipe=recipe, unnamed=shadowed(sink.digests, tar.entries))
    return Ingested(summary, tar.uids, tar.gids, tar.warnings, content_id, epoch)


def store_content(
    context: Context,
    packs: Sequence[PackContents],
    *,
    epoch: int,
    diff_id: str | None,
    size: int,
    recipe: bytes,
    tar: TarSummary,
    named: Collection[bytes],
) -> int:
    """Record published packs and a content's hidden rows.

    Args:
        context: the store.
        packs: what was written.
        epoch: the epoch whose lock the caller holds.
        diff_id: see ``catalog.content.store_content``, like ``size``.
        size: see above.
        recipe: digest of the recipe.
        tar: what the recipe is of.
        named: every object that the recipe names. Those that no entry has (a later entry of the same name
            replaced theirs) are recorded as such.

    Returns:
        The content's row number, for ``catalog.content.ready``.
    """
    catalog_content.register_packs(context.catalog, packs, epoch)
    return catalog_content.store_content(
        context.catalog, diff_id=diff_id, size=size, recipe=recipe, entries=tar.entries, uids=tar.uids, gids=tar.gids,
        diff_bytes=tar.diff_bytes, epoch=epoch, shadowed=shadowed(named, tar.entries),
    )  # fmt: skip


def restore(
    context: Context,
    content: catalog_content.ContentInfo,
    packs: Sequence[PackContents],
    *,
    epoch: int,
    recipe: bytes,
    unnamed: Collection[bytes],
) -> None:
    """Give a content that is there what the same tar has and it lacks: objects, and its recipe if that is lost.

    Args:
        context: the store.
        content: whose.
        packs: what was written, since it was missing or damaged.
        epoch: the epoch whose lock the caller holds.
        recipe: digest of the tar's recipe.
        unnamed: what the recipe names and no entry has.
    """
    catalog_content.register_packs(context.catalog, packs, epoch)
    catalog_damage.replace_recipe(context.catalog, content.id, recipe)
    catalog_content.note_shadowed(context.catalog, content.id, unnamed)


def shadowed(named: Collection[bytes], entries: Sequence[Entry]) -> set[bytes]:
    """Digests that a recipe names and no entry has."""
    return set(named) - {entry.inode.digest for entry in entries if entry.inode is not None}


def check_digest(text: str) -> None:
    """Refuse what is no sha256 digest; an empty text means none.

    Raises:
        InvalidInput: in the contract's words.
    """
    if not text:
        return
    algorithm, colon, digits = text.partition(":")
    if not colon or not algorithm or not digits:
        raise InvalidInput("invalid checksum digest format")
    if algorithm != "sha256":
        raise InvalidInput("unsupported digest algorithm")
    if len(digits) != 64:
        raise InvalidInput("invalid checksum digest length")
    if any(char not in "0123456789abcdef" for char in digits):
        raise InvalidInput("invalid checksum digest format")


class _Counted:
    """A stream that tells how far it was read."""

    def __init__(self, raw: Readable, progress: Progress) -> None:
        self._raw = raw
        self._progress = progress
        self._done = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._raw.read(size)
        self._done += len(data)
        self._progress(self._done, None)
        return data
