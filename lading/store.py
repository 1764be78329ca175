"""``Store``: the public verbs of a store, each a line into a flow."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from lading import flows
from lading.cache import Cache
from lading.config import Settings
from lading.containers import Containers
from lading.idmaps import NO_MAPS, Maps
from lading.images import Images
from lading.layers import Layers
from lading.values import Container, Image, Layer, Record, RecordKind

if TYPE_CHECKING:
    from lading.flows.accounting import Balance
    from lading.flows.checking import CheckReport
    from lading.flows.checkouts import CheckoutReport
    from lading.flows.collect import GcPlan, GcReport
    from lading.flows.context import Context, Progress
    from lading.flows.mounting import Mounted
    from lading.flows.rebuild import RebuildReport
    from lading.flows.refill import HealReport


_SHARED: Final[dict[tuple[str, str, str], Store]] = {}
_SHARED_LOCK: Final = threading.Lock()


class GraphDriver:
    """The driver of a store. It may hold layers that no record names."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def name(self) -> str:
        """ "overlay" or "vfs"."""
        return self._context.driver

    def layers(self) -> list[str]:
        """Ids of all layers of the main store, recorded or not, sorted."""
        return flows.driver.ids(self._context)

    def create(self, id: str = "", *, parent: str = "") -> str:
        """Make a layer without a record; one that is there stays as it is.

        Returns:
            Its id.

        Raises:
            NotFound: there is no such parent, whose id is taken literally.
        """
        return flows.driver.create(self._context, id, parent)


class Store:
    """An open store. Use it as a context manager, or call :meth:`close`.

    Concurrency: any number of processes may have one store open; one object belongs to one process
    and does not survive a fork. Methods may be called from several threads.
    """

    def __init__(self, context: Context) -> None:
        """Wrap an opened context; call :meth:`open` instead."""
        self._context = context
        self.layers = Layers(context)
        self.images = Images(context)
        self.containers = Containers(context)

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        run: str | os.PathLike[str] | None = None,
        driver: str = "",
        settings: Settings | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> Store:
        """Open a store, making it when it is not there.

        Args:
            root: folder of everything that lasts.
            run: folder of what belongs to this boot (mount points and records); None for the default.
            driver: "overlay" or "vfs"; empty for overlay where it works.
            settings: how to work; None for the defaults.
            warn: called with a sentence for whatever is done otherwise than asked for, and is no error; None to log
                it as "lading".

        Raises:
            Unsupported: the store was written by a newer version, or the folder belongs to another program.
            ReadOnly: the store is missing and cannot be made. (An existing one on a read-only
                filesystem opens, and refuses what writes.)
        """
        context = flows.opening.open_context(Path(root), Path(run) if run else None, driver, settings or Settings())
        if warn is not None:
            for part in context.stores:
                part.warn = warn
        return cls(context)

    @classmethod
    def rebuild(
        cls,
        root: str | os.PathLike[str],
        *,
        run: str | os.PathLike[str] | None = None,
        driver: str = "",
        settings: Settings | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> RebuildReport:
        """Make the catalog of a store again from its packs and its journal, as of the last commit.

        Args:
            root: see :meth:`open`, like the next three. Nobody may have the store open.
            run: see above.
            driver: see above.
            settings: see above.
            force: also when the present catalog is sound.
            progress: called with the bytes of the diffs whose entries are made.

        Returns:
            What was made, what was put aside, and everything that is missing.

        Raises:
            InvalidInput: no store is there, or its catalog is sound.
            Busy: another process has the store open.
        """
        return flows.rebuild.rebuild(
            Path(root), Path(run) if run else None, driver, settings or Settings(), force=force, progress=progress
        )

    @classmethod
    def shared(
        cls, root: str | os.PathLike[str], *, run: str | os.PathLike[str] | None = None, driver: str = ""
    ) -> Store:
        """Open a store, or return the one this process has open by this call for the same roots and driver.

        Concurrency: safe from several threads. The object lives until :meth:`free`.
        """
        key = (os.path.realpath(root), os.path.realpath(run) if run else "", driver)
        with _SHARED_LOCK:
            found = _SHARED.get(key)
            if found is None:
                found = _SHARED[key] = cls.open(root, run=run, driver=driver)
            return found

    def free(self) -> None:
        """Close a store opened by :meth:`shared`, so that the next such call opens it anew. Twice is harmless."""
        with _SHARED_LOCK:
            for key, store in list(_SHARED.items()):
                if store is self:
                    del _SHARED[key]
                    self.close()

    def close(self) -> None:
        """Close files and connections. Mounts stay."""
        self._context.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """Folder of everything that lasts."""
        return self._context.root

    @property
    def run(self) -> Path:
        """Folder of what belongs to this boot."""
        return self._context.run

    @property
    def run_root(self) -> Path:
        """The run root that was given: several stores may share one."""
        return self._context.run_root

    @property
    def image_store(self) -> Path | None:
        """Root of the split-off image store; None when images are in the store itself."""
        return self._context.image_home.root if self._context.writable_stores > 1 else None

    @property
    def transient(self) -> bool:
        """Whether new containers end with the run root."""
        return self._context.settings.transient

    @property
    def driver_options(self) -> tuple[str, ...]:
        """Driver options as they were given."""
        return self._context.settings.driver_options

    @property
    def pull_options(self) -> dict[str, str]:
        """Options for programs that fetch images, a copy."""
        pairs = (option.partition("=") for option in self._context.settings.pull_options)
        return {key: value for key, _, value in pairs}

    @property
    def default_maps(self) -> Maps:
        """The store's own ID maps, for layers without parent: none."""
        return NO_MAPS

    @property
    def graph_driver(self) -> GraphDriver:
        """What shows layers: its name, and the layers as it keeps them, recorded or not."""
        return GraphDriver(self._context)

    def version(self) -> list[tuple[str, str]]:
        """Describe the version, as pairs for people."""
        import lading

        return [("Version", lading.__version__)]

    @property
    def id(self) -> str:
        """The store's own id: 32 hex digits drawn when it was made."""
        return self._context.store_id

    @property
    def driver(self) -> str:
        """How layers are shown: "overlay" or "vfs"."""
        return self._context.driver

    def lookup(self, ref: str) -> Record:
        """Find a record of any kind: layers first, then images, then containers.

        Raises:
            LayerUnknown: nothing answers to the reference.
        """
        return flows.records.lookup(self._context, ref)

    def exists(self, ref: str, kinds: Collection[RecordKind] = ()) -> bool:
        """Tell whether a record answers to the reference, in every one of the kinds named, or in any."""
        return flows.records.exists(self._context, ref, kinds)

    def names(self, ref: str) -> tuple[str, ...]:
        """List a record's names."""
        return flows.records.names(self._context, ref)

    def set_names(self, ref: str, names: Sequence[str]) -> tuple[str, ...]:
        """Replace a record's names; a name held by another record of the kind moves."""
        return flows.records.set_names(self._context, ref, names)

    def add_names(self, ref: str, names: Sequence[str]) -> tuple[str, ...]:
        """Put names in front of a record's names; a name held by another record of the kind moves."""
        return flows.records.add_names(self._context, ref, names)

    def remove_names(self, ref: str, names: Sequence[str]) -> tuple[str, ...]:
        """Remove names from a record; those it does not have are ignored."""
        return flows.records.remove_names(self._context, ref, names)

    def metadata(self, ref: str) -> str:
        """Return a record's metadata text.

        Raises:
            NotAnID: nothing answers to the reference.
        """
        return flows.records.metadata(self._context, ref)

    def set_metadata(self, ref: str, text: str) -> None:
        """Replace a record's metadata text."""
        flows.records.set_metadata(self._context, ref, text)

    def delete(self, ref: str) -> None:
        """Delete a record of any kind (containers first, then images, then layers) without safety checks."""
        flows.records.delete(self._context, ref)

    def mount(self, ref: str, *, label: str = "", options: Sequence[str] = (), flatten: bool = False) -> Path:
        """Mount a layer or a container's layer, writable; each mount needs one unmount.

        Args:
            ref: the layer or container.
            label: SELinux mount label; the layer's own when empty.
            options: mount options; the container's own, else the configured ones, when there are none.
            flatten: show the layers below as one, so that look-ups do not depend on how many there are.

        Returns:
            Where the tree is seen. What is mounted already is seen where it is, whatever the options.
        """
        return flows.mounting.mount(self._context, ref, label=label, options=options, flatten=flatten)

    def unmount(self, ref: str, *, force: bool = False) -> bool:
        """Give one mount back; ``force`` gives all back.

        Returns:
            False when others still have it mounted.

        Raises:
            InUse: a process still works in it; the message names it.
        """
        return flows.mounting.unmount(self._context, ref, force=force)

    def mounted(self, ref: str) -> int:
        """Count the mounts of a layer or container."""
        return flows.mounting.mounted(self._context, ref)

    def mounts(self) -> list[Mounted]:
        """List everything mounted in this boot."""
        return flows.mounting.mounts(self._context)

    def checkout(
        self, ref: str, destination: str | os.PathLike[str], *, way: str = "auto", progress: Progress | None = None
    ) -> CheckoutReport:
        """Write the whole tree of a layer, image or container into a new folder.

        Args:
            ref: a record of any kind.
            destination: a folder that does not exist or is empty.
            way: "auto" shares blocks with the cache's files where there are such and the filesystem can; "copy"
                never does; "reflink" makes them first, and insists; "hardlink" shows the cache's own files by a
                read-only mount.
            progress: called with the files done and their number.

        Raises:
            Unsupported: the filesystem or the user cannot do it this way.
        """
        return flows.checkouts.checkout(self._context, ref, Path(destination), way=way, progress=progress)

    def commit(self, ref: str, *, id: str = "", names: Sequence[str] = (), metadata: str = "") -> Image:
        """Make a layer and an image of a container as it is now; only what was written to it is read.

        Raises:
            ContainerUnknown: there is none.
        """
        return flows.snapshots.commit(self._context, ref, id=id, names=names, metadata=metadata)

    def clone(self, ref: str, *, id: str = "", names: Sequence[str] = ()) -> Container:
        """Make a container like another one, with what was written to it; only that is read.

        Raises:
            ContainerUnknown: there is none.
        """
        return flows.snapshots.clone(self._context, ref, id=id, names=names)

    @property
    def cache(self) -> Cache:
        """The views made of layers, which can all be made again."""
        return Cache(self._context)

    def import_image(self, source: str, *, names: Sequence[str] = (), progress: Progress | None = None) -> list[Image]:
        """Import images with their layers, configs and manifests, byte for byte.

        Args:
            source: ``oci:DIR[:TAG]`` or ``docker-archive:FILE``.
            names: names to set beside those that the source gives.
            progress: called with the bytes read so far.
        """
        return flows.importing.import_image(self._context, source, names=names, progress=progress)

    def plan_gc(self) -> GcPlan:
        """Compute what a collection would do now."""
        return flows.collect.plan(self._context)

    def gc(self, *, dry_run: bool = False) -> GcReport:
        """Collect garbage: rows first, then bytes. ``dry_run`` reports exactly what the run would do."""
        return flows.collect.gc(self._context, dry_run=dry_run)

    def check(
        self,
        *,
        content: bool = False,
        modifications: bool = True,
        max_age_ns: int = 24 * 3600 * 10**9,
        rate: int | str = 0,
        seconds: float = 0.0,
    ) -> CheckReport:
        """Look for damage: the catalog, the presence of packs, what was written over applied diffs.

        Args:
            content: read and hash every stored byte as well; goes on where an interrupted reading stopped.
            modifications: compare layers that were written to after a diff was applied with that diff.
            max_age_ns: age from which a layer that nothing uses is an error.
            rate: with ``content``: stored bytes read in a second, as a number or as text like ``50m``; 0 for no bound.
            seconds: with ``content``: begin to read nothing more after so long; 0 for no bound.
        """
        return flows.checking.check(
            self._context,
            content=content,
            modifications=modifications,
            max_age_ns=max_age_ns,
            rate=rate,
            seconds=seconds,
        )

    def heal(self, sources: Sequence[str] = ()) -> HealReport:
        """Give damaged objects their bytes back, from every copy there is; nothing is deleted.

        Other packs, the cache, write areas and other stores are looked through by themselves. Whatever is found is
        compared by digest.

        Args:
            sources: further ones: ``FILE.tar`` (a layer's, plain or compressed), ``oci:DIR[:TAG]``,
                ``docker-archive:FILE``.

        Raises:
            InvalidInput, NotFound: one of them is not there, or is something else; nothing was done.
        """
        return flows.refill.heal(self._context, sources)

    @staticmethod
    def check_sources(sources: Sequence[str]) -> None:
        """Look whether copies to heal from are there, before anything is read.

        Raises:
            InvalidInput, NotFound: one is not there, or is something else.
        """
        flows.refill.check_sources(sources)

    def repair(
        self, report: CheckReport, *, containers_too: bool = False, healed: HealReport | None = None
    ) -> list[str]:
        """Remove the images and layers, and if told to the containers, that a check found damaged.

        Args:
            report: of that check.
            containers_too: remove damaged containers; without it, images that they use stay.
            healed: what was given back before that check.

        Returns:
            A sentence for each removal that failed.

        Raises:
            InvalidInput: a copy that was named for healing could not be read, and may have what is still damaged.
        """
        return flows.repair.repair(self._context, report, containers_too=containers_too, healed=healed)

    def rejournal(self) -> list[str]:
        """Begin the journal anew from the catalog, when the journal is damaged and the catalog is sound.

        Returns:
            Paths of what was put aside.

        Raises:
            InvalidInput: the two agree.
        """
        return flows.journaling.rejournal(self._context)

    def dedup(self, method: str = "crc") -> int:
        """Tell how many bytes of files in images' layers are stored once for several files.

        Nothing is left to be done: equal files are found when they come in.

        Args:
            method: "crc", "size" or "sha256"; accepted for scripts.
        """
        return flows.sharing.shared_bytes(self._context, method)

    def copy(self, sources: Sequence[str], target: str, *, chown: tuple[int, int] | None = None) -> None:
        """Copy files or folders into a layer, out of one, or between two.

        Args:
            sources: ``LAYER:/path``, or paths on this machine.
            target: the same; the file to make, or the folder to merge into.
            chown: owner and group to give everything, as the container knows them.
        """
        flows.copying.copy(self._context, sources, target, chown=chown)

    def multi_list(
        self, *, layers: bool = False, images: bool = False, containers: bool = False
    ) -> tuple[list[Layer], list[Image], list[Container]]:
        """List several kinds from one consistent snapshot; those not asked for are empty."""
        wanted: dict[RecordKind, bool] = {"layer": layers, "image": images, "container": containers}
        return flows.records.multi_list(self._context, [kind for kind, asked in wanted.items() if asked])

    def digest_lock(self, digest: str) -> AbstractContextManager[None]:
        """Hold a lock named by a digest, shared by all processes of this boot."""
        return flows.upkeep.digest_lock(self._context, digest)

    def balance(self) -> Balance:
        """Account for every byte the store has on disk."""
        return flows.accounting.balance(self._context)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Ask the catalog; nothing but reading is possible.

        Returns:
            Column names, and an iterator over the rows.
        """
        return flows.records.query(self._context, sql, parameters)

    def sql_shell_command(self) -> list[str] | None:
        """Tell the command line of a safe, read-only SQL shell on the catalog; None when there is no such program."""
        return flows.records.sql_shell_command(self._context)

    def wipe(self) -> None:
        """Delete all containers, images and layers, mounted or not."""
        flows.upkeep.wipe(self._context)

    def shutdown(self, *, force: bool = False) -> list[str]:
        """Release what the store holds in the kernel.

        Returns:
            Ids of the layers that were mounted.

        Raises:
            LayerUsedByContainer: something is mounted. With ``force`` it has been unmounted all the same.
        """
        return flows.upkeep.shutdown(self._context, force=force)

    def status(self) -> list[tuple[str, str]]:
        """Describe roots, driver and what the kernel allows, as pairs for people."""
        return flows.upkeep.status(self._context)
