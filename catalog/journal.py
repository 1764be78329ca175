"""The journal: one line for every transaction that changes records, synced before the catalog commits it.

A segment is ``NNNNNNNN.log``. A line is JSON with a sequence number, the digest of the line before it, the
new state of every record it changes, and a checksum. The catalog keeps the head: segment, offset and digest of the last committed line. A
line whose transaction did not commit stays; the next one names the head, not it, so a reader that follows
the chain passes it over. See docs/format-journal.md.
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

from lading.catalog.database import Connection
from lading.errors import Corrupt, Full

#: Size from which a segment is closed by a snapshot of all live records.
SEGMENT_SIZE: Final = 8 << 20

_META_KEY: Final = "journal"


@dataclass(frozen=True, slots=True)
class Head:
    """The last committed line."""

    segment: int = 1
    offset: int = 0
    seq: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the journal."""

    seq: int
    prev: str
    body: dict[str, Any]
    digest: str
    segment: int
    end: int


def head(conn: Connection) -> Head:
    """Read the head that the catalog keeps."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (_META_KEY,)).fetchone()
    return Head(**json.loads(row[0])) if row else Head()


class Journal:
    """The journal of one store. Appends happen under the writer lock only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, segment: int) -> Path:
        """A segment's file."""
        return self._folder / f"{segment:08d}.log"

    def append(self, conn: Connection, body: dict[str, Any]) -> None:
        """Write a line behind the head, sync it, and move the head as part of the open transaction.

        Raises:
            Corrupt: the journal is further than the catalog: commits were lost.
        """
        at = head(conn)
        self._settle(at)
        self._append_at(conn, at, body)

    def _append_at(self, conn: Connection, at: Head, body: dict[str, Any]) -> None:
        path = self.path(at.segment)
        is_new = not path.exists()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                end = os.fstat(descriptor).st_size
                if end != at.offset:
                    end += os.pwrite(descriptor, b"\n", end)  # what was torn must not tear this one
                text, digest = _encode(at.seq + 1, at.digest, body)
                _write_at(descriptor, text, end)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                _sync_folder(self._folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Full(f"{path}: {os.strerror(error.errno).lower()}") from error
            raise
        _set_head(conn, Head(at.segment, end + len(text), at.seq + 1, digest))

    def _settle(self, at: Head) -> None:
        """Look at what lies behind the head, and remove a segment whose beginning was never committed.

        Lines of transactions that did not commit name the head itself. A line that names one of them was only
        written after that one had been committed. An unfinished segment must go before the head moves on: as
        the newest segment it would hide every later line from a reader of the chain.
        """
        path = self.path(at.segment)
        end = path.stat().st_size if path.exists() else 0
        if end < at.offset:
            raise Corrupt(f"journal {path} is shorter than the catalog says; run `lading check`")
        if end > at.offset:
            _refuse_lost_commits(at, [line for line in read_segment(path, at.segment) if line.end > at.offset])
        unfinished = self.path(at.segment + 1)
        if unfinished.exists():
            _refuse_lost_commits(at, read_segment(unfinished, at.segment + 1))
            unfinished.unlink()
            _sync_folder(self._folder)

    def needs_snapshot(self, conn: Connection) -> bool:
        """Tell whether the current segment is long enough to be closed."""
        return head(conn).offset > SEGMENT_SIZE

    def start_segment(self, conn: Connection, snapshot: str, at_ns: int) -> int:
        """Begin a new segment that rests on a snapshot object, as part of the open transaction.

        Returns:
            The segment's number.
        """
        at = head(conn)
        self._settle(at)
        body = {"at": at_ns, "verb": "snapshot", "snapshot": snapshot, "changes": []}
        self._append_at(conn, Head(at.segment + 1, 0, at.seq, at.digest), body)
        return at.segment + 1

    def remove_before(self, segment: int) -> None:
        """Remove segments that a snapshot has replaced."""
        for path in sorted(self._folder.glob("*.log")):
            if int(path.stem) < segment:
                path.unlink()


def holds_lines(folder: Path) -> bool:
    """Tell whether anything was ever written to a journal."""
    return any(path.stat().st_size for path in folder.glob("*.log"))


def _refuse_lost_commits(at: Head, behind: Iterable[Line]) -> None:
    if any(line.prev != at.digest for line in behind):
        raise Corrupt("the catalog is older than its journal: commits were lost; run `lading check`")


def _set_head(conn: Connection, at: Head) -> None:
    value = json.dumps({"segment": at.segment, "offset": at.offset, "seq": at.seq, "digest": at.digest})
    conn.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (_META_KEY, value),
    )


def _encode(seq: int, prev: str, body: dict[str, Any]) -> tuple[bytes, str]:
    """Make a line.

    Returns:
        Its bytes and its digest.
    """
    text = json.dumps({"seq": seq, "prev": prev, **body}, separators=(",", ":"), ensure_ascii=False).encode()
    digest = blake3(text).hexdigest(16)
    return text + b" " + digest.encode() + b"\n", digest


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


def read_segment(path: Path, segment: int) -> Iterator[Line]:
    """Read the whole lines of a segment; torn ones are passed over."""
    end = 0
    with path.open("rb") as file:
        for raw in file:
            end += len(raw)
            with suppress(ValueError, KeyError, TypeError):
                text, digest = raw.rstrip(b"\n").rsplit(b" ", 1)
                if raw.endswith(b"\n") and blake3(text).hexdigest(16).encode() == digest:
                    body = json.loads(text)
                    yield Line(body.pop("seq"), body.pop("prev"), body, digest.decode(), segment, end)


def read_chain(folder: Path) -> list[Line]:
    """Read the journal's lines that count: the chain that ends at the newest line."""
    lines = [line for path in sorted(folder.glob("*.log")) for line in read_segment(path, int(path.stem))]
    by_digest = {line.digest: line for line in lines}
    chain: list[Line] = []
    line = lines[-1] if lines else None
    while line is not None:
        chain.append(line)
        line = by_digest.get(line.prev)
    return chain[::-1]
