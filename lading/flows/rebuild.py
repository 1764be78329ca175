"""The catalog made again from the packs and the journal, as of the last commit.

Everything goes into a new file in staging, complete and synced; then the old one is put aside under a name of its
own and the new one takes its place. Nothing that is there is changed before, so a killed rebuild is simply run again;
one that is killed while the new catalog takes its place is finished by whoever opens the store next.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lading.catalog import chain as journal_chain
from lading.catalog import packs as catalog_packs
from lading.catalog.chain import Chain
from lading.catalog.database import Catalog
from lading.catalog.draft import Draft
from lading.catalog.engine import meaning, sqlite
from lading.catalog.journal import head
from lading.config import Settings
from lading.errors import Busy, Corrupt, Full, InvalidInput, LadingError, ReadOnly, Unsupported
from lading.flows import agreement, exclusive, journaling, marker, replaying
from lading.flows.context import Context, Progress
from lading.flows.install import put_in_place, settle_alone
from lading.objects.durable import Staging, fsync_dir, fsync_file, make_dir
from lading.objects.layout import Layout
from lading.objects.pack import read_index
from lading.objects.verify import verify_objects
from lading.values import KIND_SNAPSHOT, Location, PackContents

if TYPE_CHECKING:
    from lading.flows.checking import Finding

#: A report names no layer for being old and unused: that has nothing to do with a rebuild.
_ANY_AGE_NS: Final = 1 << 62

#: What says nothing of the packs, and ends a rebuild: the new catalog cannot be written. (Bytes that a disk has lost are
#: :class:`Corrupt`; any other refusal of the operating system ends it as well.)
_CAN_WAIT: Final = (Full, ReadOnly, Busy)


#: Makes a content's rows of its recipe, or its listing; returns the bytes of its stream.
Make = Callable[[Context, Draft, str, bytes], int]


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was made again, what was put aside, and what is missing."""

    counts: dict[str, int]  #: rows by table
    kept: tuple[str, ...]  #: files put aside
    notes: tuple[str, ...]  #: what could not be brought back, a sentence each
    findings: tuple[Finding, ...]  #: what a check of the new catalog says: each record that is touched

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.notes and not self.findings

    def lines(self) -> list[str]:
        """For people, a line a fact."""
        made = ", ".join(
            f"{self.counts[name]} {name}s" for name in ("layer", "image", "container", "content", "object")
        )
        return [
            f"rebuilt: {made}",
            *(f"put aside: {path}" for path in self.kept),
            *(f"lost: {note}" for note in self.notes),
            *(f"damaged: {finding.message}" for finding in self.findings),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            **{f"{name}s": count for name, count in self.counts.items()}, "kept": list(self.kept), "lost": list(self.notes),
            "damaged": [{"kind": item.kind, "id": item.id, "message": item.message} for item in self.findings],
        }  # fmt: skip


def rebuild(
    root: Path,
    run: Path | None,
    driver: str,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> RebuildReport:
    """Make a store's catalog again.

    Args:
        root: the store's folder.
        run: run root, as for opening.
        driver: likewise.
        settings: likewise.
        force: also when the present catalog is sound, or when nothing is left that tells of records.
        progress: called with the bytes of the diffs whose entries are made.

    Raises:
        InvalidInput: no store is there, or its catalog is sound.
        Busy: another process works with the store, or has it open.
        InUse: this process has it open.
        Corrupt: there is nothing to make it from; or it knows more than the journal, which a rebuild would lose.
    """
    from lading.flows import checking, opening

    layout = Layout(Path(os.path.realpath(root)))
    found = marker.recognise(layout)
    with exclusive.alone(layout, "catalog rebuild", settings.wait_s), _told(layout):
        marker.restore(layout, found)
        # What an earlier rebuild took from the catalog before it was stopped is in the one that it made.
        finished = settle_alone(layout)
        _refuse_needless(layout, settings, force=force or finished)
        with closing(_Rebuild(layout, str(found["id"]), settings, progress, force=force)) as made:
            made.build()
            kept = made.install()
    context = opening.open_context(layout.root, run, driver, settings)
    try:
        report = checking.check(context, modifications=False, max_age_ns=_ANY_AGE_NS)
    finally:
        context.close()
    return RebuildReport(made.counts, tuple(kept), tuple(made.notes), report.findings)


@contextmanager
def _told(layout: Layout) -> Iterator[None]:
    """Give SQLite's refusals of the new catalog their meaning."""
    try:
        yield
    except (sqlite.DatabaseError, UnicodeDecodeError) as error:
        raise meaning(error, layout.new_catalog) from error


def _refuse_needless(layout: Layout, settings: Settings, *, force: bool) -> None:
    """Look at the catalog that is there."""
    words = _state(layout, settings, force=force)
    if words and not words.startswith(_AHEAD):
        return
    if words:
        raise Corrupt(f"{words}: a rebuild would lose what only the catalog holds; run `lading catalog rejournal`")
    if not force:
        raise InvalidInput(
            f"{layout.catalog_db} is sound and as new as its journal: there is nothing to rebuild; "
            "with --force it is put aside and made again all the same, without times of verification, and with an audit "
            "log that begins at the journal's last snapshot"
        )


#: How a sentence begins that tells of a sound catalog and a journal that is not.
_AHEAD: Final = "the journal has lost lines"


def _state(layout: Layout, settings: Settings, *, force: bool) -> str:
    """Say what is wrong with the present catalog; empty when it is sound, and agrees with the journal."""
    if not layout.catalog_db.exists() or not layout.catalog_db.stat().st_size:
        return "the catalog is missing"
    try:
        catalog = Catalog.open(layout.catalog_db, layout.journal, layout.writer_lock, read_only=True)
    except Unsupported as error:
        if "older" in str(error):
            return ""
        if not force:
            raise Unsupported(f"{error}; if that is damage, --force makes the catalog again") from error
        return str(error)
    except LadingError as error:
        return str(error)
    except (ValueError, TypeError, sqlite.Error) as error:
        return f"{layout.catalog_db} is damaged: {error}"
    context = Context(layout.root, layout.root, "", catalog, settings, "vfs", writable=False)
    try:
        with catalog.read() as conn:
            for (words,) in conn.execute("PRAGMA quick_check"):
                if words != "ok":
                    return f"{layout.catalog_db} is damaged: {words}"
            at = head(conn)
        lost = journal_chain.lost_commits(layout.journal, at, unsynced=True)
        newest = journal_chain.find_chain(layout.journal).head
        if lost or newest.digest != at.digest:
            return lost or "the journal has a line that the catalog has not seen"
        return next(iter(agreement.compare(context).records), "")
    except LadingError as error:
        return str(error)
    except (ValueError, TypeError, sqlite.Error) as error:
        return f"{layout.catalog_db} is damaged: {error}"
    finally:
        context.close()


class _Rebuild:
    """One rebuild on its way; the store is held alone."""

    def __init__(
        self, layout: Layout, store_id: str, settings: Settings, progress: Progress | None, *, force: bool
    ) -> None:
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        self._layout = layout
        self._progress = progress
        self._force = force
        self._segment = 0  #: a journal segment that replaces those before it; 0 for none
        self._damaged_packs: list[str] = []
        self._done = 0
        if not layout.staging.is_dir():
            make_dir(layout.staging)
        self._staging = Staging(layout.staging)
        try:
            self._path = self._staging.path / "catalog.db"
            catalog = Catalog.open(
                self._path, self._staging.path / "journal", self._staging.path / "catalog.lock", create=True
            )
            # No run root: nothing that is asked of this context has to do with mounts.
            self._context = Context(layout.root, layout.root, store_id, catalog, settings, "vfs", writable=True)
            self._draft = Draft(catalog, self._staging.path / "scratch.db")
        except BaseException:
            self._staging.close()
            raise

    def build(self) -> None:
        """Make all rows."""
        self._add_packs()
        chain = self._add_records()
        self._draft.note_needs()
        self._add_contents()
        self.notes += self._draft.make_records()
        self.counts = self._draft.counts()
        if chain.holes or chain.dropped:
            self._segment = journaling.renew(self._context, chain.head, epoch=0)
        elif chain.places:
            for path in journal_chain.segments(self._layout.journal):
                fsync_file(path)  # the new catalog takes them for synced
            fsync_dir(self._layout.journal)
            self._draft.set_head(chain.head, chain.snapshot)
        self._draft.finish()

    def install(self) -> list[str]:
        """Put the new catalog in place.

        Returns:
            Paths of what was put aside.
        """
        self._context.close()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return put_in_place(self._layout, self._path, stamp, self._segment, self._damaged_packs)

    def close(self) -> None:
        """Remove what is left in staging."""
        with suppress(sqlite.Error):
            self._context.close()
        self._staging.close()

    def _add_packs(self) -> None:
        """Read every pack's own index, the newest pack first; of an object that is stored twice, take a sound copy."""
        backend = self._context.backend
        packs = sorted(backend, key=lambda name: (-backend.path(name).stat().st_mtime_ns, name))
        for name in packs:
            try:
                contents = read_index(backend, name)
            except Corrupt as error:  # any other refusal says nothing of the pack
                words = str(error)
                known = self._known_to_old_catalog(name)
                if known is None:
                    self._damaged_packs.append(name)
                    self.notes.append(f"{words}: what only this pack held is lost")
                    continue
                self.notes.append(f"{words}: what is in it was taken from the catalog that was there")
                contents = known
            self._draft.add_pack(contents)
        for places in self._draft.duplicates():
            sound = next((place for place in places if self._is_sound(place)), places[0])
            if sound is not places[0]:
                self._draft.move(sound)

    def _known_to_old_catalog(self, name: str) -> PackContents | None:
        """What the present catalog says of a pack that does not say so itself; None when it says nothing.

        Packs never change and names are never used again, so that any catalog which can be read will do; what it says
        is only ever believed of bytes that have their digest.
        """
        layout = self._layout
        try:
            old = Catalog.open(layout.catalog_db, layout.journal, layout.writer_lock, read_only=True)
        except (Full, Busy):
            raise
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            return None
        except (LadingError, ValueError, TypeError, sqlite.Error):
            return None
        try:
            with old.read() as conn:
                row = conn.execute("SELECT id, size FROM pack WHERE name = ?", (name,)).fetchone()
                objects = catalog_packs.live_objects(conn, row[0], name) if row else []
            return PackContents(name, int(row[1]), tuple(objects)) if objects else None
        except (LadingError, ValueError, TypeError, sqlite.Error):
            return None
        finally:
            old.close()

    def _is_sound(self, place: Location) -> bool:
        return not list(verify_objects(self._context.backend, [place], workers=1))

    def _add_records(self) -> Chain:
        """Follow the journal from the newest snapshot that is sound, or from its first line."""
        folder = self._layout.journal
        chain = journal_chain.find_chain(folder, self._is_stored)
        if not chain.places:
            chain = self._from_lone_snapshot(chain)
        if not chain.places and not chain.snapshot and self._draft.counts()["object"]:
            words = f"{folder} holds no line, and no pack a snapshot of the records: there is nothing to make them from"
            if not self._force:
                raise Corrupt(f"{words}; --force makes an empty catalog, and the next collection empties the packs")
            self.notes.append(words)
        self.notes += chain.holes
        if chain.damaged_end:
            self.notes.append("the journal ends in a damaged line: if it was of a finished change, that change is lost")
        places = chain.places
        if chain.snapshot:
            self._draft.add_states(self._snapshot(chain.snapshot), places[0].seq if places else 0)
            places = places[1:]
        elif places and places[0].says_all:
            (line,) = journal_chain.read_lines(folder, places[:1])
            self._draft.add_states(((kind, name, state) for kind, name, state in line.body["changes"]), line.seq)
            if "transient" in line.body:
                self._draft.add_states(iter([("transient", "", line.body["transient"])]), line.seq)
            places = places[1:]
        self._draft.add_lines(journal_chain.read_lines(folder, places))
        return chain

    def _from_lone_snapshot(self, chain: Chain) -> Chain:
        """Without a journal the records of the newest snapshot are better than none."""
        backend = self._context.backend
        snapshots = [place for place in self._draft.objects(recipes=False) if place.kind == KIND_SNAPSHOT]
        snapshots.sort(key=lambda place: backend.path(place.pack).stat().st_mtime_ns, reverse=True)
        for place in snapshots:
            if self._is_stored(place.digest.hex()):
                words = "the journal is lost: records are as of its last snapshot, and what was changed since is lost"
                return Chain((), place.digest.hex(), (words,))
        return chain

    def _is_stored(self, digest: str) -> bool:
        """Tell whether an object is there and whole."""
        try:
            for _ in next(self._context.reader.contents([bytes.fromhex(digest)])):
                pass
        except _CAN_WAIT:
            raise
        except (LadingError, ValueError):
            return False
        return True

    def _snapshot(self, digest: str) -> Iterator[tuple[str, str, Any]]:
        if digest == journal_chain.EMPTY:
            return
        with self._context.reader.open(bytes.fromhex(digest)) as file:
            for line in file:
                yield journal_chain.records_of(line)

    def _add_contents(self) -> None:
        """Make every content that a layer has."""
        needed = set(self._draft.needed())
        damaged: dict[str, bytes] = {}
        for key in sorted(key for key in needed if key.startswith("native:")):
            self._try_content(needed, key, bytes.fromhex(key.removeprefix("native:")), replaying.add_native)
        for place, key in self._recipes(needed):
            if not self._try_content(needed, key, place.digest, replaying.add_tar):
                damaged[key] = place.digest
        if any(key.startswith("sha256:") for key in needed):
            for place, key in self._unlikely_recipes(needed):
                self._try_content(needed, key, place.digest, replaying.add_tar)
        for key in sorted(needed):
            replaying.add_hollow(self._draft, key, damaged.get(key))

    def _try_content(self, needed: set[str], key: str, recipe: bytes, make: Make) -> bool:
        """Make a content from its recipe or listing.

        Returns:
            False when that cannot be read.
        """
        try:
            self._done += make(self._context, self._draft, key, recipe)
        except _CAN_WAIT:
            raise
        except (LadingError, ValueError, struct.error):
            return False
        needed.discard(key)
        if self._progress is not None:
            self._progress(self._done, None)
        return True

    def _recipes(self, needed: set[str]) -> Iterator[tuple[Location, str]]:
        for place in self._draft.objects(recipes=True):
            key = replaying.stream_key(self._context, place)
            if key in needed:
                yield place, key

    def _unlikely_recipes(self, needed: set[str]) -> Iterator[tuple[Location, str]]:
        """Recipes that are not said to be any: their bytes had come in as a file's before. They may lie, so that
        all of their stream is read."""
        for place in self._draft.objects(recipes=False):
            if not replaying.looks_like_recipe(self._context, place):
                continue
            key = replaying.stream_key(self._context, place)
            if key in needed and replaying.gives(self._context, place.digest, key):
                yield place, key
