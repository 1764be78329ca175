"""Real processes that work on one store, driven step by step.

A server process that never opens a store forks the workers; each opens the store itself. A worker runs one function
at a time, given the store and a line to the test: ``line.tell(words)`` and ``line.wait()`` order what several do.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from lading import Store
from lading.config import Settings

#: Longest wait for a worker, in seconds: only a deadlock takes so long.
PATIENCE_S = 60.0

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["lading", "tests.concurrency.processes", "lading.flows.ingest", "lading.flows.mounting"]
)


class Line:
    """A worker's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tell(self, words: object) -> None:
        """Say something to the test, which does not wait for it."""
        self._connection.send(("said", words))

    def wait(self) -> object:
        """Wait until the test says to go on."""
        return self._connection.recv()

    def pause(self, words: object) -> None:
        """Say where one is, and wait there."""
        self.tell(words)
        self.wait()


def _serve(connection: Connection, root: Path, run: Path, settings: dict[str, Any]) -> None:
    line = Line(connection)
    with Store.open(root, run=run, settings=Settings(**settings)) as store:
        connection.send(("done", os.getpid()))
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            function, args = job
            try:
                answer: tuple[str, Any] = ("done", function(store, line, *args))
            except (EOFError, ConnectionError):  # the test is over
                os._exit(1)
            except BaseException as error:
                answer = ("failed", (type(error).__name__, str(error), traceback.format_exc()))
            connection.send(answer)


class Failed(Exception):
    """What a worker's function raised: the kind of error, and its words."""

    def __init__(self, kind: str, words: str, trace: str) -> None:
        super().__init__(f"{kind}: {words}\n{trace}")
        self.kind = kind
        self.words = words


class Worker:
    """A process with the store open."""

    def __init__(self, root: Path, run: Path, **settings: Any) -> None:
        self._connection, other = _server.Pipe()
        self._process = _server.Process(target=_serve, args=(other, root, run, settings), daemon=True)
        self._process.start()
        other.close()
        self.pid = int(self.result())

    def start(self, function: Callable[..., Any], *args: Any) -> Worker:
        """Have a function of a module's run, without waiting for it."""
        self._connection.send((function, args))
        return self

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have a function run; return what it does."""
        return self.start(function, *args).result()

    def go_on(self, words: object = None) -> None:
        """Let the function go on from where it waits."""
        self._connection.send(words)

    def heard(self) -> object:
        """Wait until the function says something."""
        kind, words = self._next()
        assert kind == "said", (kind, words)
        return words

    def result(self) -> Any:
        """Wait until the function has ended, passing over what it says."""
        while True:
            kind, words = self._next()
            if kind == "done":
                return words
            if kind == "failed":
                raise Failed(*words)

    def outcome(self) -> str:
        """Wait until the function has ended: "done", or the kind of error."""
        try:
            self.result()
        except Failed as error:
            return error.kind
        return "done"

    def _next(self) -> tuple[str, Any]:
        if not self._connection.poll(PATIENCE_S):
            raise AssertionError("a worker does not answer")
        kind, words = self._connection.recv()
        return str(kind), words

    @property
    def silent(self) -> bool:
        """Whether nothing was heard that was not asked for yet."""
        return not self._connection.poll(0)

    def kill(self) -> None:
        """Kill the process where it is."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    def freeze(self) -> None:
        """Stop the process where it is; back when it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        while state_of(self.pid) != "T":
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
        self._process.join(5)
        if self._process.is_alive():
            self.kill()


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Crew:
    """Workers of one test, ended with it."""

    def __init__(self, root: Path, run: Path) -> None:
        self.root = root
        self.run = run
        self._workers: list[Worker] = []

    def hire(self, **settings: Any) -> Worker:
        """Start one; settings as in ``Settings``."""
        worker = Worker(self.root, self.run, **settings)
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        """End all."""
        for worker in self._workers:
            worker.close()


@contextmanager
def stopping_at(line: Line, *targets: str, after: bool = False, words: str = "there") -> Iterator[None]:
    """Stop where functions are first called: say so, and wait for the test.

    Args:
        line: the worker's.
        targets: ``module:function`` or ``module:Class.method``, patched where they are looked up; the first one reached
            stops.
        after: once it has returned, rather than before.
        words: what is said.
    """
    stopped: list[object] = []
    patch = pytest.MonkeyPatch()
    for target in targets:
        module, _, path = target.partition(":")
        owner: Any = importlib.import_module(module)
        *steps, name = path.split(".")
        for step in steps:
            owner = getattr(owner, step)
        patch.setattr(owner, name, _stopping(getattr(owner, name), line, stopped, after, words))
    try:
        yield
    finally:
        patch.undo()


def _stopping(real: Any, line: Line, stopped: list[object], after: bool, words: str) -> Any:
    def replaced(*args: Any, **kwargs: Any) -> Any:
        first = not stopped
        if first and not after:
            stopped.append(True)
            line.pause(words)
        result = real(*args, **kwargs)
        if first and after:
            stopped.append(True)
            line.pause(words)
        return result

    return replaced
