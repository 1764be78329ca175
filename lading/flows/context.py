"""What every flow works with: an open store's folders, catalog, objects and locks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from lading.catalog import content as catalog_content
from lading.catalog.database import Catalog
from lading.config import Settings
from lading.errors import ReadOnly
from lading.objects.epoch import Epochs
from lading.objects.folder import FolderBackend
from lading.objects.layout import Layout
from lading.values import Location

if TYPE_CHECKING:
    from lading.flows.stores import Objects
    from lading.materialize.mounttable import MountTable
    from lading.materialize.probe import Abilities
    from lading.objects.reader import DigestMismatch, ObjectReader
    from lading.objects.writer import Known, ObjectWriter

_Result = TypeVar("_Result")

#: Environment variable by which scripts make the overlay driver do without shifting.
NO_SHIFTING: Final = "_CONTAINERS_OVERLAY_DISABLE_IDMAP"

#: Called with the bytes or items done, and their total when it is known.
Progress = Callable[[int, int | None], None]


def log_warning(sentence: str) -> None:
    """Log a warning; where no program has set up logging, it goes to standard error."""
    import logging

    logging.getLogger("lading").warning("%s", sentence)


class Context:
    """An open store, taken apart. Heavy parts are made on first use: most commands need few of them."""

    def __init__(
        self,
        root: Path,
        run_root: Path,
        store_id: str,
        catalog: Catalog,
        settings: Settings,
        driver: str,
        writable: bool,
        *,
        image_store: Context | None = None,
        additional: Sequence[Context] = (),
    ) -> None:
        self.root = root
        self.run_root = run_root
        self.run = run_root / store_id
        self.store_id = store_id
        self.catalog = catalog
        self.settings = settings
        self.writable = writable
        self.layout = Layout(root)
        self.backend = FolderBackend(self.layout.packs)
        self.epochs = Epochs(self.layout.objects, create=writable, wait_s=settings.wait_s)
        #: This store, then a split-off image store, then those that are only read. Records' ``origin`` counts here.
        self.stores: tuple[Context, ...] = (self, *([image_store] if image_store else []), *additional)
        #: How many of them, from the first, may be written to.
        self.writable_stores = 2 if image_store else 1
        #: Called with a sentence for whatever is done otherwise than asked for, and is no error.
        self.warn: Callable[[str], None] = log_warning
        self.asked_driver = driver  #: "overlay", "vfs", or empty for what works here

    def warn_of(self, sentences: Iterable[str]) -> None:
        """Pass warnings on."""
        for sentence in sentences:
            self.warn(sentence)

    @property
    def workers(self) -> int:
        """Threads for hashing and compressing."""
        return self.settings.workers or len(os.sched_getaffinity(0))

    @property
    def image_home(self) -> Context:
        """Where new images, and layers that are made read-only, go."""
        return self.stores[self.writable_stores - 1]

    @property
    def image_origins(self) -> tuple[int, ...]:
        """Where images are looked for, in order: a split-off image store comes before the main one."""
        others = range(self.writable_stores, len(self.stores))
        return (1, 0, *others) if self.writable_stores == 2 else (0, *others)

    @cached_property
    def objects(self) -> Objects:
        """The objects of all stores."""
        from lading.flows.stores import Objects

        return Objects(self.stores)

    @property
    def shifts(self) -> bool:
        """Whether owners are shifted when a layer is mounted, so that layers need no maps of their own."""
        disabled = os.environ.get(NO_SHIFTING) == "yes"
        return self.driver == "overlay" and os.geteuid() == 0 and not disabled

    @cached_property
    def driver(self) -> str:
        """ "overlay" or "vfs": what was asked for, else what works here."""
        if self.asked_driver:
            return self.asked_driver
        return "overlay" if self.abilities.overlay else "vfs"

    @cached_property
    def abilities(self) -> Abilities:
        """What the kernel, the filesystem and the privileges allow, probed once a boot."""
        from lading.materialize.probe import probe

        return probe(self.layout.cache, self.run)

    @cached_property
    def mount_table(self) -> MountTable:
        """Records of this boot's mounts."""
        from lading.flows.opening import claim_run_root
        from lading.materialize.mounttable import MountTable

        claim_run_root(self)
        return MountTable(self.run)

    @cached_property
    def reader(self) -> ObjectReader:
        """Reads objects wherever the catalog says they lie."""
        from lading.objects.reader import ObjectReader

        return ObjectReader(self.backend, self.locate, workers=self.workers, explain=self._explain)

    def _explain(self, error: DigestMismatch) -> Exception:
        from lading.flows.damage import explain

        return explain(self, error)

    def locate(self, digests: Sequence[bytes]) -> Mapping[bytes, Location]:
        """Look up where objects lie."""
        with self.catalog.read() as conn:
            return catalog_content.locate(conn, digests)

    @contextmanager
    def writer(
        self, known: Known | None = None, *, floor: bool = True, wanted: int | None = None
    ) -> Iterator[ObjectWriter]:
        """Open a writer of objects with its own staging folder. The caller holds the epoch lock.

        Args:
            known: tells which objects need not be stored; None: those that are, and whose packs are there.
            floor: leave free what the settings say; without, only as much as must be.
            wanted: bytes to be stored at most, where that is known.

        Raises:
            Full: there is less room than is to be left; also while objects are stored.
        """
        from lading.flows.damage import Counted
        from lading.flows.reserve import Floor
        from lading.flows.tidying import tidying
        from lading.materialize.beneath import remove_tree
        from lading.objects.durable import Staging, debris
        from lading.objects.writer import DEFAULT_LEVEL, ObjectWriter

        self.need_writable()
        room = Floor(self.root, self.settings.min_free if floor else 0, wanted)
        for folder, _ in debris(self.layout.staging):  # what killed writers left; the living hold their locks
            with tidying(str(folder)):
                remove_tree(folder)
        room(0)
        staging = Staging(self.layout.staging)
        try:
            with ObjectWriter(
                self.backend, staging, known=known or Counted(self), level=self.settings.level or DEFAULT_LEVEL,
                workers=self.workers, pack_size=self.settings.pack_size, room=room,
            ) as writer:  # fmt: skip
                yield writer
        finally:
            with tidying(str(staging.path)):
                staging.close()

    def with_room(self, act: Callable[[], _Result]) -> _Result:
        """Do what must work on a full disk, making room for it where there is none.

        Args:
            act: may be repeated after it failed.
        """
        from lading.flows import reserve

        for part in self.stores[1 : self.writable_stores]:
            act = partial(reserve.with_room, part.layout, act, part.catalog)
        return reserve.with_room(self.layout, act, self.catalog)

    def need_writable(self) -> None:
        """Refuse to go on when the store cannot be written.

        Raises:
            ReadOnly: with the root's path.
        """
        if not self.writable:
            raise ReadOnly(f"store {self.root} is on a read-only filesystem or may not be written")

    def close(self) -> None:
        """Close files and connections."""
        for part in self.stores[1:]:
            part.close()
        if "reader" in self.__dict__:
            self.reader.close()
        self.backend.close()
        self.catalog.close()
        if self.writable:
            from lading.flows import reserve

            reserve.put_back(self.layout)  # now that the catalog's log has gone
