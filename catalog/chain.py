"""The journal read back: which lines count, what they say, and where the chain that they make has a hole.

A line names the one before it. The lines that count are found from the newest backwards, to the first line ever or
to one that opens its segment with a snapshot that is stored. A line that is named and not there is damage: the
lines before it count all the same, since each holds whole states, and what is missing is told. Where the missing line
was never durable, and none behind it is, a power loss took it: what came behind it is as if never made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from blake3 import blake3

from lading.catalog import records
from lading.catalog.journal import Head, Line, parse_line

#: A file that is longer than this without a newline is no journal: its lines are records' states.
_LINE_SIZE_MAX: Final = 256 << 20


#: A snapshot of no records: an object without bytes, which is not stored.
EMPTY: Final = blake3(b"").hexdigest()


class Place(NamedTuple):
    """Where a whole line lies, and what links it to others."""

    segment: int
    offset: int
    end: int
    seq: int
    prev: str
    digest: str
    durable: str  #: digest of the newest durable line when this one was written
    snapshot: str  #: object that holds all records as of this line; empty for ordinary ones
    said: bytes = b""  #: marks of what it says of records, see ``records.marks``, if they were asked for

    @property
    def says_all(self) -> bool:
        """Whether its changes are the states of every record: it follows lines that a power loss took."""
        return not self.prev and self.seq > 1


@dataclass(frozen=True, slots=True)
class Chain:
    """The lines that count, and what is known to be missing."""

    places: tuple[Place, ...] = ()  #: oldest first
    snapshot: str = ""  #: object with all records as of the first of them; empty when it is the first ever
    holes: tuple[str, ...] = ()  #: a sentence for each: commits that are lost
    dropped: int = 0  #: lines that were not durable, behind one that a power loss took
    damaged_end: bool = False  #: behind the last line stands what may have been one more

    @property
    def head(self) -> Head:
        """What a catalog that agrees with the chain keeps, once the segments are synced."""
        if not self.places:
            return Head()
        last = self.places[-1]
        return Head(last.segment, last.end, last.seq, last.digest, last.digest, last.end)


def segments(folder: Path) -> list[Path]:
    """The journal's files, oldest first."""
    return sorted((path for path in folder.glob("*.log") if path.stem.isdigit()), key=lambda path: int(path.stem))


#: The places of whole lines, and whether the last segment ends in something that has the form of a line and is none: a
#: damaged one, or one that was being written when the power went.
Scan = tuple[list[Place], bool]


def scan(folder: Path, *, said: bool = False) -> Scan:
    """Find the whole lines of all segments.

    Args:
        folder: the journal's.
        said: also note what they say of records.

    Raises:
        FileNotFoundError: a writer has removed a segment meanwhile.
    """
    places: list[Place] = []
    damaged_end = False
    for path in segments(folder):
        offset = 0
        damaged_end = False
        with path.open("rb") as file:
            while raw := file.readline(_LINE_SIZE_MAX):
                end = offset + len(raw)
                line = parse_line(raw, int(path.stem), end)
                if line is not None:
                    snapshot = str(line.body.get("snapshot", ""))
                    links = (line.seq, line.prev, line.digest, line.durable)
                    marks = records.marks(line.body.get("changes", ())) if said else b""
                    places.append(Place(line.segment, offset, end, *links, snapshot, marks))
                    damaged_end = False
                elif len(raw) > 1:
                    damaged_end = raw[-35:-33] == b"} " and raw.endswith(b"\n")
                offset = end
    return places, damaged_end


def find_chain(
    folder: Path,
    is_stored: Callable[[str], bool] | None = None,
    *,
    at: Head | None = None,
    scanned: Scan | None = None,
) -> Chain:
    """Follow the chain backwards, from the newest line or from a catalog's.

    Args:
        folder: the journal's.
        is_stored: tells whether a snapshot's object is there and sound. When None, the chain goes back as far as
            there are lines.
        at: a catalog's head: what was written behind it was not committed. When its line is not there, the newest one that
            was synced is begun with, and without that the newest of all.
        scanned: what :func:`scan` has just found there; None to look.
    """
    places, damaged_end = scanned or scan(folder)
    by_digest = {place.digest: place for place in places}
    chain: list[Place] = []
    holes: list[str] = []
    snapshot = ""
    dropped = 0
    step = places[-1] if places else None
    if at is not None:
        step = by_digest.get(at.digest) or by_digest.get(at.durable) or step
    while step is not None:
        chain.append(step)
        if step.snapshot and is_stored is not None and (step.snapshot == EMPTY or is_stored(step.snapshot)):
            snapshot = step.snapshot
            break
        if not step.prev:
            break
        before = by_digest.get(step.prev)
        if before is None and step.durable != step.prev and not _holds_durable(chain):
            dropped += len(chain)
            chain.clear()
            holes.clear()
            before = max((place for place in places if place[:2] < step[:2]), default=None)
        elif before is None:
            before = _last_before(places, step)
            holes.append(_hole(before, step))
        step = before
    return Chain(tuple(chain[::-1]), snapshot, tuple(holes[::-1]), dropped, damaged_end)


def _holds_durable(chain: Sequence[Place]) -> bool:
    """Tell whether a line of these is known to have been synced, and with it all before it."""
    return not {place.digest for place in chain}.isdisjoint(place.durable for place in chain)


def _last_before(places: Sequence[Place], at: Place) -> Place | None:
    """The newest line from before a missing one. Its equals in number were never committed: it followed the missing one's
    predecessor, or is it."""
    older = [place for place in places if place.seq < at.seq - 1]
    return max(older, key=lambda place: (place.seq, place.segment, place.offset), default=None)


def _hole(before: Place | None, at: Place) -> str:
    first, last = (before.seq if before else 0) + 1, at.seq - 1
    if at.snapshot and before is None:
        return f"the snapshot that journal line {at.seq} rests on is lost, and with it every record from before"
    lines = f"line {last} of the journal is" if first >= last else f"lines {first} to {last} of the journal are"
    return f"{lines} damaged or missing: what was changed there and not again later is lost"


def read_lines(folder: Path, places: Sequence[Place]) -> Iterator[Line]:
    """Read lines that were found, one at a time."""
    segment, descriptor = -1, -1
    try:
        for place in places:
            if place.segment != segment:
                if descriptor >= 0:
                    os.close(descriptor)
                path = folder / f"{place.segment:08d}.log"
                segment, descriptor = place.segment, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            raw = os.pread(descriptor, place.end - place.offset, place.offset)
            line = parse_line(raw, place.segment, place.end)
            if line is not None:
                yield line
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def read_chain(folder: Path) -> list[Line]:
    """Read the lines that count, as far back as there are any."""
    return list(read_lines(folder, find_chain(folder).places))


def lost_commits(folder: Path, at: Head, *, unsynced: bool = False, scanned: Scan | None = None) -> str:
    """Compare a catalog's head with the journal, while nobody writes.

    Args:
        folder: the journal's.
        at: the head.
        unsynced: also tell of lines up to the head that are lost and were never synced.
        scanned: what :func:`scan` has just found there; None to look.

    Returns:
        What is wrong, as a sentence; empty when they agree. Lines behind the head that know of no later durable one
        are of transactions that did not commit.
    """
    places, _ = scanned or scan(folder)
    wanted = at.digest if unsynced else at.durable
    if wanted and not any(place.digest == wanted for place in places):
        later = [place.seq for place in places if place.seq > at.seq and place.prev != at.digest]
        if later:  # the head is from before a snapshot that has replaced its segment
            return f"the catalog is older than its journal: {max(later) - at.seq} commits were lost"
        return "the journal has lost lines that the catalog has seen"
    behind = [place for place in places if (place.segment, place.end) > (at.segment, at.offset)]
    newer = [place for place in behind if place.durable != at.durable]
    if newer:
        count = max(place.seq for place in newer) - at.seq
        return f"the catalog is older than its journal: {count} commits were lost"
    return ""


def records_of(line: bytes) -> tuple[str, str, Mapping[str, Any]]:
    """Read one line of a snapshot: kind, id and state."""
    kind, record_id, state = json.loads(line)
    return str(kind), str(record_id), state
