"""Stopping a process at chosen system calls, and answering for the kernel (seccomp user notification, by ctypes).

No compiler and no tracer: the process to be watched installs a filter and hands the filter's listener to its
supervisor. The kernel then stops each of its threads at the calls of :mod:`tests.faults.calls`, until the supervisor
lets the call go on, or answers it.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINE: Final = platform.machine()

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 8
_RET_ALLOW: Final = 0x7FFF0000
_RET_USER_NOTIF: Final = 0x7FC00000
_RECV: Final = 0xC0502100
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1

_NOTIFICATION: Final = struct.Struct("<QIIiIQ6Q")
_ANSWER: Final = struct.Struct("<QqiI")

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_PIDFD_OPEN: Final = 434
_PIDFD_GETFD: Final = 438

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """This kernel cannot do it; the text says why."""


# Classic BPF over ``struct seccomp_data``: number at 0, architecture at 4, arguments from 16, eight bytes each.
_LD: Final = 0x20
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_RET: Final = 0x06


@dataclass(frozen=True, slots=True)
class Rule:
    """One system call to stop at."""

    number: int
    argument: int = -1  #: the argument that decides; -1: stop always
    bits: int = 0  #: stop only when the argument has one of these bits
    at_least: int = 0  #: ... or when it is no smaller than this ...
    below: int = 0xFFFFFFFF  #: ... and smaller than this


def _program(rules: Sequence[Rule]) -> bytes:
    """Compile the filter."""
    stop, allow = (_RET, 0, 0, _RET_USER_NOTIF), (_RET, 0, 0, _RET_ALLOW)
    code: list[tuple[int, int, int, int]] = [(_LD, 0, 0, 4), (_JEQ, 1, 0, _ARCHES[MACHINE]), allow, (_LD, 0, 0, 0)]
    for rule in rules:
        if rule.argument < 0:
            code += [(_JEQ, 0, 1, rule.number), stop]
        elif rule.bits:
            code += [
                (_JEQ, 0, 4, rule.number),
                (_LD, 0, 0, 16 + 8 * rule.argument),
                (_JSET, 0, 1, rule.bits),
                stop,
                allow,
            ]
        else:
            code += [
                (_JEQ, 0, 5, rule.number), (_LD, 0, 0, 16 + 8 * rule.argument), (_JGE, 0, 2, rule.at_least),
                (_JGE, 1, 0, rule.below), stop, allow,
            ]  # fmt: skip
    code.append(allow)
    return b"".join(struct.pack("<HBBI", *item) for item in code)


def install(rules: Sequence[Rule]) -> int:
    """Filter the calling thread and the threads and processes it will start.

    Returns:
        The listener's descriptor. Calls of the rules block from now on until somebody answers for it.

    Raises:
        Unavailable: with the reason.
    """
    if MACHINE not in _ARCHES:
        raise Unavailable(f"no system call numbers for {MACHINE}")
    program = _program(rules)
    buffer = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Unavailable("no_new_privs cannot be set")
    listener = int(_libc.syscall(_SECCOMP[MACHINE], _SET_MODE_FILTER, _NEW_LISTENER, descriptor))
    if listener < 0:
        raise Unavailable(f"seccomp user notification: {os.strerror(ctypes.get_errno()).lower()}")
    return listener


def send_descriptor(channel: socket.socket, descriptor: int) -> None:
    """Hand a descriptor to the process at the other end."""
    channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])


def take_descriptor(channel: socket.socket) -> int | None:
    """Take a descriptor that was handed over; None when the other end has gone."""
    message, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    if not message or not ancillary:
        return None
    numbers = array.array("i")
    numbers.frombytes(ancillary[0][2][:4])
    return numbers[0]


@dataclass(frozen=True, slots=True)
class Stop:
    """A thread that is stopped at a system call."""

    id: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class Listener:
    """The supervisor's end of a filter."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        with suppress(OSError):  # only faster where the kernel has it
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)

    def next(self, timeout_s: float) -> Stop | None:
        """Wait for a thread to stop.

        Returns:
            None once no filtered process is left.

        Raises:
            TimeoutError: nothing happened for so long.
        """
        while True:
            ready = self._poll.poll(timeout_s * 1000)
            if not ready:
                raise TimeoutError
            if not ready[0][1] & select.POLLIN:
                return None
            buffer = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self._descriptor, _RECV, buffer)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # killed between the two calls
                    continue
                raise
            number = _NOTIFICATION.unpack(buffer)
            return Stop(number[0], number[1], number[3], number[6:])

    def is_alive(self, stop: Stop) -> bool:
        """Tell whether the thread still waits: only then is what was read of its memory its own."""
        try:
            fcntl.ioctl(self._descriptor, _ID_VALID, struct.pack("<Q", stop.id))
        except OSError:
            return False
        return True

    def go_on(self, stop: Stop) -> None:
        """Let the kernel carry the call out."""
        self._answer(stop, 0, 0, _CONTINUE)

    def fail(self, stop: Stop, code: int) -> None:
        """Refuse the call."""
        self._answer(stop, 0, -code, 0)

    def succeed(self, stop: Stop, value: int) -> None:
        """Answer the call without carrying it out."""
        self._answer(stop, value, 0, 0)

    def _answer(self, stop: Stop, value: int, code: int, flags: int) -> None:
        try:
            fcntl.ioctl(self._descriptor, _SEND, _ANSWER.pack(stop.id, value, code, flags))
        except OSError as error:
            if error.errno != errno.ENOENT:  # it was killed meanwhile
                raise

    def close(self) -> None:
        """Let go: calls of what is still filtered fail from now on."""
        os.close(self._descriptor)


def borrow_descriptor(process: int, descriptor: int) -> int:
    """Duplicate a descriptor of another process, position and all."""
    handle = int(_libc.syscall(_PIDFD_OPEN, process, 0))
    if handle < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    try:
        found = int(_libc.syscall(_PIDFD_GETFD, handle, descriptor, 0))
        if found < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return found
    finally:
        os.close(handle)


def read_memory(process: int, address: int, size: int) -> bytes:
    """Read another process's memory."""
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, address)


def read_text(process: int, address: int) -> bytes:
    """Read a zero-terminated text of another process, up to what is mapped."""
    found = b""
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        while len(found) < 4096:
            part = os.pread(memory.fileno(), 256 - (address + len(found)) % 256, address + len(found))
            text, zero, _ = part.partition(b"\0")
            found += text
            if zero or not part:
                break
    return found
