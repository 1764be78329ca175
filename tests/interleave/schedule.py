"""A scheduler for threads that work on one store: exactly one runs, and who is next is drawn from a seed.

Threads hand over before and after each transaction, before each look at the catalog, when they take or retire
an epoch, when they publish or delete a pack, and wherever they would sleep to wait for another's lock. Nobody
hands over inside a transaction, so nobody waits for the writer lock.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lading.catalog.database import Catalog
from lading.objects.epoch import Epochs
from lading.objects.folder import FolderBackend

#: Longest wait for one's turn: longer than any operation takes.
PATIENCE_S = 120


class Scheduler:
    """Runs some functions as threads that take turns."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sticks = self._random.choice((0, 0.5, 0.8, 0.95))  # long and short turns find different things
        self._turns: dict[int, threading.Event] = {}  # by thread
        self._ready: list[int] = []
        self._names: dict[int, str] = {}
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self.trace: list[str] = []  #: who did what, in order

    def step(self, what: str) -> None:
        """Hand over, if the calling thread is one of those that take turns."""
        me = threading.get_ident()
        turn = self._turns.get(me)
        if turn is None or not self._ready:
            return
        self.trace.append(f"{self._names[me]}: {what}")
        with self._lock:
            chosen = self._random.choice(self._ready)
            if chosen == me or (what != "wait" and self._random.random() < self._sticks):
                return
            turn.clear()
            self._turns[chosen].set()
        self._wait(turn)

    def _wait(self, turn: threading.Event) -> None:
        if not turn.wait(PATIENCE_S):
            raise TimeoutError("nobody handed over: " + "; ".join(self.trace[-20:]))

    def _body(self, name: str, act: Callable[[], object], begin: threading.Event) -> None:
        me = threading.get_ident()
        turn = threading.Event()
        with self._lock:
            self._turns[me], self._names[me] = turn, name
            self._ready.append(me)
        begin.set()
        try:
            self._wait(turn)
            act()
        except BaseException as error:  # handed to the test
            self._errors.append(error)
        finally:
            with self._lock:
                self._ready.remove(me)
                del self._turns[me]
                if self._ready:
                    self._turns[self._random.choice(self._ready)].set()

    def run(self, acts: dict[str, Callable[[], object]]) -> None:
        """Run functions until all have ended; the first error of any is raised."""
        threads = []
        for name, act in acts.items():
            begin = threading.Event()
            thread = threading.Thread(target=self._body, args=(name, act, begin), name=name, daemon=True)
            thread.start()
            begin.wait()  # one after the other, so that a seed gives one order
            threads.append(thread)
        with self._lock:
            self._turns[self._random.choice(self._ready)].set()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


@contextmanager
def handing_over(current: Callable[[], Scheduler | None]) -> Iterator[None]:
    """Let the code under test hand over to whatever scheduler is current."""

    def step(what: str) -> None:
        scheduler = current()
        if scheduler is not None:
            scheduler.step(what)

    def around(name: str, *, after: bool = True) -> Callable[[Any], Any]:
        def wrap(original: Any) -> Any:
            def replacement(*args: Any, **kwargs: Any) -> Any:
                step(name)
                try:
                    return original(*args, **kwargs)
                finally:
                    if after:
                        step(f"after {name}")

            return replacement

        return wrap

    writing, read = Catalog._writing, Catalog.read

    @contextmanager
    def stepping_writing(self: Catalog, verb: str) -> Iterator[Any]:
        step(verb)
        with writing(self, verb) as conn:
            yield conn
        step(f"after {verb}")

    @contextmanager
    def stepping_read(self: Catalog) -> Iterator[Any]:
        if not self.connection().in_transaction:
            step("read")
        with read(self) as conn:
            yield conn

    sleep = time.sleep

    def stepping_sleep(seconds: float) -> None:
        step("wait")
        sleep(min(seconds, 0.0005))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "_writing", stepping_writing)
        patch.setattr(Catalog, "read", stepping_read)
        patch.setattr(Epochs, "_join", around("join an epoch")(Epochs._join))
        patch.setattr(Epochs, "retired", around("retire")(Epochs.retired))
        patch.setattr(FolderBackend, "publish", around("publish")(FolderBackend.publish))
        patch.setattr(FolderBackend, "delete", around("delete a pack")(FolderBackend.delete))
        patch.setattr(time, "sleep", stepping_sleep)
        yield
