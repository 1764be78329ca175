"""Progress on a terminal, for work that takes longer than a second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Work shorter than this shows nothing.
PATIENCE_S: Final = 1.0

#: At most so often the display is told anything.
INTERVAL_S: Final = 0.1


class Display:
    """A callable that flows report to; it loads the display's library only when it is needed."""

    def __init__(self, what: str, *, enabled: bool) -> None:
        self._what = what
        self._enabled = enabled
        self._started = self._told = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int | None) -> None:
        """Report bytes or items done."""
        now = time.monotonic()
        if not self._enabled or now - self._started < PATIENCE_S or now - self._told < INTERVAL_S:
            return
        self._told = now
        if self._progress is None:
            self._start()
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeElapsedColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task(self._what, total=None)
        self._progress.start()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
