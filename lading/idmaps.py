"""ID maps: which owner on this machine an owner inside a container is. Pure, but for reading sub-ID files.

Stored entries and tar streams carry container IDs always. A map comes in where a tree is shown (to host IDs)
and where a write area is read back (to container IDs).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lading.errors import InvalidInput, LadingError
from lading.values import Entry, IDMap, Inode

#: The owner of what a map has no place for.
OVERFLOW_ID: Final = 65534

SUBUID: Final = Path("/etc/subuid")
SUBGID: Final = Path("/etc/subgid")

_MAX_ID: Final = (1 << 32) - 1


class InvalidMappings(InvalidInput):
    """Ranges of an ID map overlap."""

    text = "invalid mappings specified"


class NoAvailableIDs(LadingError):
    """Too few sub-IDs are left for a user namespace."""

    text = "not enough unused IDs in user namespace"


@dataclass(frozen=True, slots=True)
class Maps:
    """An owner map and a group map; an empty one is the identity."""

    uid: tuple[IDMap, ...] = ()
    gid: tuple[IDMap, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uid or self.gid)

    @property
    def root(self) -> tuple[int, int]:
        """Host IDs of the container's root.

        Raises:
            InvalidInput: container ID 0 is not mapped.
        """
        return _root(self.uid), _root(self.gid)

    def to_host(self, uid: int, gid: int) -> tuple[int, int]:
        """Host IDs of an owner; what is not mapped overflows."""
        return (
            _forward(self.uid, uid, OVERFLOW_ID) if self.uid else uid,
            _forward(self.gid, gid, OVERFLOW_ID) if self.gid else gid,
        )

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """Container IDs of an owner on the host. What is not mapped overflows, but for root, who may write anywhere."""
        return (_backward(self.uid, uid) if self.uid else uid, _backward(self.gid, gid) if self.gid else gid)

    def has(self, uid: int, gid: int) -> bool:
        """Tell whether an owner has a place."""
        return all(
            not ranges or any(0 <= number - item.container_id < item.size for item in ranges)
            for ranges, number in ((self.uid, uid), (self.gid, gid))
        )

    def refuse_unmapped(self, uids: Iterable[int], gids: Iterable[int]) -> None:
        """Refuse owners that have no host ID.

        Raises:
            InvalidInput: with the first of them.
        """
        for ranges, ids in ((self.uid, uids), (self.gid, gids)):
            for number in ids:
                if ranges and not any(0 <= number - item.container_id < item.size for item in ranges):
                    raise InvalidInput(f"container ID {number} cannot be mapped to a host ID")

    def shown(self, entries: Iterable[Entry]) -> list[Entry]:
        """Entries with host IDs, as a tree on disk has them."""
        if not self:
            return list(entries)
        return [
            _owned(entry, *self.to_host(entry.inode.uid, entry.inode.gid)) if entry.inode else entry
            for entry in entries
        ]

    def read_back(self, entries: Iterable[Entry]) -> list[Entry]:
        """Entries with container IDs, of what was found on disk."""
        if not self:
            return list(entries)
        return [
            _owned(entry, *self.to_container(entry.inode.uid, entry.inode.gid)) if entry.inode else entry
            for entry in entries
        ]


NO_MAPS: Final = Maps()


def _owned(entry: Entry, uid: int, gid: int) -> Entry:
    inode = entry.inode
    assert inode is not None
    if (inode.uid, inode.gid) == (uid, gid):
        return entry
    found: Inode = inode._replace(uid=uid, gid=gid)
    return entry._replace(inode=found)


def _root(ranges: Sequence[IDMap]) -> int:
    if not ranges:
        return 0
    if len(ranges) == 1 and ranges[0].size == 1:
        return ranges[0].host_id
    found = _forward(ranges, 0, -1)
    if found < 0:
        raise InvalidInput("container ID 0 cannot be mapped to a host ID")
    return found


def _forward(ranges: Sequence[IDMap], number: int, missing: int) -> int:
    for item in ranges:
        if 0 <= number - item.container_id < item.size:
            return item.host_id + number - item.container_id
    return missing


def _backward(ranges: Sequence[IDMap], number: int) -> int:
    for item in ranges:
        if 0 <= number - item.host_id < item.size:
            return item.container_id + number - item.host_id
    return 0 if number == 0 else OVERFLOW_ID


@dataclass(frozen=True, slots=True)
class AutoMaps:
    """A wish for maps that no other container has."""

    size: int = 0  #: exactly this many IDs; 0 = as many as the image needs
    initial_size: int = 0  #: at least this many
    passwd_file: str = ""  #: counted beside the image's own
    group_file: str = ""
    additional: Maps = NO_MAPS  #: ranges to add as they are


@dataclass(frozen=True, slots=True)
class MapRequest:
    """What a caller says about a new record's maps."""

    maps: Maps = NO_MAPS
    host_uids: bool = False  #: no owner map, whatever the parent has
    host_gids: bool = False
    auto: AutoMaps | None = None

    def over(self, inherited: Maps) -> Maps:
        """The maps to use: those asked for, else none if the host's are wanted, else the inherited ones."""
        return Maps(
            self.maps.uid or (() if self.host_uids else inherited.uid),
            self.maps.gid or (() if self.host_gids else inherited.gid),
        )


NO_REQUEST: Final = MapRequest()


def parse_triples(text: str, kind: str) -> tuple[IDMap, ...]:
    """Read ``C:H:N[:C:H:N…]``.

    Args:
        text: the value; empty for no map.
        kind: "uid" or "gid", for the message.

    Raises:
        InvalidInput: in the contract's words.
    """
    if not text:
        return ()
    numbers = text.split(":")
    if len(numbers) % 3 or not all(word.isascii() and word.isdigit() and int(word) <= _MAX_ID for word in numbers):
        raise InvalidInput(
            f'initializing ID mappings: {kind} setting is malformed expected ["uint32:uint32:uint32"]: ["{text}"]'
        )
    values = [int(word) for word in numbers]
    return tuple(IDMap(*values[start : start + 3]) for start in range(0, len(values), 3))


def subordinate(name: str, number: int | None, path: Path) -> list[tuple[int, int]]:
    """Read a user's (or group's) ranges of sub-IDs.

    Args:
        name: the user.
        number: the user's ID, by which ranges may be listed as well; None when it is not known.
        path: the file; one that is missing has no ranges.

    Returns:
        (first, count) of each range.
    """
    wanted = {name} if number is None else {name, str(number)}
    found = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in wanted and fields[1].isdigit() and fields[2].isdigit():
            found.append((int(fields[1]), int(fields[2])))
    return found


def of_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[IDMap, ...]:
    """A map from 0 upwards onto ranges of sub-IDs, one after the other."""
    found = []
    start = 0
    for first, count in ranges:
        found.append(IDMap(start, first, count))
        start += count
    return tuple(found)


def sub_id_maps(user: str, group: str, *, subuid: Path = SUBUID, subgid: Path = SUBGID) -> Maps:
    """The maps of a user's and a group's sub-ID ranges.

    Raises:
        InvalidInput: one of them has none.
    """
    uids, gids = subordinate(user, None, subuid), subordinate(group, None, subgid)
    if not uids:
        raise InvalidInput(f'no subuid ranges found for user "{user}" in {subuid}')
    if not gids:
        raise InvalidInput(f'no subgid ranges found for group "{group}" in {subgid}')
    return Maps(of_ranges(uids), of_ranges(gids))


def refuse_overlaps(ranges: Sequence[IDMap]) -> None:
    """Refuse a map in which two ranges have a container ID or a host ID in common.

    Raises:
        InvalidMappings: with the ranges that are in conflict with an earlier one.
    """
    conflicts = [
        later for position, later in enumerate(ranges) if any(_overlap(earlier, later) for earlier in ranges[:position])
    ]
    if not conflicts:
        return
    words = ", ".join(f"{item.container_id}:{item.host_id}:{item.size}" for item in conflicts)
    if len(conflicts) == 1:
        raise InvalidMappings(f"the specified UID and/or GID mapping {words} conflicts with other mappings")
    raise InvalidMappings(f"the specified UID and/or GID mappings {words} conflict with other mappings")


def _overlap(one: IDMap, other: IDMap) -> bool:
    def meet(first: int, second: int) -> bool:
        return first < second + other.size and second < first + one.size

    return meet(one.container_id, other.container_id) or meet(one.host_id, other.host_id)


def without(ranges: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut taken ranges out of ranges; each is (first, count).

    Returns:
        What is left, lowest first.
    """
    left = sorted(item for item in ranges if item[1] > 0)
    for first, count in taken:
        kept = []
        for start, size in left:
            end, gone = start + size, first + count
            if gone <= start or end <= first:
                kept.append((start, size))
                continue
            if start < first:
                kept.append((start, first - start))
            if gone < end:
                kept.append((gone, end - gone))
        left = kept
    return left


def allot(
    size: int, available: Iterable[tuple[int, int]], used: Iterable[IDMap], additional: Sequence[IDMap]
) -> tuple[IDMap, ...]:
    """Make a map of a size from sub-ID ranges that nobody uses.

    Args:
        size: container IDs 0 to size-1 are to be mapped.
        available: (first, count) of host IDs.
        used: maps of other containers.
        additional: ranges to add as they are; neither side of them is given out again.

    Returns:
        Ranges, lowest host IDs first, then the additional ones.

    Raises:
        NoAvailableIDs: they do not suffice.
    """
    taken = [(item.host_id, item.size) for item in (*used, *additional)]
    hosts = without(available, taken)
    wanted = without([(0, size)], [(item.container_id, item.size) for item in additional])
    found = []
    while wanted:
        if not hosts:
            raise NoAvailableIDs()
        (inside, need), (outside, have) = wanted[0], hosts[0]
        count = min(need, have)
        found.append(IDMap(inside, outside, count))
        wanted[0] = (inside + count, need - count)
        hosts[0] = (outside + count, have - count)
        if not wanted[0][1]:
            wanted.pop(0)
        if not hosts[0][1]:
            hosts.pop(0)
    return (*found, *additional)


def with_additional(request: MapRequest, maps: Maps) -> MapRequest:
    """A request for maps that were found for its wish."""
    return replace(request, maps=maps, auto=None)
