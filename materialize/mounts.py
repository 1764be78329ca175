"""Overlay mounts: made by the fd-based interface where the kernel has it, by mount(2) elsewhere.

Every mount with an upper directory says ``redirect_dir=off,metacopy=off,index=off``: what is written must
be complete where it lies, and a lowerdir may be another mount's upper.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from lading.errors import InUse, InvalidInput, LadingError, Unsupported
from lading.materialize import syscalls
from lading.materialize.beneath import told
from lading.materialize.holders import holders
from lading.materialize.imagemount import ImageAbilities, attached_images, open_image
from lading.values import printable

#: mount(2) takes a page of options, NUL included.
_OPTIONS_MAX: Final = 4095

#: fsconfig takes strings of 256 bytes, NUL included.
_STRING_MAX: Final = 255

_FIXED: Final = {"redirect_dir": "off", "metacopy": "off", "index": "off"}


class MountAbilities(ImageAbilities, Protocol):
    """What a mount needs to know of the machine."""

    @property
    def new_mount_api(self) -> bool:
        """fsopen and its kind work."""

    @property
    def lowerdir_plus(self) -> bool:
        """Overlay takes lowerdirs one by one."""

    @property
    def trusted_xattrs(self) -> bool:
        """``trusted.*`` attributes can be set."""


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One line of the kernel's mount table."""

    path: Path
    fstype: str
    source: str
    options: str
    root: str = "/"  #: the part of its filesystem that is seen
    device: str = ""  #: major:minor of its filesystem


def unescaped(text: str) -> str:
    """Undo the octal escapes of the mount table."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mountinfo(process: int | str = "self") -> list[MountInfo]:
    """Read a process's mount table, oldest first; of another root or namespace as it sees it.

    Raises:
        OSError: the process has ended.
    """
    found = []
    # The kernel escapes no carriage return: lines end in newlines alone.
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        for line in table:
            fields = line.split(" ")
            dash = fields.index("-")
            found.append(
                MountInfo(
                    Path(unescaped(fields[4])),
                    fields[dash + 1],
                    unescaped(fields[dash + 2]),
                    fields[dash + 3].rstrip("\n"),
                    unescaped(fields[3]),
                    fields[2],
                )
            )
    return found


def is_mounted(target: Path) -> bool:
    """Tell whether something is mounted exactly at a path."""
    resolved = Path(os.path.realpath(target))
    return any(mount.path == resolved for mount in mountinfo())


def find_mounts(prefix: str) -> list[MountInfo]:
    """List mounts whose source begins with a text."""
    return [mount for mount in mountinfo() if mount.source.startswith(prefix)]


@dataclass(frozen=True, slots=True)
class LowerDir:
    """One layer of a stack."""

    path: Path  #: of a folder, or of an image
    image: bool = False
    namespace: int = -1  #: descriptor of the user namespace through whose maps owners are shown; -1: as they are
    data: Path | None = None  #: folder that the files of an image without contents lead to


def mount_overlay(
    lowers: Sequence[LowerDir],
    upper: Path | None,
    work: Path | None,
    target: Path,
    *,
    source: str,
    read_only: bool,
    volatile: bool = False,
    options: Mapping[str, str | None] | None = None,
    attributes: int = 0,
    abilities: MountAbilities,
) -> None:
    """Stack folders and show them at a mount point.

    Args:
        lowers: topmost first; at least two when there is no upper.
        upper: where writes go; None for a read-only stack.
        work: scratch beside ``upper``, empty.
        target: an existing folder.
        source: what the mount table shows as source.
        read_only: refuse writes although there may be an upper.
        volatile: skip syncing.
        options: further overlay options; None as value of a flag.
        attributes: ``MOUNT_ATTR_`` bits of :func:`mount_options`.
        abilities: what works here.

    Raises:
        Unsupported: the kernel refuses, with its own words where it says any.
        InvalidInput: an option the kernel does not take.
    """
    settings: dict[str, str | None] = {**_FIXED, **(options or {})}
    if not abilities.trusted_xattrs:
        settings["userxattr"] = None
        settings["redirect_dir"] = "nofollow"  # the kernel takes no other word for "off" beside it
    if volatile and upper is not None:
        settings["volatile"] = None
    if abilities.new_mount_api and abilities.lowerdir_plus:
        _mount_new(lowers, upper, work, target, source, _attributes(attributes, read_only), settings, abilities)
    else:
        images = [lower.path for lower in lowers if lower.image]
        with attached_images(images, target.parent, abilities) as folders:
            plain = [folders.get(lower.path, lower.path) for lower in lowers]
            _mount_old(plain, upper, work, target, source, _attributes(attributes, read_only), settings)
    if upper is not None and not read_only and os.statvfs(target).f_flag & os.ST_RDONLY:
        syscalls.umount2(os.fsencode(target), 0)
        raise Unsupported(f"overlay at {target} came out read-only: {upper} cannot be an upper directory")


#: Options of a mount itself, as bits that fsmount and mount(2) happen to share for these.
_ATTRIBUTES: Final = {
    "ro": (syscalls.MOUNT_ATTR_RDONLY, True), "rw": (syscalls.MOUNT_ATTR_RDONLY, False),
    "nosuid": (syscalls.MOUNT_ATTR_NOSUID, True), "suid": (syscalls.MOUNT_ATTR_NOSUID, False),
    "nodev": (syscalls.MOUNT_ATTR_NODEV, True), "dev": (syscalls.MOUNT_ATTR_NODEV, False),
    "noexec": (syscalls.MOUNT_ATTR_NOEXEC, True), "exec": (syscalls.MOUNT_ATTR_NOEXEC, False),
}  # fmt: skip

#: Options that we set ourselves; what they would choose otherwise is not open to choice.
_OURS: Final = frozenset({"redirect_dir", "metacopy", "index", "lowerdir", "upperdir", "workdir", "volatile"})


def mount_options(words: Sequence[str]) -> tuple[dict[str, str | None], int]:
    """Sort mount options into those of overlay and those of the mount itself.

    Args:
        words: as in ``mountopt``: ``nodev``, ``xino=off``, ….

    Returns:
        Options for ``mount_overlay``, and the bits for its ``attributes``. Options that choose how overlay keeps
        what is written are left out: see the module's first lines.
    """
    options: dict[str, str | None] = {}
    bits = 0
    for word in words:
        key, equals, value = word.partition("=")
        if word in _ATTRIBUTES:
            bit, on = _ATTRIBUTES[word]
            bits = bits | bit if on else bits & ~bit
        elif key and key not in _OURS:
            options[key] = value if equals else None
    return options, bits


def _attributes(bits: int, read_only: bool) -> int:
    return bits | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)


def _mount_new(
    lowers: Sequence[LowerDir], upper: Path | None, work: Path | None, target: Path, source: str, attributes: int,
    settings: Mapping[str, str | None], abilities: MountAbilities,
) -> None:  # fmt: skip
    opened: list[int] = []
    descriptor = -1
    try:
        shown = _all_shown(lowers, opened, abilities)
        descriptor = syscalls.fsopen(b"overlay")
        syscalls.fsconfig_string(descriptor, b"source", source.encode()[:_STRING_MAX])
        for path in shown:
            syscalls.fsconfig_string(descriptor, b"lowerdir+", path)
        if upper is not None and work is not None:
            syscalls.fsconfig_string(descriptor, b"upperdir", _plain(upper, opened))
            syscalls.fsconfig_string(descriptor, b"workdir", _plain(work, opened))
        for key, value in settings.items():
            if value is None:
                syscalls.fsconfig_flag(descriptor, key.encode())
            else:
                syscalls.fsconfig_string(descriptor, key.encode(), value.encode())
        syscalls.fsconfig_create(descriptor)
        mount = syscalls.fsmount(descriptor, attributes)
        try:
            syscalls.move_mount(mount, os.fsencode(target))
        finally:
            os.close(mount)
    except OSError as error:
        raise _meaning(error, target, _kernel_words(descriptor)) from error
    finally:
        for number in (*opened, descriptor):
            if number >= 0:
                os.close(number)


def _shown(lower: LowerDir, opened: list[int], abilities: MountAbilities) -> bytes:
    """The path by which overlay finds a layer; it takes a mount of its own from it."""
    if not lower.image and lower.namespace < 0:
        return _plain(lower.path, opened)
    mount = open_image(lower.path, abilities) if lower.image else syscalls.open_tree_clone(os.fsencode(lower.path))
    opened.append(mount)
    if lower.namespace >= 0:
        syscalls.mount_setattr_idmap(mount, lower.namespace)
    return b"/proc/self/fd/%d" % opened[-1]


def _plain(path: Path, opened: list[int]) -> bytes:
    """A folder's path as fsconfig takes it: not too long, and free of what overlay takes for an escape."""
    raw = os.fsencode(path)
    return raw if len(raw) <= _STRING_MAX and b"\\" not in raw else _short(path, opened).encode()


def _all_shown(lowers: Sequence[LowerDir], opened: list[int], abilities: MountAbilities) -> list[bytes]:
    """Paths for all layers; images without contents, and what lies between and below them, become one layer."""
    shown = [_shown(lower, opened, abilities) for lower in lowers]
    first = next((number for number, lower in enumerate(lowers) if lower.data is not None), None)
    if first is None:
        return shown
    data = lowers[first].data
    assert data is not None
    opened.append(_with_data(shown[first:], data))
    return [*shown[:first], b"/proc/self/fd/%d" % opened[-1]]


def _with_data(layers: Sequence[bytes], data: Path) -> int:
    """A read-only overlay of layers and the folder that files of images lead to, attached nowhere.

    All layers go into it, since deletions would have no effect beyond one of their own. What is written goes to an
    overlay on top that knows nothing of redirects.
    """
    descriptor = syscalls.fsopen(b"overlay")
    try:
        syscalls.fsconfig_string(descriptor, b"source", b"lading:data")
        for layer in layers:
            syscalls.fsconfig_string(descriptor, b"lowerdir+", layer)
        syscalls.fsconfig_string(descriptor, b"datadir+", os.fsencode(data))
        syscalls.fsconfig_string(descriptor, b"metacopy", b"on")
        syscalls.fsconfig_string(descriptor, b"redirect_dir", b"on")
        syscalls.fsconfig_create(descriptor)
        return syscalls.fsmount(descriptor, syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        words = _kernel_words(descriptor) or (error.strerror or "").lower()
        raise Unsupported(f"an image of redirects cannot be mounted: {printable(words)}") from error
    finally:
        os.close(descriptor)


def _kernel_words(descriptor: int) -> str:
    """What the kernel says of a refusal, one line a read."""
    lines = []
    with suppress(OSError):
        while text := os.read(descriptor, 4096):
            lines.append(text.decode(errors="replace").strip().removeprefix("e ").removeprefix("w "))
    return "; ".join(lines)


def _meaning(error: OSError, target: Path, words: str) -> LadingError:
    why = printable(words or (error.strerror or "").lower())
    if error.errno == errno.EINVAL and "context" in words:
        return InvalidInput(f"overlay at {target}: invalid argument ({why})")
    return Unsupported(f"overlay at {target} cannot be mounted: {(error.strerror or '').lower()} ({why})")


def _mount_old(
    lowers: Sequence[Path], upper: Path | None, work: Path | None, target: Path, source: str, attributes: int,
    settings: Mapping[str, str | None],
) -> None:  # fmt: skip
    """mount(2): lowerdirs go through short links of our own, since a page of options does not hold many paths."""
    opened: list[int] = []
    try:
        parts = [f"lowerdir={':'.join(_short(path, opened) for path in lowers)}"]
        if upper is not None and work is not None:
            parts += [f"upperdir={_short(upper, opened)}", f"workdir={_short(work, opened)}"]
        parts += [key if value is None else f"{key}={value}" for key, value in settings.items()]
        options = os.fsencode(",".join(parts))
        if len(options) > _OPTIONS_MAX:
            raise Unsupported(f"overlay at {target}: {len(lowers)} layers are too many for mount(2) on this kernel")
        try:
            syscalls.mount(source.encode(), os.fsencode(target), b"overlay", attributes, options)
        except OSError as error:
            raise _meaning(error, target, "") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _short(path: Path, opened: list[int]) -> str:
    """A short path, without special characters, that leads to a folder while its descriptor is open."""
    opened.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return f"/proc/self/fd/{opened[-1]}"


def bind_read_only(folder: Path, target: Path) -> None:
    """Show a folder at another place, read-only, without devices and without privileges by file.

    Raises:
        Unsupported: the kernel refuses.
    """
    flags = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID
    try:
        syscalls.mount(os.fsencode(folder), os.fsencode(target), b"none", syscalls.MS_BIND, b"")
        try:
            syscalls.mount(b"none", os.fsencode(target), b"none", syscalls.MS_BIND | syscalls.MS_REMOUNT | flags, b"")
        except OSError:
            detach(target)  # never leave the pool's files open to a writer
            raise
    except OSError as error:
        raise Unsupported(f"{target} cannot be mounted: {(error.strerror or '').lower()}") from error


def unmount(target: Path) -> None:
    """Detach a mount, never lazily.

    Raises:
        InUse: processes work in it; the message names them.
    """
    try:
        syscalls.umount2(os.fsencode(target), 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            names = holders(target)
            raise InUse(f"{target} is in use" + (f" by {', '.join(names)}" if names else "")) from error
        if error.errno == errno.EINVAL:
            return  # nothing is mounted there any more
        if error.errno == errno.EPERM:
            raise Unsupported(f"{target} may not be unmounted by this user") from error
        raise


def detach(target: Path) -> None:
    """Detach a mount at once, whoever looks at it: only for one that nobody was told of."""
    syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


def sync_filesystem(path: Path) -> None:
    """Put everything written to a path's filesystem onto stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with told(path):
            syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)
