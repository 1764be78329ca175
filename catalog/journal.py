"""The journal: one line for every transaction that changes records, written before the catalog commits it.

A segment is ``NNNNNNNN.log``. A line is JSON with a sequence number, the digest of the line before it, the
new state of every record it changes, and a checksum. The catalog keeps the head: segment, offset and digest of the last committed line. A
line whose transaction did not commit stays; the next one names the head, not it, so a reader that follows
the chain passes it over.

A *durable* line was synced, and its commit after it. Others may be lost with the machine's power, and so may
their commits, each without the other: the head and the lines say up to where nothing may be missing. See
docs/format-journal.md.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from lading import private
from lading.catalog.engine import Connection
from lading.errors import Corrupt, FileTooLarge, Full

#: Size from which a segment is closed by a snapshot of all live records.
SEGMENT_SIZE: Final = 8 << 20

#: Bytes of lines that may be unsynced in a relaxed store; with more, the next commit is durable. Bounds what a power loss
#: takes, and what every append reads again.
UNSYNCED_SIZE: Final = 64 << 10

_META_KEY: Final = "journal"


@dataclass(frozen=True, slots=True)
class Head:
    """The last committed line, and the last durable one before it, if it is not durable itself."""

    segment: int = 1
    offset: int = 0  #: where it ends
    seq: int = 0
    digest: str = ""
    durable: str = ""  #: digest of the newest durable line; empty for none
    synced: int = 0  #: bytes of the segment that are on stable storage

    @property
    def is_durable(self) -> bool:
        """Whether nothing up to here may be missing."""
        return self.durable == self.digest


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the journal."""

    seq: int
    prev: str
    body: dict[str, Any]
    digest: str
    segment: int
    end: int
    durable: str = ""  #: digest of the newest line that was durable when this one was written


def head(conn: Connection) -> Head:
    """Read the head that the catalog keeps."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (_META_KEY,)).fetchone()
    if row is None:
        return Head()
    values = json.loads(row[0])
    return Head(**{"durable": values["digest"], "synced": values["offset"], **values})


class Journal:
    """The journal of one store. Appends happen under the writer lock only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, segment: int) -> Path:
        """A segment's file."""
        return self._folder / f"{segment:08d}.log"

    def is_due(self, conn: Connection) -> bool:
        """Tell whether the next line must be durable even in a relaxed store."""
        at = head(conn)
        return at.offset - at.synced > UNSYNCED_SIZE or not self._is_whole(at)

    def has_loose_end(self, conn: Connection) -> bool:
        """Tell whether the head is not durable, or something lies behind it that no commit followed."""
        at = head(conn)
        return not at.is_durable or self._end(at.segment) != at.offset or self.path(at.segment + 1).exists()

    def append(self, conn: Connection, body: dict[str, Any], *, durable: bool = True) -> None:
        """Write a line behind the head, and move the head as part of the open transaction.

        Args:
            conn: the transaction; its commit must be synced when the line is to be durable.
            body: time, verb and changes.
            durable: sync the line. Without it, :meth:`is_due` must have said no under the same lock.

        Raises:
            Corrupt: the journal is further than the catalog: commits were lost; or it has lost synced lines.
        """
        at = head(conn)
        self._settle(at)
        if durable and not self._is_whole(at):
            from lading.catalog import records

            # Lines of relaxed commits went with the power, their commits did not: what they said is said anew.
            everything = [[kind, record_id, state] for kind, record_id, state in records.live(conn)]
            fresh = Head(at.segment + 1, 0, at.seq, "", at.durable, 0)
            ending = records.transient(conn)
            said = {"changes": everything} | ({"transient": ending} if ending else {})
            self._append_at(conn, fresh, body | said, durable=True)
            return
        self._append_at(conn, at, body, durable=durable)

    def _append_at(self, conn: Connection, at: Head, body: dict[str, Any], *, durable: bool) -> None:
        path = self.path(at.segment)
        text, digest = _encode(at, body)
        try:
            descriptor = private.opened(path, os.O_RDWR | os.O_CREAT)
            try:
                end = os.fstat(descriptor).st_size
                if end != at.offset:
                    end += os.pwrite(descriptor, b"\n", end)  # what was torn must not tear this one
                _write_at(descriptor, text, end)
                if durable:
                    _sync(descriptor, at)
            finally:
                os.close(descriptor)
            if not at.offset:  # the file may be new, or its maker was stopped before its name was durable
                _sync_folder(self._folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Full(f"{path}: {os.strerror(error.errno).lower()}") from error
            if error.errno == errno.EFBIG:
                raise FileTooLarge(f"{path}: {os.strerror(error.errno).lower()}") from error
            if error.errno is not None and not isinstance(error.filename, str | bytes):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        end += len(text)
        safe = (digest, end) if durable else (at.durable, at.synced)
        set_head(conn, Head(at.segment, end, at.seq + 1, digest, *safe))

    def _end(self, segment: int) -> int:
        try:
            return self.path(segment).stat().st_size
        except FileNotFoundError:
            return 0

    def _is_whole(self, at: Head) -> bool:
        """Tell whether the lines between the durable one and the head can be read: a power loss may have taken them."""
        if at.is_durable:
            return True
        if self._end(at.segment) < at.offset:
            return False
        before = {line.digest: line.prev for line in read_segment(self.path(at.segment), at.segment, start=at.synced)}
        step = at.digest
        while step != at.durable and step in before:
            step = before[step]
        return step == at.durable

    def _settle(self, at: Head) -> None:
        """Look at what lies behind the head, and remove a segment whose beginning was never committed.

        Lines of transactions that did not commit name the head, or one of their own kind, and the durable line that
        the head knows. A line that names another was only written after that one had been committed for good. An
        unfinished segment must go before the head moves on: as the newest segment it would hide every later line from
        a reader of the chain.
        """
        path = self.path(at.segment)
        end = self._end(at.segment)
        if end < at.synced:
            raise Corrupt(f"journal {path} is shorter than the catalog says; run `lading catalog rejournal`")
        if end > at.offset:
            _refuse_lost_commits(at, read_segment(path, at.segment, start=at.offset))
        unfinished = self.path(at.segment + 1)
        if unfinished.exists():
            _refuse_lost_commits(at, read_segment(unfinished, at.segment + 1))
            behind = [number for number in self._segments() if number > at.segment]
            for number in sorted(behind, reverse=True):  # the one that is looked for goes last
                self.path(number).unlink()
            _sync_folder(self._folder)

    def needs_snapshot(self, conn: Connection) -> bool:
        """Tell whether the current segment is long enough to be closed.

        It is at least as long as the snapshot that it rests on, so that storing snapshots stays in proportion to changes.
        """
        size = 0
        row = conn.execute("SELECT value FROM meta WHERE key = 'snapshot'").fetchone()
        if row is not None:
            row = conn.execute("SELECT size FROM object WHERE digest = ?", (bytes.fromhex(row[0]),)).fetchone()
            size = row[0] if row is not None else 0
        return head(conn).offset > max(SEGMENT_SIZE, size)

    def start_segment(self, conn: Connection, snapshot: str, at_ns: int) -> int:
        """Begin a new segment that rests on a snapshot object, as part of the open transaction.

        Returns:
            The segment's number.
        """
        at = head(conn)
        self._settle(at)
        if not at.is_durable:  # a reader that comes before the old segments are removed finds them whole
            with self.path(at.segment).open("r+b") as file:
                _sync(file.fileno(), at)
        body = {"at": at_ns, "verb": "snapshot", "snapshot": snapshot, "changes": []}
        self._append_at(conn, Head(at.segment + 1, 0, at.seq, at.digest, at.durable), body, durable=True)
        return at.segment + 1

    def renew(self, conn: Connection, after: Head, snapshot: str, at_ns: int) -> int:
        """Begin a segment behind all others, whatever state they are in, as part of the open transaction.

        Args:
            conn: the catalog.
            after: the line to go on behind; it need not be there.
            snapshot: object that holds all records as they are in the catalog.
            at_ns: the time.

        Returns:
            The segment's number.
        """
        segment = max(self._segments(), default=0) + 1
        body = {"at": at_ns, "verb": "snapshot", "snapshot": snapshot, "changes": []}
        self._append_at(conn, Head(segment, 0, after.seq, after.digest, after.digest), body, durable=True)
        return segment

    def _segments(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("*.log") if path.stem.isdigit()]

    def remove_before(self, segment: int) -> None:
        """Remove segments that a snapshot has replaced."""
        for path in sorted(self._folder.glob("*.log")):
            if int(path.stem) < segment:
                path.unlink()


def holds_lines(folder: Path) -> bool:
    """Tell whether anything was ever written to a journal."""
    return any(path.stat().st_size for path in folder.glob("*.log"))


def _refuse_lost_commits(at: Head, behind: Iterable[Line]) -> None:
    if any(line.durable != at.durable for line in behind):
        raise Corrupt("the catalog is older than its journal: commits were lost; run `lading catalog rebuild`")


def set_head(conn: Connection, at: Head) -> None:
    """Move the head, as part of the open transaction."""
    values = {"segment": at.segment, "offset": at.offset, "seq": at.seq, "digest": at.digest}
    if not at.is_durable:
        values |= {"durable": at.durable, "synced": at.synced}
    conn.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (_META_KEY, json.dumps(values)),
    )


def _encode(at: Head, body: dict[str, Any]) -> tuple[bytes, str]:
    """Make the line that follows a head.

    Returns:
        Its bytes and its digest.
    """
    links = {"seq": at.seq + 1, "prev": at.digest} | ({} if at.is_durable else {"durable": at.durable})
    text = json.dumps(links | body, separators=(",", ":"), ensure_ascii=False).encode()
    digest = blake3(text).hexdigest(16)
    return text + b" " + digest.encode() + b"\n", digest


def _sync(descriptor: int, at: Head) -> None:
    """Put a segment onto stable storage.

    What was not synced before is written once more first: where a sync fails, the kernel forgets that there was anything
    to write, and the next sync would succeed without it.
    """
    pending = os.pread(descriptor, at.offset - at.synced, at.synced)
    if pending:
        _write_at(descriptor, pending, at.synced)
    os.fdatasync(descriptor)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_line(raw: bytes, segment: int, end: int) -> Line | None:
    """Read a line; None when it is torn or damaged. Members that are not known stay in its body."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text, digest = raw.rstrip(b"\n").rsplit(b" ", 1)
        if raw.endswith(b"\n") and blake3(text).hexdigest(16).encode() == digest:
            body = json.loads(text)
            seq, prev = int(body.pop("seq")), str(body.pop("prev"))
            return Line(seq, prev, body, digest.decode(), segment, end, str(body.pop("durable", prev)))
    return None


def read_segment(path: Path, segment: int, *, start: int = 0) -> Iterator[Line]:
    """Read the whole lines of a segment from a line's beginning on; torn ones are passed over."""
    end = start
    with path.open("rb") as file:
        file.seek(start)
        for raw in file:
            end += len(raw)
            line = parse_line(raw, segment, end)
            if line is not None:
                yield line
