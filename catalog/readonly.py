"""A catalog that is only read: nothing is made beside its file, and what writers do meanwhile is followed.

A writer's log that is in use has its shared memory beside it, and is read in place. A log without it is one that a
killed writer left, or that was carried here: it is copied first. Without a log the file is whole: nobody
writes to it until there is one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lading.catalog.database import Catalog
from lading.catalog.engine import Connection, Tracked, meaning, peewee, sqlite
from lading.errors import Busy, Corrupt, Unsupported


class ReadOnlyCatalog(Catalog):
    """A catalog opened for reading alone."""

    def __init__(self, path: Path, journal: Path, lock: Path, wait_s: float) -> None:
        super().__init__(path, journal, lock, None, read_only=True, wait_s=wait_s)
        self._copies: list[tempfile.TemporaryDirectory[str]] = []
        self._beside_log = False
        self._seen: tuple[int, int, int, bool] = (0, 0, 0, False)
        self._connecting = threading.Lock()

    @classmethod
    def open_file(cls, path: Path, journal: Path, lock: Path, wait_s: float) -> ReadOnlyCatalog:
        """Open a catalog's file.

        Raises:
            Unsupported: a newer version wrote it, or an older one.
            Corrupt: it is missing, or no catalog.
        """
        from lading.catalog import migrations

        if not path.exists():
            raise Corrupt(f"{path} is missing")
        catalog = cls(path, journal, lock, wait_s)
        try:
            catalog._connect()
            if not migrations.is_current(catalog.connection()):
                raise Unsupported(
                    f"{path} was written by an older version: open it once for writing, to bring it up to date"
                )
        except sqlite.DatabaseError as error:
            catalog.close()
            raise meaning(error, path) from error
        except BaseException:
            catalog.close()
            raise
        return catalog

    def _connect(self) -> None:
        """Choose how to read what is there now. Connections made before stay open until they are let go."""
        self._seen = self._signature()
        log, shared = (Path(f"{self.path}{suffix}") for suffix in ("-wal", "-shm"))
        self._beside_log = False
        if not self._seen[3]:
            uri = f"file:{quote(str(self.path))}?immutable=1"
        elif shared.exists() and os.access(shared, os.W_OK) and not _is_read_only(shared):
            self._beside_log = True
            uri = f"file:{quote(str(self.path))}?mode=ro"
        else:
            copy = tempfile.TemporaryDirectory(prefix="lading-catalog-")
            self._copies.append(copy)
            for source in (self.path, log):
                shutil.copy(source, copy.name)
            uri = f"file:{quote(str(Path(copy.name) / self.path.name))}"
        self.database: Any = peewee.SqliteDatabase(
            # Temporary tables are allowed: a plan of a collection needs them. The file is opened for reading alone.
            uri, uri=True, pragmas={"trusted_schema": 0, "temp_store": "memory"}, timeout=self._wait_s,
            check_same_thread=False, factory=Tracked,
        )  # fmt: skip

    def _signature(self) -> tuple[int, int, int, bool]:
        """What changes when somebody writes: the file, and whether there is a log."""
        found = os.stat(self.path)
        try:
            has_log = os.stat(f"{self.path}-wal").st_size > 0
        except FileNotFoundError:
            has_log = False
        return found.st_ino, found.st_mtime_ns, found.st_size, has_log

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Read from one consistent snapshot; a read inside another shares it.

        Raises:
            Busy: the file was written to meanwhile, so that what was read may belong to two states.
        """
        if self.connection().in_transaction or self._beside_log:
            with super().read() as conn:
                yield conn
            return
        with self._connecting:
            if self._signature() != self._seen:
                self._connect()
        before = self._signature()[:3]
        with super().read() as conn:
            yield conn
        if not self._beside_log and self._signature()[:3] != before:
            raise Busy(f"{self.path} was written to while it was read; try again")

    def close(self) -> None:
        """Close the connections of all threads; none may be working with its own."""
        if self.database is not None:
            super().close()
        for copy in self._copies:
            copy.cleanup()
        self._copies.clear()


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
