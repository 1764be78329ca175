"""Reading and hashing every stored byte: what was not looked at for longest first, and never twice in one pass.

A pass that was interrupted, by whatever, goes on with the next. Nothing is held while bytes are read: no lock, no epoch,
no snapshot of the catalog. What a collection moves or removes meanwhile is looked up again before it counts as damage.
What was found goes into the catalog in small commits; a store that cannot be written to is read all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from lading.catalog import damage as catalog_damage
from lading.catalog.damage import Pass
from lading.flows import damage
from lading.flows.context import Context
from lading.objects.folder import FolderBackend
from lading.objects.verify import Finding
from lading.values import Location

#: Stored bytes after which what was found is noted: a kill loses no more than the reading of so much. Small packs are
#: gathered up to it, so that thousands of them cost no commit each.
GROUP_SIZE: Final = 64 << 20

#: The same for a run that is to end soon, and the seconds of reading for one that is slow.
SHORT_GROUP_SIZE: Final = 4 << 20
_NOTED_S: Final = 2.0

#: Longest sleep at a time of one who reads slowly.
_NAP_S: Final = 1.0


@dataclass
class Budget:
    """How fast bytes are read, and for how long."""

    rate: int = 0  #: stored bytes in a second; 0: as fast as it goes
    seconds: float = 0.0  #: begin nothing after this time; 0: no limit

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._deadline = self._began + self.seconds
        self._read = 0

    def pace(self, size: int) -> None:
        """Wait until so many more bytes may be read."""
        if not self.rate:
            return
        while (early := self._began + self._read / self.rate - time.monotonic()) > 0:
            time.sleep(min(early, _NAP_S))
        # Time that was not used, for instance between two packs, is not made up for by a burst.
        self._began = max(self._began, time.monotonic() - self._read / self.rate - _NAP_S)
        self._read += size

    @property
    def group_size(self) -> int:
        """Stored bytes to read before they are noted: a run that is slow, or short, must get somewhere, too."""
        if self.rate:
            return min(GROUP_SIZE, max(1, int(self.rate * _NOTED_S)))
        return SHORT_GROUP_SIZE if self.seconds else GROUP_SIZE

    def is_used_up(self) -> bool:
        """Whether the time is over."""
        return bool(self.seconds) and time.monotonic() >= self._deadline


@dataclass
class Scrubbed:
    """What one run has read."""

    objects: int = 0
    bytes: int = 0  #: plain bytes of these
    findings: list[Finding] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  #: what could not be looked at, a sentence each
    earlier: int = 0  #: objects that earlier runs of the same pass have looked at
    left: tuple[int, int] = (0, 0)  #: objects and plain bytes that the pass has still to look at

    def words(self) -> str:
        """What was looked at, and what was not."""
        text = f"every byte of {self.objects} objects, {self.bytes} bytes"
        if self.earlier:
            text += f"; {self.earlier} objects were verified earlier in this pass and not read again"
        if self.left[0]:
            text += f"; not read yet: {self.left[0]} objects, {self.left[1]} bytes"
        return text


def scrub(context: Context, budget: Budget) -> Scrubbed:
    """Go on with the pass that was interrupted, or begin one.

    Args:
        context: one store.
        budget: how fast, and for how long.
    """
    recorded = context.writable and not context.catalog.read_only
    with context.catalog.read() as conn:
        # A store that is only read keeps no account of ours: all of it is read.
        state = catalog_damage.begin_pass(conn) if recorded else Pass(1 << 62)
        before = state.objects
    result = Scrubbed(earlier=before)
    done: set[str] = set()
    if recorded:
        catalog_damage.put_pass(context.catalog, state)  # so that it has begun, whatever becomes of this run
    while not budget.is_used_up():
        with context.catalog.read() as conn:
            packs = [name for name in catalog_damage.outstanding_packs(conn, state.began_ns) if name not in done]
        if not packs:
            break
        for group, ended in _groups(context, packs, state, budget.group_size):
            if budget.is_used_up():
                break
            done.update(ended)
            state = _read(context, group, state, budget, result)
            if recorded:
                catalog_damage.put_pass(context.catalog, state)
    if recorded:
        with context.catalog.read() as conn:
            result.left = catalog_damage.outstanding(conn, state.began_ns)
        if not result.left[0]:
            state = replace(state, ended_ns=max(time.time_ns(), state.began_ns))
        catalog_damage.put_pass(context.catalog, state)
    else:
        result.left = _unread(context, done)
    return result


def _groups(
    context: Context, packs: Sequence[str], state: Pass, most: int
) -> Iterator[tuple[list[Location], list[str]]]:
    """Gather what is to be read of packs until it is worth a commit; packs are cut only for who reads less at a time.

    Yields:
        Objects, and the packs of which these are the last.
    """
    group: list[Location] = []
    ended: list[str] = []
    size = 0
    for name in packs:
        with context.catalog.read() as conn:
            found = catalog_damage.outstanding_objects(conn, name, state.began_ns)
        for item in found:
            if most < GROUP_SIZE and group and size + item.stored_size > most:
                yield group, ended
                group, ended, size = [], [], 0
            group.append(item)
            size += item.stored_size
        ended.append(name)
        if size >= most:
            yield group, ended
            group, ended, size = [], [], 0
    if group or ended:
        yield group, ended


def _read(context: Context, group: list[Location], state: Pass, budget: Budget, result: Scrubbed) -> Pass:
    """Read some packs and note what was found."""
    started = time.monotonic()
    backend = FolderBackend(context.layout.packs)  # of our own: no deleted pack is kept open for longer
    try:
        found, sound = damage.verified(context, backend, group, budget.pace)
    except OSError as error:
        names = sorted({item.pack for item in group})
        if len(names) > 1:
            for name in names:
                state = _read(context, [item for item in group if item.pack == name], state, budget, result)
            return state
        result.unread.append(f"pack {names[0]} could not be checked: {(error.strerror or str(error)).lower()}")
        return state
    finally:
        backend.close()
    bad = [finding.location for finding in found if finding.location is not None]
    noted = damage.record(context, bad, sound, max(time.time_ns(), state.began_ns))
    if bad and not noted and context.writable and not context.catalog.read_only:
        result.unread.append(
            "what was found to be damaged could not be noted, so that nothing heals it: run the check again"
        )
    size = sum(item.size for item in group)
    result.findings += found
    result.objects += len(group)
    result.bytes += size
    return replace(
        state, objects=state.objects + len(group), bytes=state.bytes + size, damaged=state.damaged + len(bad),
        seconds=state.seconds + time.monotonic() - started,
    )  # fmt: skip


def _unread(context: Context, done: set[str]) -> tuple[int, int]:
    with context.catalog.read() as conn:
        rows = conn.execute(
            "SELECT p.name, count(*), sum(o.size) FROM object o JOIN pack p ON p.id = o.pack_id GROUP BY 1"
        )
        left = [(count, size) for name, count, size in rows if name not in done]
    return sum(count for count, _ in left), sum(size for _, size in left)
