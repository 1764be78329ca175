"""A disk that records what is written to it, as a process of its own: ``python -m tests.powerloss.device``.

It serves two files by the kernel's FUSE protocol, nothing but `/dev/fuse` needed. ``disk.img`` is what a loop device lies
on: every write of a block is logged with its bytes, every flush as a barrier. ``marker`` is what a test writes its
acknowledgements to; they are logged in between. Both are direct: the kernel keeps nothing back, and a request is
answered once it is in the log.

It is a process, not a thread, because a process that waits for a page of its own disk cannot run the code that would
serve it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from enum import IntEnum
from pathlib import Path
from typing import Final

#: Kinds of log records: bytes at an offset of the disk, a flush, an acknowledgement.
WRITE, FLUSH, MARK = 1, 2, 3

#: A log record: kind, offset, size; then the bytes.
RECORD: Final = struct.Struct("<BQI")

_ROOT, _DISK, _MARKER = 1, 2, 3
_FILES: Final = {b"disk.img": _DISK, b"marker": _MARKER}


class Op(IntEnum):
    """Requests that the kernel makes here; all others are told that there is no such thing."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    DESTROY = 38
    BATCH_FORGET = 42


_IN: Final = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")

#: Bytes of one request: the largest that a direct write has, and room for its header.
_MAX_WRITE: Final = 1 << 20
_BUFFER: Final = _MAX_WRITE + 4096

#: The file is direct: no page of it is cached.
_DIRECT: Final = 1

#: Flags of INIT: large writes, and how many pages they have.
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22


class Disk:
    """The two files, and the log."""

    def __init__(self, image: Path, log: Path) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._size = os.fstat(self._image).st_size
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def serve(self, fuse: int) -> None:
        """Answer requests until the filesystem is unmounted."""
        while True:
            try:
                request = os.read(fuse, _BUFFER)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                if error.errno == errno.ENODEV:
                    return
                raise
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode in (Op.FORGET, Op.BATCH_FORGET):
                continue
            try:
                parts = self._answer(opcode, node, memoryview(request)[_IN.size :])
                code = 0
            except OSError as error:
                parts, code = b"", error.errno or errno.EIO
            try:
                os.writev(fuse, [_OUT.pack(_OUT.size + len(parts), -code, unique), parts])
            except FileNotFoundError:  # whoever asked was interrupted
                continue

    def _answer(self, opcode: int, node: int, body: memoryview) -> bytes:
        match opcode:
            case Op.INIT:
                return struct.pack(
                    "<IIIIHHIIHHI28x", 7, 31, 1 << 17, _BIG_WRITES | _MAX_PAGES, 16, 12, _MAX_WRITE, 1, 256, 0, 0
                )
            case Op.LOOKUP:
                found = _FILES.get(bytes(body).rstrip(b"\0"))
                if found is None:
                    raise OSError(errno.ENOENT, "")
                return struct.pack("<QQQQII", found, 0, 3600, 3600, 0, 0) + self._attributes(found)
            case Op.GETATTR | Op.SETATTR:
                return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
            case Op.OPEN:
                return struct.pack("<QII", 0, _DIRECT, 0)
            case Op.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                return os.pread(self._image, size, offset) if node == _DISK else b""
            case Op.WRITE:
                return self._write(node, body)
            case Op.FSYNC:
                if node == _DISK:
                    os.write(self._log, RECORD.pack(FLUSH, 0, 0))
                return b""
            case Op.STATFS:
                return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
            case Op.RELEASE | Op.FLUSH | Op.ACCESS | Op.DESTROY:
                return b""
        raise OSError(errno.ENOSYS, "")

    def _write(self, node: int, body: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        data = body[40 : 40 + size]
        kind = WRITE if node == _DISK else MARK
        os.writev(self._log, [RECORD.pack(kind, offset, size), data])
        if node == _DISK:
            os.pwrite(self._image, data, offset)
        return struct.pack("<II", size, 0)

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o40700, 0) if node == _ROOT else (0o100600, self._size if node == _DISK else 0)
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(image: str, log: str, folder: str) -> None:
    """Mount at a folder, say so on standard output, and serve."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode=40700,user_id=0,group_id=0"
    disk = Disk(Path(image), Path(log))
    if libc.mount(b"recorder", os.fsencode(folder), b"fuse", 6, options.encode()):  # neither devices nor set-ids
        raise OSError(ctypes.get_errno(), f"mount {folder}")
    print("ready", flush=True)
    disk.serve(fuse)


if __name__ == "__main__":
    main(*sys.argv[1:])
