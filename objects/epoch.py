"""Epochs: how a collection knows that nobody relies on what it removes.

Every operation that relies on objects holds a shared lock on the newest epoch's file, taken before it looks
anything up. A collection condemns garbage, opens the next epoch, and removes what was condemned once it
gets the old epoch's file alone. Locks die with their owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lading import locks, private
from lading.objects.durable import fsync_dir, translating

_PREFIX: Final = "epoch."


class Epochs:
    """The epochs of one store, as lock files ``epoch.N`` in its objects folder."""

    def __init__(self, folder: Path, *, create: bool = True, wait_s: float = locks.WAIT_S) -> None:
        """Use a folder.

        Args:
            folder: the store's objects folder.
            create: make the first epoch when there is none; else nothing is ever made there.
            wait_s: longest wait for a collection that tries whether an epoch has ended.
        """
        self._folder = folder
        self._create = create
        self._wait_s = wait_s

    def numbers(self) -> list[int]:
        """Epochs whose file is there, oldest first."""
        names = [name.removeprefix(_PREFIX) for name in os.listdir(self._folder) if name.startswith(_PREFIX)]
        return sorted(int(name) for name in names if name.isdigit())

    def current(self) -> int:
        """The newest epoch; they begin with 1, so that 0 can mean "none"."""
        return max(self.numbers(), default=1)

    @contextmanager
    def shared(self) -> Iterator[int]:
        """Hold the newest epoch.

        Returns:
            Its number.

        Concurrency: never waits for long; a collection only ever tries for the lock.
        """
        number, descriptor = self._join()
        try:
            yield number
        finally:
            os.close(descriptor)

    def _join(self) -> tuple[int, int]:
        while True:
            number = self.current()
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                descriptor = os.open(self._path(number), flags)
            except FileNotFoundError:
                try:
                    descriptor = private.opened(self._path(number), flags | (os.O_CREAT if self._create else 0))
                except OSError:
                    if self._create and os.access(self._folder, os.W_OK):
                        raise
                    # Nothing can be collected from a store that cannot be written: there is nothing to hold.
                    return number, os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                locks.take(descriptor, fcntl.LOCK_SH, f"epoch {number}", wait_s=self._wait_s)
            except BaseException:
                os.close(descriptor)
                raise
            # Retired or superseded while we waited: the lock would protect nothing.
            if self._is_live(descriptor, number) and self.current() == number:
                return number, descriptor
            os.close(descriptor)

    def _is_live(self, descriptor: int, number: int) -> bool:
        try:
            named = os.stat(self._path(number), follow_symlinks=False)
        except FileNotFoundError:
            return False
        held = os.fstat(descriptor)
        return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)

    def advance(self) -> int:
        """Open the next epoch, durably.

        Returns:
            Its number. Operations that start from now on hold it.
        """
        while True:
            number = self.current() + 1
            try:
                with translating(self._path(number)):
                    os.close(private.opened(self._path(number), os.O_CREAT | os.O_EXCL | os.O_RDONLY))
            except FileExistsError:
                continue
            fsync_dir(self._folder)
            return number

    def retired(self) -> int:
        """Tell up to which epoch nobody holds a lock any more, removing those files.

        Returns:
            The highest number N below the current one such that no operation holds N or an older epoch;
            0 when there is none.
        """
        numbers = self.numbers()
        if not numbers:
            return 0
        done = numbers[0] - 1  # those before it were retired, and their files removed
        for number in numbers[:-1]:
            if not self._retire(number):
                return done
            done = number
        return numbers[-1] - 1

    def would_retire(self) -> int:
        """Tell up to which epoch nobody holds a lock at this moment, the current one included; changes nothing."""
        numbers = self.numbers()
        done = numbers[0] - 1 if numbers else 0
        for number in numbers:
            if self._is_held(number):
                return done
            done = number
        return done

    @contextmanager
    def alone(self) -> Iterator[Path | None]:
        """Hold every epoch exclusively, so that no operation is going on and none can begin.

        Returns:
            None; or, holding nothing, the lock file of an epoch that an operation holds.
        """
        held: list[int] = []
        try:
            for number in self.numbers() or [1]:
                path = self._path(number)
                held.append(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                try:
                    fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    while held:
                        os.close(held.pop())
                    yield path
                    return
            yield None
        finally:
            for descriptor in held:
                os.close(descriptor)

    def _is_held(self, number: int) -> bool:
        try:
            descriptor = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _retire(self, number: int) -> bool:
        try:
            descriptor = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            # Removed while held: whoever waits for it sees that its file has gone, and joins the newest.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(number))
            return True
        finally:
            os.close(descriptor)

    def _path(self, number: int) -> Path:
        return self._folder / f"{_PREFIX}{number}"
