"""``Store``: the public verbs of a store, each a line into a flow."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lading import flows
from lading.collections import Containers, Images, Layers
from lading.config import Settings
from lading.values import Image, Record, RecordKind

if TYPE_CHECKING:
    from lading.flows.accounting import Balance
    from lading.flows.checking import CheckReport
    from lading.flows.collect import GcPlan, GcReport
    from lading.flows.context import Context, Progress
    from lading.flows.mounting import CheckoutReport, Mounted


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
    ) -> Store:
        """Open a store, making it when it is not there.

        Args:
            root: folder of everything that lasts.
            run: folder of what belongs to this boot (mount points and records); None for the default.
            driver: "overlay" or "vfs"; empty for overlay where it works.
            settings: how to work; None for the defaults.

        Raises:
            Unsupported: the store was written by a newer version, or the folder belongs to another program.
            ReadOnly: the store is missing and cannot be made. (An existing one on a read-only
                filesystem opens, and refuses what writes.)
        """
        return cls(flows.opening.open_context(Path(root), Path(run) if run else None, driver, settings or Settings()))

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

    def mount(self, ref: str, *, label: str = "") -> Path:
        """Mount a layer or a container's layer, writable; each mount needs one unmount.

        Returns:
            Where the tree is seen.
        """
        return flows.mounting.mount(self._context, ref, label=label)

    def mount_image(self, ref: str, *, label: str = "") -> Path:
        """Mount an image's top layer, read-only."""
        return flows.mounting.mount_image(self._context, ref, label=label)

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
        self, ref: str, destination: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> CheckoutReport:
        """Write the whole tree of a layer, image or container into a new folder.

        Args:
            ref: a record of any kind.
            destination: a folder that does not exist or is empty.
            progress: called with the files done and their number.
        """
        return flows.mounting.checkout(self._context, ref, Path(destination), progress=progress)

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

    def check(self, *, content: bool = False) -> CheckReport:
        """Look for damage: the catalog, the presence of packs, and with ``content`` every stored byte."""
        return flows.checking.check(self._context, content=content)

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
