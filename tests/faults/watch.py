"""Running a function in a process of its own, with a fault at one of its system calls."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.faults.calls import RULES, SYNCS, WRITES, Call, describe
from tests.faults.seccomp import (
    Listener,
    Stop,
    Unavailable,
    borrow_descriptor,
    install,
    read_memory,
    send_descriptor,
    take_descriptor,
)

#: Longest time between two calls, and from the last one to the end. Generous: the machine may be busy.
SILENCE_S: Final = 120.0

#: Files of which a part may be lost, and what is written next does not rest on it: after a failed sync the catalog's log
#: is moved away before the next commit, and no line of the journal follows one that was not committed.
_DOUBTED: Final = ("/catalog.db-wal", ".log")

#: What may go wrong: the process is killed before the call, or after half of a write; the call fails, alone or with
#: every one after it (a disk that is gone); a write takes half of the bytes, which is no error.
MODES: Final = ("kill", "torn", "eio", "enospc", "dead", "short")

_CODES: Final = {"eio": errno.EIO, "enospc": errno.ENOSPC, "dead": errno.EIO}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what happens at the n-th call with a label, counted from 0."""

    mode: str
    label: str
    nth: int = 0

    def __str__(self) -> str:
        return f"{self.mode} at {self.label} #{self.nth}"


@dataclass
class Outcome:
    """How a run ended."""

    status: int  #: exit status; negative for a signal
    out: str
    err: str
    trace: list[str] = field(default_factory=list)  #: labels of the calls, in order
    hit: bool = False  #: the fault came
    believed: list[str] = field(default_factory=list)  #: files synced once more after a sync of them had failed

    @property
    def killed(self) -> bool:
        """Whether it did not live to its end."""
        return self.status < 0


def forked(act: Callable[[], int]) -> Outcome:
    """Run a function in a process of its own, undisturbed."""
    return _run(act, None, "", watched=False)


def watched(act: Callable[[], int], base: str, fault: Fault | None) -> Outcome:
    """Run a function in a process of its own, noting its calls.

    Args:
        act: prints as a command does, and returns an exit status.
        base: the folder that labels leave out.
        fault: what is to go wrong; None for nothing.

    Raises:
        Unavailable: the kernel cannot do it.
        TimeoutError: it hung.
    """
    return _run(act, fault, base, watched=True)


def _run(act: Callable[[], int], fault: Fault | None, base: str, *, watched: bool) -> Outcome:
    out, err = os.memfd_create("out"), os.memfd_create("err")
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if not process:
        _child(act, out, err, here, there, watched=watched)
    there.close()
    try:
        outcome = Outcome(0, "", "")
        if watched:
            outcome = _supervise(process, here, fault, base)
        _, ended = os.waitpid(process, 0)
        outcome.status = os.waitstatus_to_exitcode(ended)
        outcome.out, outcome.err = _text(out), _text(err)
        if outcome.status == _UNAVAILABLE:
            raise Unavailable(outcome.err.strip())
        return outcome
    except BaseException:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        raise
    finally:
        here.close()
        os.close(out)
        os.close(err)


#: Exit status of a child that could not be filtered.
_UNAVAILABLE: Final = 77


def _child(
    act: Callable[[], int], out: int, err: int, here: socket.socket, there: socket.socket, *, watched: bool
) -> None:
    """The new process: never returns."""
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        here.close()
        if watched:
            try:
                listener = install(RULES)
            except Unavailable as error:
                os.write(2, str(error).encode())
                os._exit(_UNAVAILABLE)
            send_descriptor(there, listener)
            os.close(listener)
        there.close()
        status = act()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")


class _Gone(Exception):
    """The process was killed, as planned."""


def _supervise(process: int, channel: socket.socket, fault: Fault | None, base: str) -> Outcome:
    """Answer the process's stops until it has ended."""
    outcome = Outcome(0, "", "")
    descriptor = take_descriptor(channel)
    if descriptor is None:
        return outcome
    listener = Listener(descriptor)
    run = _Run(process, listener, fault, outcome)
    try:
        while (stop := listener.next(SILENCE_S)) is not None:
            call = describe(stop, process)
            if call is None or not listener.is_alive(stop):
                listener.go_on(stop)
                continue
            label = call.label(base)
            outcome.trace.append(label)
            run.answer(stop, call, label)
    except _Gone:
        pass
    except TimeoutError:
        os.kill(process, signal.SIGKILL)
        raise
    finally:
        listener.close()
    return outcome


class _Run:
    """What is to be answered at each stop of one run."""

    def __init__(self, process: int, listener: Listener, fault: Fault | None, outcome: Outcome) -> None:
        self._process = process
        self._listener = listener
        self._fault = fault
        self._outcome = outcome
        self._count = 0
        self._unsynced: set[str] = set()  # files that a sync failed for

    def answer(self, stop: Stop, call: Call, label: str) -> None:
        fault = self._fault
        if call.name in SYNCS and call.path in self._unsynced and not call.path.endswith(_DOUBTED):
            self._outcome.believed.append(label)
        if fault is None:
            self._listener.go_on(stop)
            return
        if call.name.startswith(("rename", "link")):  # a folder that changes again is to be synced for that
            self._unsynced.discard(os.path.dirname(call.path))
        is_it = not self._outcome.hit and label == fault.label and self._count == fault.nth
        self._count += label == fault.label
        if is_it:
            self._outcome.hit = True
        elif not (self._outcome.hit and fault.mode == "dead"):
            self._listener.go_on(stop)
            return
        self._strike(stop, call, fault.mode)

    def _strike(self, stop: Stop, call: Call, mode: str) -> None:
        if mode in ("torn", "short") and (call.name not in WRITES or call.path.startswith("/proc/")):
            mode = "kill" if mode == "torn" else "none"
        match mode:
            case "kill":
                self._kill()
            case "torn":
                self._write_half(stop, call)
                self._kill()
            case "short":
                self._listener.succeed(stop, self._write_half(stop, call))
            case "none":
                self._listener.go_on(stop)
            case _:
                if call.name in SYNCS:
                    self._unsynced.add(call.path)
                self._listener.fail(stop, _CODES[mode])

    def _kill(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        raise _Gone

    def _write_half(self, stop: Stop, call: Call) -> int:
        """Carry out the first half of a write in the process's place; at least a byte, so that it goes on."""
        descriptor, address, size = stop.arguments[:3]
        data = read_memory(self._process, address, max(size // 2, 1))
        borrowed = borrow_descriptor(self._process, descriptor & 0xFFFFFFFF)
        try:
            if call.name == "write":
                return os.write(borrowed, data)
            return os.pwrite(borrowed, data, stop.arguments[3])
        finally:
            os.close(borrowed)
