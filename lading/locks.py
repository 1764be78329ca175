"""Lock files that die with their owner: waiting for one within a limit, and telling who holds it.

Only ``flock`` locks: they end with the process whatever ends it, so that no pid and no age is ever trusted. Every
wait for one goes through :func:`take`. Notes in the lock files are words for whoever waits, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from lading import private
from lading.errors import Busy
from lading.values import printable

#: Seconds to wait where a caller does not say.
WAIT_S: float = 30.0

#: Pauses between tries, growing from the first to the last.
_PAUSE_S: Final = (0.001, 0.05)

#: Bytes of a holder's note. A lock that several may hold has a place for each of so many, by process.
NOTE_SIZE: Final = 128
_PLACES: Final = 32

#: Holders that a message names.
_NAMED_MAX: Final = 3
_COMMAND_SIZE: Final = 60
_VERB_SIZE: Final = 40

#: ``struct flock`` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")


#: Last byte of a lock that has no end.
_END: Final = (1 << 63) - 1


class _Lock(NamedTuple):
    """A lock as the kernel lists it."""

    pid: int
    alone: bool
    first: int
    last: int


def take(descriptor: int, operation: int, what: str, *, wait_s: float | None = None) -> None:
    """Take an ``flock`` lock, waiting no longer than the limit.

    Args:
        descriptor: the lock file, or folder.
        operation: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``.
        what: what the lock guards, for the message.
        wait_s: seconds to wait; None for the usual limit.

    Raises:
        Busy: somebody else held it for longer; says who.
    """
    deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
    pause = _PAUSE_S[0]
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy(f"{what} is busy: held by {describe_holders(descriptor)}; try again") from None
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S[1])


def note(descriptor: int, verb: str, *, several: bool = False) -> None:
    """Say in a lock file that was taken who holds it, and for what.

    Args:
        descriptor: the lock file, open for writing.
        verb: what is done.
        several: some hold this lock together, so that each has a place of its own.
    """
    text = json.dumps({"pid": os.getpid(), "since": int(time.time()), "verb": verb[:_VERB_SIZE]}).encode()
    place = os.getpid() % _PLACES if several else 0
    with contextlib.suppress(OSError):  # only words for whoever waits
        if several and os.fstat(descriptor).st_size < NOTE_SIZE * _PLACES:
            os.ftruncate(descriptor, NOTE_SIZE * _PLACES)  # one size from the first: it counts in the store's balance
        os.pwrite(descriptor, text.ljust(NOTE_SIZE), place * NOTE_SIZE)


@contextmanager
def file_lock(path: Path, what: str, verb: str, *, wait_s: float, shared: bool | None = None) -> Iterator[None]:
    """Hold a lock file, made when it is missing.

    Args:
        path: the file; its folder exists.
        what: what it guards, for whoever has to wait.
        verb: what is done, likewise.
        wait_s: seconds to wait.
        shared: for a file that some hold together and others alone: which of the two; None for a file that
            everybody holds alone.

    Raises:
        Busy: somebody else held it for longer than the limit; says who.
    """
    descriptor = private.opened(path, os.O_RDWR | os.O_CREAT)
    try:
        take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, what, wait_s=wait_s)
        note(descriptor, verb, several=shared is not None)
        yield
    finally:
        os.close(descriptor)


def describe_holders(descriptor: int) -> str:
    """Name the processes that hold a lock file: what each does, and since when."""
    pids = _holding(descriptor)
    notes = _notes(descriptor)
    if not pids and len(notes) == 1:  # another container's processes are not shown to us
        pids = list(notes)
    words = [_described(pid, notes.get(pid)) for pid in pids[:_NAMED_MAX]]
    if len(pids) > _NAMED_MAX:
        words.append(f"{len(pids) - _NAMED_MAX} more")
    return " and ".join(words) or "another process"


def range_holder(descriptor: int, start: int, length: int, *, shared: bool = False) -> str:
    """Name another process whose lock of a file's bytes, SQLite's kind, keeps this one from taking them.

    Args:
        descriptor: the file. Whoever has locks of this kind on a file must not close any descriptor of it.
        start: the first byte.
        length: how many.
        shared: ask for a lock that several may have.

    Returns:
        Empty for none.
    """
    asked = _FLOCK.pack(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return ""
    return described(pid) if pid > 0 else "another process"  # of another container


def listed_holder(path: Path, start: int, length: int) -> str:
    """Name another process that has some of a file's bytes alone, opening nothing; less sure than :func:`range_holder`.

    Returns:
        Empty for none that is known.
    """
    try:
        found = _listed(os.stat(path), "POSIX")
    except FileNotFoundError:
        return ""
    others = [lock.pid for lock in found if lock.alone and lock.first < start + length and lock.last >= start]
    return next((described(pid) for pid in others if pid != os.getpid()), "")


def described(pid: int) -> str:
    """A process by its number and, where it can be read, its command."""
    return _described(pid, None)


def _described(pid: int, said: tuple[str, int] | None) -> str:
    if said is not None:
        verb, since = said
        return f"process {pid} ({printable(verb)}), since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(since))}"
    command = _command(pid)
    return f"process {pid} ({command})" if command else f"process {pid}"


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip()
    except OSError:
        return ""
    return printable(words.decode(errors="replace")[:_COMMAND_SIZE])


def _notes(descriptor: int) -> dict[int, tuple[str, int]]:
    """What holders wrote, now or earlier: verb and since when, by process."""
    found = {}
    try:
        data = os.pread(descriptor, NOTE_SIZE * _PLACES, 0)
    except OSError:  # a folder, or not ours to read
        return {}
    for start in range(0, len(data), NOTE_SIZE):
        try:
            values = json.loads(data[start : start + NOTE_SIZE])
            pid, since = int(values["pid"]), int(values["since"])
            time.gmtime(since)
            found[pid] = (str(values["verb"]), since)
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            continue
    return found


def _holding(descriptor: int) -> list[int]:
    """Processes that hold a ``flock`` lock on a file."""
    return list({lock.pid: None for lock in _listed(os.fstat(descriptor), "FLOCK")})


def _listed(status: os.stat_result, kind: str) -> list[_Lock]:
    """Locks of a file that processes hold, as the kernel lists them.

    A filesystem may have another device number there than a file's status tells: such a list finds nobody.
    """
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    return [
        _Lock(int(pid), way == "WRITE", int(first), int(last) if last.isdigit() else _END)
        for _, form, _, way, pid, file, first, last in (fields for fields in lines if len(fields) == 8)
        if form == kind and file == wanted and pid.isdigit() and int(pid)
    ]
