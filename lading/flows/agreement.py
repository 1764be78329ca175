"""Whether the catalog and its journal say the same: line by line, and record by record.

A catalog's head names the line that its rows agree with. What all lines up to there say, replayed, are the records as
they were committed; whatever else the rows say, somebody has changed by other means. Only marks of states are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lading.catalog import chain, records
from lading.catalog.chain import Chain
from lading.catalog.engine import Connection
from lading.catalog.journal import Head, head
from lading.errors import LadingError
from lading.flows.context import Context
from lading.flows.tidying import reason
from lading.values import RECORD_KINDS, printable

#: Looks at a journal that is being written to, until one falls between two writers.
_TRIES: Final = 20

#: What comes of a state, in a line or a snapshot with the right digest, that is of no form that is known.
_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError)

_UNREAD: Final = "records could not be compared with the journal: {}"

#: Records of which it is told what differs: their states are held in memory.
_DETAILED_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a comparison found: sentences, each with the way out."""

    lines: tuple[str, ...] = ()  #: what is wrong with the journal's lines, or with the catalog's head
    records: tuple[str, ...] = ()  #: records whose rows are not what was committed
    unread: tuple[str, ...] = ()  #: why records could not be compared
    compared: bool = False  #: whether records were


def compare(context: Context, *, unsynced: bool = False) -> Agreement:
    """Compare the journal with the catalog, also while others write.

    Records are only compared with a journal that is whole up to the catalog's head: after a power loss in a relaxed store
    it need not be, until the next writer says everything anew.

    Args:
        context: the store.
        unsynced: also tell of lines that were never synced, and are lost; the next writer says them anew.
    """
    folder = context.layout.journal
    compared: tuple[str, ...] | None = None
    for _ in range(_TRIES):
        with context.catalog.read() as conn:
            before = head(conn)
            rows = _marked(conn) if compared is None else {}
        lost, kept, unread = "", Chain(), ""
        try:
            try:
                scanned, said = chain.scan(folder, said=compared is None), True
            except _MALFORMED:
                scanned, said = chain.scan(folder), False  # what is wrong with its lines can be told all the same
            lost = chain.lost_commits(folder, before, unsynced=unsynced, scanned=scanned)
            kept = chain.find_chain(folder, _is_located(context), at=before, scanned=scanned)
            if not said:
                unread = _UNREAD.format("a line is not of the form that it should have")
            elif compared is None and _is_whole(kept, before):
                compared = _differences(context, kept if before.digest else Chain(), rows)
        except FileNotFoundError:
            continue  # a writer has just removed a segment that a snapshot, or nothing, has taken the place of
        except LadingError as error:
            unread = _UNREAD.format(reason(error))
        except _MALFORMED:
            unread = _UNREAD.format("the snapshot is not of the form that it should have")
        with context.catalog.read() as conn:
            if head(conn) != before:
                continue  # a line that was read may be newer than the head: neither is wrong
        if lost.startswith("the catalog"):
            return Agreement((f"{lost}; run `lading catalog rebuild`",))
        if lost or kept.holes:
            found = [lost] if lost else kept.holes
            return Agreement(tuple(f"{words}; the catalog has it: run `lading catalog rejournal`" for words in found))
        return Agreement((), compared or (), (unread,) if unread else (), compared is not None)
    return Agreement(
        (), compared or (), (), compared is not None
    )  # written to all the while, and every writer compares the lines


def _is_located(context: Context) -> Callable[[str], bool]:
    return lambda digest: bool(context.locate([bytes.fromhex(digest)]))


def _is_whole(kept: Chain, at: Head) -> bool:
    """Tell whether a chain holds all that was committed up to a head, and nothing else."""
    if not at.digest:
        return True  # nothing was: every line is newer, or was never committed
    return bool(kept.places) and kept.places[-1].digest == at.digest and not kept.holes and not kept.dropped


def _marked(conn: Connection) -> dict[bytes, bytes]:
    """The marks of all rows' records and states."""
    return {records.mark(kind, name): records.state_mark(kind, state) for kind, name, state in records.live(conn)}


def _differences(context: Context, kept: Chain, rows: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """Compare what a chain says with rows.

    Returns:
        A sentence for each record that differs.

    Raises:
        LadingError: the chain's snapshot cannot be read.
    """
    told: dict[bytes, bytes] = {}
    for item in _snapshot(context, kept):
        records.replay(told, records.marks([item]))
    for place in kept.places:
        records.replay(told, place.said)
    if told == rows:
        return ()
    wrong = {record for record in told.keys() | rows.keys() if told.get(record) != rows.get(record)}
    said: dict[tuple[str, str], Any] = {}
    for kind, name, state in _everything(context, kept):
        if records.mark(kind, name) in wrong:
            said[kind, name] = state if len(said) < _DETAILED_MAX else None
    with context.catalog.read() as conn:
        have: dict[tuple[str, str], Any] = {
            (kind, name): state for kind, name, state in records.live(conn) if records.mark(kind, name) in wrong
        }
    return tuple(
        words
        for kind, name in sorted(said.keys() | have.keys(), key=lambda key: (RECORD_KINDS.index(key[0]), key[1]))
        if (words := _words(kind, name, told, rows, said.get((kind, name)), have.get((kind, name))))
    )


def _words(
    kind: Any,
    name: str,
    told: Mapping[bytes, bytes],
    rows: Mapping[bytes, bytes],
    said: Mapping[str, Any] | None,
    have: Mapping[str, Any] | None,
) -> str:
    """Tell how a record differs.

    Args:
        kind: the record's.
        name: its id.
        told: marks of what the journal says.
        rows: marks of what the catalog said at the same point.
        said: its state in the journal, when that is known.
        have: its state in the catalog now, which may be a later one.
    """
    record = records.mark(kind, name)
    who, way_out = f"{kind} {printable(name)}", "run `lading catalog rebuild` to go back to what was committed"
    if record not in rows:
        return f"{who}: recorded in the journal, missing in the catalog; {way_out}"
    if record not in told:
        return f"{who}: in the catalog, and not recorded in the journal; {way_out}"
    fields = ""
    if said is not None and have is not None and records.state_mark(kind, have) == rows[record]:
        committed = records.current(kind, said)
        fields = ", ".join(member for member, value in have.items() if value != committed[member])
    return f"{who}: its record differs from the journal{f' ({fields})' if fields else ''}; {way_out}"


def _snapshot(context: Context, kept: Chain) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """The states that a chain begins with."""
    if kept.snapshot in ("", chain.EMPTY):
        return
    with context.reader.open(bytes.fromhex(kept.snapshot)) as file:
        for line in file:
            yield chain.records_of(line)


def _everything(context: Context, kept: Chain) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """All states that a chain tells of, oldest first."""
    yield from (item for item in _snapshot(context, kept) if item[0] in RECORD_KINDS)
    for line in chain.read_lines(context.layout.journal, kept.places):
        yield from ((kind, name, state) for kind, name, state in line.body.get("changes", ()) if kind in RECORD_KINDS)
