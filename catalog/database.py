"""The catalog's database: opening it, consistent reads, write transactions under one lock.

SQLite in WAL mode with every commit synced, or in a relaxed store only those that bytes are removed on. Readers wait for nobody. Writers, and checkpoints with them,
run one at a time under a lock file of ours, which dies with its owner. Connections belong to threads and
do not survive a fork.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from lading import locks, private
from lading.catalog.engine import Connection, Tracked, meaning, peewee, sqlite
from lading.catalog.network import refuse_network
from lading.errors import Busy, Corrupt, Full, InvalidInput, ReadOnly, Unsupported
from lading.values import RecordKind

#: WAL bytes from which a commit is followed by a checkpoint.
CHECKPOINT_SIZE: Final = 16 << 20

#: Behind the note when a sync of the log has failed. Only this boot need know: after a loss of power the disk alone counts.
_DOUBT: Final = b"!"

#: How often another file may take the catalog's place while it is opened.
_OPENINGS_MAX: Final = 5

_PRAGMAS: Final = {
    "foreign_keys": 1,
    "synchronous": "full",
    "trusted_schema": 0,
    "wal_autocheckpoint": 0,
    "cache_size": -32768,
    "mmap_size": 256 << 20,
    "temp_store": "memory",
}


class Catalog:
    """An open catalog."""

    def __init__(
        self,
        path: Path,
        journal: Path,
        lock: Path,
        database: Any,
        *,
        read_only: bool,
        wait_s: float,
        relaxed: bool = False,
    ) -> None:
        """Wrap an opened database; call :meth:`open` instead."""
        self.path = path
        self.database = database
        self.journal_folder = journal
        self.read_only = read_only
        self.relaxed = relaxed
        self._lock_path = lock
        self._wait_s = wait_s
        self._local = threading.local()
        self._process = os.getpid()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def open(
        cls,
        path: Path,
        journal: Path,
        lock: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        wait_s: float = 30,
        relaxed: bool = False,
    ) -> Catalog:
        """Open a catalog.

        Args:
            path: the database file.
            journal: folder of the journal.
            lock: the writer lock's file.
            create: make an empty catalog, or migrate an older one, when that is needed.
            read_only: never write, not even beside the file.
            wait_s: longest wait for another writer.
            relaxed: leave commits that only add to whoever syncs next: a power loss takes the newest of them.

        Raises:
            Unsupported: a newer version wrote it, or it is to be written to on a network filesystem.
            Corrupt: it is no catalog.
        """
        if read_only:
            from lading.catalog.readonly import ReadOnlyCatalog

            return ReadOnlyCatalog.open_file(path, journal, lock, wait_s)
        database = peewee.SqliteDatabase(
            str(path),
            pragmas=_PRAGMAS,
            timeout=wait_s,
            lock_type="IMMEDIATE",
            check_same_thread=False,
            factory=Tracked,
        )
        catalog = cls(path, journal, lock, database, read_only=False, wait_s=wait_s, relaxed=relaxed)
        try:
            if create:
                refuse_network(path)
                catalog._make_file()
                catalog._migrate()
        except BaseException:
            catalog.close()  # an open file keeps others from putting a sound one in its place
            raise
        return catalog

    def _make_file(self) -> None:
        """Make an empty file, as SQLite would, but private; its log and shared memory get the file's mode from SQLite."""
        if self.path.exists():
            return
        try:
            os.close(private.opened(self.path, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Full(f"{self.path}: {os.strerror(error.errno).lower()}") from error
            raise InvalidInput(f"{self.path} cannot be opened: {(error.strerror or '').lower()}") from error

    def _migrate(self) -> None:
        from lading.catalog import migrations

        conn = self.connection()
        try:
            if migrations.is_current(conn):
                return
            with self._locked("open"):
                if migrations.version(conn) == 0:
                    self._refuse_lost_catalog()
                mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    raise Unsupported(f"{self.path}: this filesystem cannot hold a catalog (journal mode {mode})")
                migrations.migrate(conn)
        except (sqlite.DatabaseError, UnicodeDecodeError) as error:
            raise meaning(error, self.path) from error

    def _refuse_lost_catalog(self) -> None:
        """Refuse to start an empty catalog beside a journal with lines: it would look like an empty store.

        The schema is committed before the first line can be written, so lines mean that there was a catalog.
        """
        from lading.catalog.journal import holds_lines

        if holds_lines(self.journal_folder):
            raise Corrupt(
                f"{self.path} is missing or empty, but {self.journal_folder} holds changes: "
                "the catalog is lost; run `lading catalog rebuild`"
            )

    def connection(self) -> Any:
        """This thread's connection, opened on first use."""
        if os.getpid() != self._process:
            raise RuntimeError("a catalog does not survive a fork: open the store again")
        try:
            for _ in range(_OPENINGS_MAX):
                before = self._file() if self.database.is_closed() else None
                connection = self.database.connection()
                if connection in self._connections:
                    return connection
                if before == self._file():
                    self._connections.add(connection)
                    self._local.file = before
                    return connection
                self.database.close()  # another file took its place: its log is not this one's
        except (peewee.OperationalError, peewee.DatabaseError, sqlite.DatabaseError) as error:
            raise meaning(error, self.path) from error

        raise Busy(f"{self.path} is being replaced; try again")

    def _file(self) -> tuple[int, int] | None:
        """Which file stands at the path now."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Read from one consistent snapshot; a read inside another, or inside a write, shares it."""
        conn = self.connection()
        if conn.in_transaction:
            yield conn
            return
        try:
            conn.execute("BEGIN")
            yield conn
        except (sqlite.DatabaseError, UnicodeDecodeError) as error:
            raise meaning(error, self.path) from error
        finally:
            if conn.in_transaction:
                conn.execute("ROLLBACK")

    @contextmanager
    def write(self, verb: str, *, durable: bool = False) -> Iterator[WriteTransaction]:
        """Change records: rows, then the journal's lines, then the commit; each synced unless the store is relaxed.

        Args:
            verb: what is done, for the audit log and for whoever has to wait.
            durable: sync in a relaxed store, too: bytes are removed, or written elsewhere, because of this commit.

        Raises:
            Busy: another writer held the lock for too long.
        """
        from lading.catalog import records
        from lading.catalog.journal import Journal

        journal = Journal(self.journal_folder)
        with self._writing(verb) as conn:
            synced = durable or not self.relaxed or journal.is_due(conn)
            with self._transaction(conn, durable=synced):
                tx = WriteTransaction(conn, verb)
                yield tx
                line = records.changes(tx)
                if line is not None:
                    journal.append(conn, line, durable=synced)

    def make_durable(self, verb: str) -> None:
        """Make sure that no power loss takes a commit that was made before.

        Collections do so before they remove bytes: neither the catalog nor the journal may then go back to a record
        that had them, nor may the journal end with a line of a writer that never committed.
        """
        from lading.catalog.journal import Journal

        journal = Journal(self.journal_folder)
        with self.read() as conn:
            if not journal.has_loose_end(conn):
                return
        with self._writing(verb) as conn, self._transaction(conn, durable=True):
            if journal.has_loose_end(conn):
                journal.append(conn, {"at": time.time_ns(), "verb": verb, "changes": []})

    @contextmanager
    def write_rows(self, verb: str = "store rows", *, durable: bool = True) -> Iterator[Connection]:
        """Change rows that no record shows yet, or that no journal follows.

        Args:
            verb: what is done, for whoever has to wait.
            durable: sync at the commit. Rows that only become visible by a later commit may leave it to that
                one: the log is written in order, so syncing its end makes all of it durable.
        """
        with self._writing(verb) as conn, self._transaction(conn, durable=durable):
            yield conn

    @contextmanager
    def _writing(self, verb: str) -> Iterator[Any]:
        """Hold the writer lock, with a log that can be relied on."""
        if self.read_only:
            raise ReadOnly(f"{self.path} may not be written")
        conn = self.connection()
        with self._locked(verb) as lock:
            if self._file() != self._local.file:  # what is written to a file without its name is lost with the process
                raise Corrupt(f"{self.path} was removed or replaced while it was open; open the store again")
            try:
                if os.pread(lock, 1, locks.NOTE_SIZE) == _DOUBT:
                    self._renew_log(conn, lock)
                yield conn
            except (sqlite.DatabaseError, UnicodeDecodeError) as error:
                self._note_doubt(error)
                raise meaning(error, self.path) from error

    @contextmanager
    def _transaction(self, conn: Any, *, durable: bool) -> Iterator[None]:
        """Commit what the block does, or nothing of it. The caller holds the writer lock."""
        try:
            if not durable:
                conn.execute("PRAGMA synchronous = NORMAL")
            conn.execute("BEGIN IMMEDIATE")
            try:
                yield
                conn.execute("COMMIT")
            except BaseException:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
            self._checkpoint(conn)
        finally:
            if not durable:
                conn.execute("PRAGMA synchronous = FULL")

    def _renew_log(self, conn: Connection, lock: int) -> None:
        """Move the whole log into the database and begin a new one.

        A sync of the log has failed. The kernel may have dropped what was to be written and calls the rest synced, so
        the next sync would succeed over a hole, and a power loss would take every commit behind it.

        Raises:
            Busy: a reader keeps the log from being moved.
        """
        busy = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Busy(f"catalog is busy: a write failed, and {self.path}-wal cannot be moved while it is read")
        with contextlib.suppress(FileNotFoundError):
            log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(log)  # the old one must not come back over what was moved out of it
            finally:
                os.close(log)
        os.pwrite(lock, b" ", locks.NOTE_SIZE)

    def _checkpoint(self, conn: Connection) -> None:
        """Move a grown WAL into the database; only ever under the writer lock."""
        try:
            size = os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return
        if size > CHECKPOINT_SIZE:
            # A reader of an old snapshot only makes it move less; the next commit tries again. After a
            # complete move the file is cut, so that its size says how much there is to move.
            try:
                conn.execute("PRAGMA busy_timeout = 0")
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite.OperationalError as error:
                self._note_doubt(error)
            conn.execute(f"PRAGMA busy_timeout = {int(self._wait_s * 1000)}")

    def empty_log(self) -> int:
        """Move all that was committed into the database, and cut the log to nothing: on a full disk that is room.

        Returns:
            Bytes that the log held of what was committed since it was last cut; 0 when it could not be emptied.
        """
        conn = self.connection()
        if self.read_only or conn.in_transaction:
            return 0
        try:
            with self._locked("empty the log"):
                conn.execute("PRAGMA busy_timeout = 0")
                try:
                    _, frames, _ = conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    busy, _, _ = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                except sqlite.OperationalError as error:
                    self._note_doubt(error)
                    raise
                page_size = conn.execute("PRAGMA page_size").fetchone()[0]
        except (sqlite.OperationalError, Busy):  # the database itself would have to grow, or somebody reads
            return 0
        finally:
            conn.execute(f"PRAGMA busy_timeout = {int(self._wait_s * 1000)}")
        return 0 if busy else int(frames * page_size)

    @contextmanager
    def exclusive(self, verb: str) -> Iterator[None]:
        """Hold the writer lock without a transaction, for work on the catalog's files themselves.

        Raises:
            Busy: another writer held the lock for too long.
        """
        with self._locked(verb):
            yield

    @contextmanager
    def _locked(self, verb: str) -> Iterator[int]:
        """Hold the writer lock; gives the descriptor of its file."""
        if getattr(self._local, "locked", False):
            raise RuntimeError("a write transaction inside another")
        descriptor = self._open_lock()
        try:
            locks.take(descriptor, fcntl.LOCK_EX, "the catalog", wait_s=self._wait_s)
            self._local.locked, self._local.lock = True, descriptor
            locks.note(descriptor, verb)
            yield descriptor
        finally:
            self._local.locked = False
            os.close(descriptor)

    def _note_doubt(self, error: Exception) -> None:
        """After a failing disk's refusal, note that the log may have a hole; the caller holds the writer lock."""
        if "disk I/O error" in str(error):
            with contextlib.suppress(OSError):  # the disk may be gone altogether; the first error tells so
                os.pwrite(self._local.lock, _DOUBT, locks.NOTE_SIZE)

    def _open_lock(self) -> int:
        try:
            return private.opened(self._lock_path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise ReadOnly(f"{self._lock_path} may not be written") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Full(f"{self._lock_path}: {os.strerror(error.errno).lower()}") from error
            raise

    def close(self) -> None:
        """Close the connections of all threads; none may be working with its own."""
        if not self.database.is_closed():
            self.database.close()
        for connection in list(self._connections):
            connection.close()


class WriteTransaction:
    """A transaction that changes records. ``touch`` notes which, before the change."""

    def __init__(self, conn: Connection, verb: str) -> None:
        self.conn = conn
        self.verb = verb
        self.touched: dict[tuple[RecordKind, str], str | None] = {}

    def touch(self, kind: RecordKind, record_id: str) -> None:
        """Note a record that is about to change, with its state before."""
        from lading.catalog import records

        if (kind, record_id) not in self.touched:
            self.touched[kind, record_id] = records.state_text(self.conn, kind, record_id)
