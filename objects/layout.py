"""Where everything lies below a store's root. Pure: computes paths and touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lading.values import RecordKind

#: Ending of a pack file.
PACK_SUFFIX: Final = ".pack"


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders and files of one store."""

    root: Path

    @property
    def format_marker(self) -> Path:
        """What makes a folder a store: written last when one is made."""
        return self.root / "format.json"

    @property
    def marker_copy(self) -> Path:
        """The same once more, in case the marker is lost."""
        return self.journal / "format.json"

    @property
    def catalog_db(self) -> Path:
        """The catalog."""
        return self.root / "catalog.db"

    @property
    def new_catalog(self) -> Path:
        """A catalog that was made again, complete, on its way into the old one's place."""
        return self.root / "catalog.db.new"

    @property
    def writer_lock(self) -> Path:
        """Held by whoever writes to the catalog."""
        return self.root / "catalog.lock"

    @property
    def reserve(self) -> Path:
        """Space that deleting may use on a full disk."""
        return self.root / "reserve"

    @property
    def objects(self) -> Path:
        """Folder of packs, staging and epoch locks."""
        return self.root / "objects"

    @property
    def packs(self) -> Path:
        """Folder of published packs."""
        return self.objects / "packs"

    @property
    def staging(self) -> Path:
        """Folder of what is being written or removed."""
        return self.objects / "staging"

    @property
    def journal(self) -> Path:
        """Folder of the journal's segments."""
        return self.root / "journal"

    @property
    def cache(self) -> Path:
        """Folder of derived views."""
        return self.root / "cache"

    @property
    def pool(self) -> Path:
        """Folder of plain inodes, ready to link."""
        return self.cache / "pool"

    @property
    def trees(self) -> Path:
        """Folder of farms."""
        return self.cache / "trees"

    @property
    def layers(self) -> Path:
        """Folder of write areas."""
        return self.root / "layers"

    @property
    def images(self) -> Path:
        """Folder of images' directories."""
        return self.root / "images"

    @property
    def containers(self) -> Path:
        """Folder of containers' directories."""
        return self.root / "containers"

    def pack(self, name: str) -> Path:
        """A pack's file."""
        return self.packs / name[:2] / f"{name}{PACK_SUFFIX}"

    def write_area(self, layer_id: str, number: int) -> Path:
        """A layer's write area."""
        return self.layers / layer_id / str(number)

    def userdata(self, kind: RecordKind, record_id: str) -> Path:
        """The persistent directory of an image or a container."""
        return {"image": self.images, "container": self.containers, "layer": self.layers}[kind] / record_id / "userdata"

    def epoch(self, number: int) -> Path:
        """The lock file of an epoch."""
        return self.objects / f"epoch.{number}"
