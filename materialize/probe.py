"""What the kernel, the filesystem and the privileges allow: tried out on the cache folder itself.

Answers hold for a boot and are kept in the run root; tests and the command line may give their own.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from blake3 import blake3

from lading import private
from lading.errors import LadingError, Unsupported
from lading.materialize import mounts, shift, syscalls
from lading.values import PRESENT, Entry, IDMap, Inode

_FILE: Final = "abilities.json"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What works here."""

    root: bool  #: owners, devices and all attributes can be given
    overlay: bool  #: overlay can be mounted with an upper on the cache's filesystem
    new_mount_api: bool
    lowerdir_plus: bool
    trusted_xattrs: bool
    mknod: bool
    shifted_lowers: bool  #: overlay takes lowerdirs whose owners are shifted by an id-mapped mount
    erofs_file: bool = False  #: an EROFS image is mounted from its file
    erofs_loop: bool = False  #: an EROFS image is mounted from a loop device
    data_only: bool = False  #: overlay takes lowerdirs that only hold what others' files lead to
    doubtful: bool = False  #: the disk was full or failing, so that the other answers are not to be relied on

    @property
    def erofs(self) -> bool:
        """Whether EROFS images can be mounted, one way or the other."""
        return self.erofs_file or self.erofs_loop


def probe(cache: Path, run: Path) -> Abilities:
    """Tell what works for trees below the cache folder.

    Args:
        cache: the store's cache folder; a scratch folder is made in it and removed.
        run: folder of this boot's state; remembers the answer when it exists.
    """
    note = run / _FILE
    known = _read(note)
    if known is not None:
        return known
    found = _try_out(cache)
    if run.is_dir() and not found.doubtful:
        with suppress(OSError):  # it is only remembered to save time
            temporary = note.with_suffix(f".{os.getpid()}")
            with open(private.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                json.dump({**_who(), **asdict(found)}, file)
            os.rename(temporary, note)
    return found


def _who() -> dict[str, str | int]:
    """For whom an answer holds: a boot, a user, a user namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"boot": boot, "uid": os.geteuid(), "namespace": os.stat("/proc/self/ns/user").st_ino}


def _read(note: Path) -> Abilities | None:
    try:
        values = json.loads(note.read_bytes())
        if any(values.pop(key) != value for key, value in _who().items()):
            return None
        return Abilities(**{field.name: bool(values[field.name]) for field in fields(Abilities)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Doubt(Exception):
    """Something failed that says nothing about what can be done here."""


#: A full or failing disk: another time the answer may be another.
_PASSING: Final = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def _try_out(cache: Path) -> Abilities:
    try:
        return _try_all(cache)
    except _Doubt:
        return Abilities(os.geteuid() == 0, False, False, False, False, False, False, doubtful=True)


def _try_all(cache: Path) -> Abilities:
    import shutil
    import tempfile

    try:
        scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=cache))
    except OSError as error:
        _refuse_passing(error)
        return Abilities(os.geteuid() == 0, False, False, False, False, False, False)
    try:
        trusted = _can(lambda: os.setxattr(scratch, "trusted.lading.probe", b"1"))
        device = _can(lambda: os.mknod(scratch / "device", 0o020600, os.makedev(0, 0)))
        api = _can(_try_fsopen)
        for lowerdir_plus in (True, False) if api else (False,):
            abilities = Abilities(os.geteuid() == 0, True, api, lowerdir_plus, trusted, device, False)
            if _can(lambda: _try_overlay(scratch, abilities)):  # noqa: B023 - called within the round
                shifted = lowerdir_plus and _can(lambda: _try_shifted(scratch, abilities))  # noqa: B023 - as above
                return _with_images(scratch, replace(abilities, shifted_lowers=shifted))
        return Abilities(os.geteuid() == 0, False, api, False, trusted, device, False)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _can(attempt: object) -> bool:
    assert callable(attempt)
    try:
        attempt()
    except (OSError, LadingError) as error:
        _refuse_passing(error)
        return False
    return True


def _refuse_passing(error: BaseException) -> None:
    """Raise :class:`_Doubt` when the cause may pass."""
    cause: BaseException | None = error
    while cause is not None:
        # A limit of zero user namespaces, which is for good, is told as "no space", too: by calls without a file.
        named = isinstance(cause, OSError) and (cause.errno != errno.ENOSPC or cause.filename is not None)
        if isinstance(cause, OSError) and named and cause.errno in _PASSING:
            raise _Doubt from error
        cause = cause.__cause__


def _try_fsopen() -> None:
    os.close(syscalls.fsopen(b"overlay"))


def _try_overlay(scratch: Path, abilities: Abilities) -> None:
    """Mount a small stack, write through it, unmount it."""
    if os.geteuid() != 0:
        raise PermissionError("mounting needs root")
    folders = [scratch / f"{name}{int(abilities.lowerdir_plus)}" for name in ("lower", "upper", "work", "merged")]
    for folder in folders:
        private.make_folder(folder)
    lower, upper, work, merged = folders
    layer = mounts.LowerDir(lower)
    mounts.mount_overlay([layer], upper, work, merged, source="lading:probe", read_only=False, abilities=abilities)
    try:
        (merged / "written").write_bytes(b"x")
    finally:
        mounts.detach(merged)  # somebody may be looking through the cache; nothing of it is anybody's


def _with_images(scratch: Path, abilities: Abilities) -> Abilities:
    """Try out a small image: from its file, else from a loop device; then one that leads to another folder."""
    if not abilities.trusted_xattrs:
        return abilities  # in a user namespace, where the kernel mounts no EROFS
    for way in ("erofs_file", "erofs_loop"):
        tried = replace(abilities, **{way: True})
        if _can(lambda: _try_image(scratch, tried, redirected=False)):  # noqa: B023 - called within the round
            leads = tried.lowerdir_plus and _can(lambda: _try_image(scratch, tried, redirected=True))  # noqa: B023 - as above
            return replace(tried, data_only=leads)
    return abilities


def _try_image(scratch: Path, abilities: Abilities, *, redirected: bool) -> None:
    """Stack an image of one file below an upper, and read the file."""
    from lading.materialize import erofs

    name = f"{'loop' if abilities.erofs_loop else 'file'}{int(redirected)}"
    upper, work, merged, data = (scratch / f"{name}-{part}" for part in ("upper", "work", "merged", "data"))
    for folder in (upper, work, merged, data):
        private.make_folder(folder)
    image = scratch / f"{name}.img"
    (data / "content").write_bytes(b"x")
    entry = Entry(b"file", PRESENT, Inode("f", 0o644, 0, 0, 0, size=1, digest=blake3(b"x").digest()))
    with open(image, "xb+") as file:
        redirect = (lambda _: b"/content") if redirected else None
        erofs.write_image(file.fileno(), [entry], _One(b"x"), redirect=redirect)
    layer = mounts.LowerDir(image, image=True, data=data if redirected else None)
    mounts.mount_overlay([layer], upper, work, merged, source="lading:probe", read_only=False, abilities=abilities)
    try:
        if (merged / "file").read_bytes() != b"x":
            raise Unsupported("images are not read rightly")
    finally:
        mounts.detach(merged)


class _One:
    """A source of one content."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def contents(self, digests: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
        """Hand it out, however often."""
        for _ in digests:
            yield iter((self._data,))


def _try_shifted(scratch: Path, abilities: Abilities) -> None:
    """Mount a stack over a lowerdir with shifted owners, look at them, and write to a file of it."""
    folders = [scratch / f"shifted-{name}" for name in ("lower", "upper", "work", "merged")]
    for folder in folders:
        private.make_folder(folder)
    lower, upper, work, merged = folders
    (lower / "file").write_bytes(b"x")
    ranges = [IDMap(0, 10_000, 10)]
    namespace = shift.namespace(ranges, ranges)
    try:
        layer = mounts.LowerDir(lower, namespace=namespace)
        mounts.mount_overlay([layer], upper, work, merged, source="lading:probe", read_only=False, abilities=abilities)
        try:
            if os.stat(merged / "file").st_uid != 10_000:
                raise Unsupported("owners are not shifted")
            with open(merged / "file", "ab") as file:
                file.write(b"y")
            if os.stat(upper / "file").st_uid != 10_000:
                raise Unsupported("owners are not shifted when a file is copied up")
        finally:
            mounts.detach(merged)
    finally:
        os.close(namespace)
