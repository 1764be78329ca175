"""Where the command begins: descriptors and signals are seen to before anything large is loaded.

Nothing is imported here but what the interpreter has at hand, so that a signal finds its handler while the rest
loads. What the command says and does is :mod:`lading.cli.main`'s; how a signal ends it is decided here alone.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

TYPE_CHECKING = False  # the one of ``typing``, without loading that
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Final, NoReturn

#: The name under which scripts of ``containers-storage`` find what they know.
COMPAT: Final = "lading-compat"

#: What is said of a signal.
STOPPED_BY: Final = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}

#: Signals that came, for what they raised may have been swallowed on the way: by a callback, or an error while tidying up.
received: list[int] = []

#: After this many seconds a signal that was swallowed is raised once more.
_ASK_AGAIN_S: Final = 0.01


class Stopped(BaseException):
    """A signal asks to end; unwinds everything, so that what was begun is tidied up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def compat() -> NoReturn:
    """Run the command as a stand-in for ``containers-storage``: its configuration files and its settings' rules."""
    main(program=COMPAT)


def main(arguments: Sequence[str] | None = None, program: str = "") -> NoReturn:
    """Run the command and exit with its status: 0, 1 for any failure, 125 for a wrong option, 128 and more for a signal.

    Args:
        arguments: the words after the program's name; None for the process's own.
        program: the name to run under; empty for the one it was called by.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A signal raises below _command and nowhere else: here, where the end is decided, no further one can get in between.
    try:
        status = _command(words, program or os.path.basename(sys.argv[0]))
    except BaseException as error:
        if not received and not isinstance(error, Stopped | KeyboardInterrupt):
            raise  # a mistake of this program's own
        status = _stopped(words)
    os._exit(status)  # everything is closed and written: taking a large heap apart would only cost time


def _command(words: list[str], program: str) -> int:
    """Load what runs commands, and run one. A signal unwinds it, at whatever point it is."""
    for number in STOPPED_BY:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup, or behind a shell's "&"
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    open_streams()
    # One command and out: cycles are few and small beside what a search for them costs among many rows.
    gc.set_threshold(200_000, 50, 50)

    from lading.cli.main import run

    if received:
        raise Stopped(received[0])  # something that was loaded has swallowed it
    return run(words, program)


def open_streams() -> None:
    """Put something in the place of standard streams that are closed, before a file of the store gets their numbers.

    Reading and writing fail there as with a closed descriptor, except that what is said on standard error is dropped:
    who closes that wants to hear nothing, and a warning must not end what it warns of.
    """
    for descriptor, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open, as the next two
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115


def _stop(number: int, frame: FrameType | None) -> None:
    """Take a signal: raise it where the command can be unwound, and only note it elsewhere.

    Raises:
        Stopped: below :func:`_command`.
    """
    received.append(number)
    while frame is not None:
        if frame.f_code is _unraisable.__code__:
            return _ask_again(number)
        if frame.f_code is _command.__code__:
            raise Stopped(number)
        frame = frame.f_back


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Take what was raised where nothing can be: a signal asks again a moment later, and what follows one is no news."""
    if isinstance(unraisable.exc_value, Stopped):
        _ask_again(unraisable.exc_value.number)
    elif not received:
        sys.__unraisablehook__(unraisable)


def _ask_again(number: int) -> None:
    signal.signal(signal.SIGALRM, lambda _, frame: _stop(number, frame))
    signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_S)


def _stopped(words: list[str]) -> int:
    """Say in one line which signal ended the command; with ``--debug`` the traceback before it."""
    from contextlib import suppress

    number = received[0] if received else signal.SIGINT
    status = 128 + number
    told = f"{STOPPED_BY[signal.Signals(number)]}\n"
    if "--debug" in words or "-D" in words:
        told = _traceback() + told
    # Whoever takes what is written may have stopped taking it: from here on one more signal ends the command at once.
    for other in STOPPED_BY:
        if signal.getsignal(other) is _stop:
            signal.signal(other, lambda *_: os._exit(status))
    with suppress(OSError):  # a closed pipe, or a terminal that has gone
        os.write(2, told.encode(errors="backslashreplace"))
    with suppress(OSError, ValueError, AttributeError):  # and it may be closed, or none yet
        sys.stdout.flush()
    return status


def _traceback() -> str:
    import traceback

    from lading.values import tamed

    return tamed(traceback.format_exc(), keep="\t\n")
