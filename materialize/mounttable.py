"""This boot's mounts: a record for each mounted layer, in the run root.

Records carry the boot's id and are ignored in any other boot; the kernel's mount tables are the truth: a
record whose mount has vanished counts for nothing, in whatever mount namespace it was made. A record's file is
replaced, never changed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from lading import private
from lading.materialize.livemounts import LiveMounts
from lading.materialize.mounts import MountInfo


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mounted layer."""

    layer: str
    path: Path  #: where its tree is seen
    count: int
    source: str  #: as the kernel shows it; empty for a tree that is no mount
    areas: tuple[Path, ...]  #: write areas that the mount uses, as upper or as lower
    boot: str
    namespace: int  #: inode of the mount namespace
    views: tuple[str, ...] = ()  #: names of the cached images and farms that it is stacked from
    complete: bool = True  #: areas and views are all that it uses; not so of a mount whose record was lost
    device: str = ""  #: major:minor of the mount; empty in records of older versions
    pid_namespace: int = 0  #: inode; 0 in records of older versions
    #: Not kept. A process that sees the mount when it is in another mount namespace only; None when nobody can tell.
    elsewhere: str | None = ""

    def shown_by(self, mount: MountInfo) -> bool:
        """Recognise the mount, or a copy, at whatever path: another root or a bind shows it elsewhere."""
        same = (mount.fstype, mount.source) == ("overlay", self.source)
        return same and self.device in ("", mount.device)


class MountTable:
    """The records of one store and boot."""

    def __init__(self, folder: Path) -> None:
        """Use the store's folder in the run root, which exists."""
        self.folder = folder
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._namespace = os.stat("/proc/self/ns/mnt").st_ino
        self._pid_namespace = os.stat("/proc/self/ns/pid").st_ino
        self._records = folder / "mounts"
        self.points = folder / "mnt"  #: holds all mount points

    def mount_point(self, layer_id: str) -> Path:
        """The folder a layer is mounted at, made when missing."""
        point = self.points / layer_id
        private.make_folders(point)
        return point

    def _file(self, layer_id: str) -> Path:
        # A digest, so that an id of 255 bytes still leaves room for the ending.
        return self._records / f"{blake3(layer_id.encode()).hexdigest(16)}.json"

    def get(self, layer_id: str) -> MountRecord | None:
        """A layer's live mount, here or elsewhere; None when it has none, or when nobody can tell."""
        record = self._read(self._file(layer_id), LiveMounts())
        return None if record is None or record.elsewhere is None else record

    def _read(self, path: Path, live: LiveMounts) -> MountRecord | None:
        try:
            values = json.loads(path.read_bytes())
            record = MountRecord(
                values["layer"], Path(values["path"]), values["count"], values["source"],
                tuple(Path(area) for area in values["areas"]), values["boot"], values["namespace"],
                tuple(values.get("views", ())), bool(values.get("complete", values.get("views"))),
                values.get("device", ""), values.get("pid_namespace", 0),
            )  # fmt: skip
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # no record, or what a crash of the machine left of one
        if record.boot != self._boot:
            return None
        if not record.source:
            return record if record.path.is_dir() else None
        if live.is_here(record.path):
            return record
        elsewhere = self.seen_elsewhere(record, live)
        return None if elsewhere == "" else replace(record, elsewhere=elsewhere)

    def seen_elsewhere(self, record: MountRecord, live: LiveMounts | None = None) -> str | None:
        """Name a process that sees a mount which was made in another mount namespace, and is not in ours.

        Returns:
            ``PID (command)``; empty for nobody, and always for a mount that was made in ours; None when it cannot be told.
        """
        if record.namespace == self._namespace:
            return ""
        return (live or LiveMounts()).viewer(record.namespace, record.pid_namespace, record.shown_by)

    def is_doubtful(self, layer_id: str) -> bool:
        """Tell whether a layer has a mount of which nobody can tell whether it is live."""
        record = self._read(self._file(layer_id), LiveMounts())
        return record is not None and record.elsewhere is None

    def records(self) -> list[MountRecord]:
        """All live mounts, here or elsewhere, by layer."""
        return [record for record in self.possible(LiveMounts()) if record.elsewhere is not None]

    def possible(self, live: LiveMounts) -> list[MountRecord]:
        """All mounts that are live at a moment, by layer, and those of which nobody can tell."""
        try:
            names = sorted(os.listdir(self._records))
        except FileNotFoundError:
            return []
        found = (self._read(self._records / name, live) for name in names if name.endswith(".json"))
        return sorted((record for record in found if record is not None), key=lambda record: record.layer)

    def put(
        self,
        layer_id: str,
        path: Path,
        *,
        source: str,
        areas: Sequence[Path],
        views: Sequence[str] = (),
        complete: bool = True,
    ) -> MountRecord:
        """Record a new mount, counted once. The caller holds the layer's lock, here and below."""
        device = ""
        if source:
            number = os.stat(path).st_dev
            device = f"{os.major(number)}:{os.minor(number)}"
        record = MountRecord(
            layer_id, path, 1, source, tuple(areas), self._boot, self._namespace, tuple(views), complete, device,
            self._pid_namespace,
        )  # fmt: skip
        self._write(record)
        return record

    def add(self, layer_id: str) -> MountRecord:
        """Count one more mount of a layer that is mounted."""
        return self._count(layer_id, 1)

    def drop(self, layer_id: str) -> MountRecord:
        """Count one mount less of a layer that stays mounted."""
        return self._count(layer_id, -1)

    def _count(self, layer_id: str, step: int) -> MountRecord:
        record = self.get(layer_id)
        if record is None:
            raise LookupError(layer_id)
        changed = replace(record, count=record.count + step)
        self._write(changed)
        return changed

    def _write(self, record: MountRecord) -> None:
        private.make_folders(self._records)
        path = self._file(record.layer)
        values = {
            "layer": record.layer, "path": str(record.path), "count": record.count, "source": record.source,
            "areas": [str(area) for area in record.areas], "boot": record.boot, "namespace": record.namespace,
            "views": list(record.views), "complete": record.complete, "device": record.device,
            "pid_namespace": record.pid_namespace,
        }  # fmt: skip
        temporary = path.with_suffix(f".{os.urandom(8).hex()}")
        try:
            with open(private.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
                json.dump(values, file)
            os.rename(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error

    def remove(self, layer_id: str) -> None:
        """Forget a layer's mount, and its mount point when nothing is mounted there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file(layer_id))
        with contextlib.suppress(OSError):  # still busy, or gone already
            os.rmdir(self.points / layer_id)
