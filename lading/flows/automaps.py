"""Automatic maps: a user namespace of its own for a container, from sub-IDs that no other container has."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lading.catalog import containers as catalog_containers
from lading.errors import InvalidInput
from lading.flows import stores, views
from lading.flows.context import Context
from lading.idmaps import SUBGID, SUBUID, AutoMaps, MapRequest, Maps, allot, subordinate, with_additional
from lading.locks import file_lock
from lading.values import Layer

#: Accounts that stand for "nobody in particular": their numbers are no reason for a larger namespace.
_NOBODY: Final = frozenset({b"nobody", b"nogroup", b"nfsnobody"})

_OVERFLOW: Final = 65534

#: Bytes of a passwd or group file that are looked at.
_FILE_MAX: Final = 4 << 20


@contextmanager
def allotted(context: Context, request: MapRequest, top: Layer | None) -> Iterator[MapRequest]:
    """Turn a wish for automatic maps into maps; nobody else allots any until the block has ended.

    Raises:
        NoAvailableIDs: too few sub-IDs are left.
        InvalidInput: the image needs more IDs than are allowed.
    """
    if request.auto is None:
        yield request
        return
    folder = context.mount_table.folder
    with file_lock(folder / "userns.lock", "allotting of ID maps", "create-container", wait_s=context.settings.wait_s):
        yield with_additional(request, _maps(context, request.auto, top))


def _maps(context: Context, auto: AutoMaps, top: Layer | None) -> Maps:
    settings = context.settings
    size = auto.size or max(settings.auto_userns_min_size, auto.initial_size or 1, needed(context, auto, top))
    if not auto.size and size > settings.auto_userns_max_size:
        raise InvalidInput(
            f"the container needs a user namespace with size {size} that is bigger than the maximum value allowed "
            f"with userns=auto {settings.auto_userns_max_size}"
        )
    with context.catalog.read() as conn:
        others = catalog_containers.list_containers(conn)
    uids, gids = _available(settings.auto_userns_user)
    return Maps(
        allot(size, uids, [item for other in others for item in other.uidmap], auto.additional.uid),
        allot(size, gids, [item for other in others for item in other.gidmap], auto.additional.gid),
    )


def _available(user: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Host IDs to give out: root takes a configured user's sub-IDs, others what their own namespace has."""
    if os.geteuid() == 0:
        return subordinate(user, _number(user), SUBUID), subordinate(user, _number(user), SUBGID)
    own = pwd.getpwuid(os.geteuid()).pw_name
    sizes = [sum(count for _, count in subordinate(own, os.geteuid(), path)) for path in (SUBUID, SUBGID)]
    return [(1, sizes[0])], [(1, sizes[1])]


def _number(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def needed(context: Context, auto: AutoMaps, top: Layer | None) -> int:
    """One more than the largest ID that an image's files and accounts have; 0 for no image."""
    if top is None:
        return 0
    highest = 0
    for step in stores.chain(context, top):
        highest = max([highest, *(number for number in (*step.uids, *step.gids) if number != _OVERFLOW)])
    highest = max(highest, _highest_account(context, top))
    for path in (auto.passwd_file, auto.group_file):
        if path:
            highest = max(highest, _highest_in(_head_of(Path(path))))
    return highest + 1


def _highest_account(context: Context, top: Layer) -> int:
    """The largest ID in the image's own account files."""
    live = views.LiveFiles(context.objects)
    with stores.epochs(context):
        tree = views.stack(context, top, live).tree()
        found = 0
        for path in (b"etc/passwd", b"etc/group"):
            entry = tree.get(path)
            inode = entry.inode if entry is not None else None
            if inode is not None and inode.type == "f" and inode.digest and inode.size <= _FILE_MAX:
                found = max(found, _highest_in(b"".join(next(live.contents([inode.digest])))))
    return found


def _head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_MAX)
    except OSError:
        return b""


def _highest_in(data: bytes) -> int:
    """The largest user or group ID of an account file; lines that are none do not count."""
    return max(_ids(data.splitlines()), default=0)


def _ids(lines: Iterable[bytes]) -> Iterator[int]:
    for line in lines:
        fields = line.split(b":")
        if fields[0] in _NOBODY:
            continue
        for field in fields[2 : 4 if len(fields) > 4 else 3]:  # a group has no second number, but members
            if field.isdigit() and int(field) != _OVERFLOW:
                yield int(field)
