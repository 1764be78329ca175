"""One run of the command: where its store is, opening it once, and how errors reach the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lading.cli.parse import FAILURE, ContractCommand
from lading.errors import InvalidInput, LadingError

if TYPE_CHECKING:
    from lading.store import Store

#: Choices of ``--progress``.
PROGRESS: Final = ("auto", "none")


class StoreNotOpened(Exception):
    """The store could not be opened; scripts expect the reason on standard output."""


@dataclass
class Session:
    """What the global options said; the store is opened when a command first needs it."""

    graph: str | None = None
    run: str | None = None
    driver: str | None = None
    storage_options: list[str] = field(default_factory=list)
    debug: bool = False
    progress: str = "auto"
    _store: Store | None = None

    def take(self, values: Mapping[str, Any]) -> None:
        """Take over global options that were given among a command's own."""
        self.graph = values.get("graph") or self.graph
        self.run = values.get("run_root") or self.run
        self.driver = values.get("driver") or self.driver
        self.storage_options += values.get("storage_options") or ()
        self.debug = bool(values.get("debug")) or self.debug
        self.progress = values.get("progress") or self.progress

    @property
    def store(self) -> Store:
        """The store, opened on first use.

        Raises:
            StoreNotOpened: with the reason.
        """
        if self._store is None:
            self._store = self._open()
        return self._store

    def _open(self) -> Store:
        from lading import config
        from lading.store import Store

        try:
            chosen = config.load(os.environ, os.geteuid())
            driver = "overlay" if self.driver == "overlay2" else self.driver or chosen.settings.driver
            for pair in self.storage_options:
                _refuse_option(pair, driver or "overlay")
            root = Path(self.graph) if self.graph else chosen.root
            run = Path(self.run) if self.run else chosen.run
            return Store.open(root, run=run, driver=driver, settings=chosen.settings)
        except LadingError as error:
            raise StoreNotOpened(str(error)) from error

    def close(self) -> None:
        """Close the store if it was opened."""
        if self._store is not None:
            self._store.close()

    def progress_bar(self, what: str) -> Any:
        """A progress display for work that may take long; shows nothing where nobody looks."""
        from lading.cli.progress import Display

        return Display(what, enabled=self.progress == "auto" and sys.stderr.isatty())


def _refuse_option(pair: str, driver: str) -> None:
    """Refuse a driver option: this version has none.

    Raises:
        InvalidInput: in the words scripts know.
    """
    key, equals, _ = pair.partition("=")
    if not equals:
        raise InvalidInput(f"unable to parse key/value option: {pair}")
    if driver == "vfs":
        raise InvalidInput(f"vfs driver does not support {key.removeprefix('vfs.').removeprefix('.')} options")
    raise InvalidInput(f"overlay: unknown option {key}")


GLOBAL_OPTIONS: Final = (
    (("--graph", "-g", "graph"), {"metavar": "PATH", "help": "Root of persistent storage."}),
    (("--run", "-R", "run_root"), {"metavar": "PATH", "help": "Root of this boot's state."}),
    (("--storage-driver", "-s", "driver"), {"metavar": "NAME", "help": "How layers are shown: overlay or vfs."}),
    (("--storage-opt", "storage_options"), {"multiple": True, "metavar": "KEY=VALUE", "help": "Driver option."}),
    (("--debug", "-D", "debug"), {"is_flag": True, "help": "Show the traceback of an error."}),
    (("--progress", "progress"), {"metavar": "WHEN", "help": "auto, or none: never show progress."}),
)


def global_options(*, hidden: bool) -> list[click.Option]:
    """The options that may stand before the command and among its own."""
    return [click.Option(names, hidden=hidden, **settings) for names, settings in GLOBAL_OPTIONS]


def command(
    name: str, *, count: tuple[int, int | None] = (0, 0), usage: str = "", params: tuple[Callable[..., Any], ...] = ()
) -> Callable[[Callable[..., int | None]], ContractCommand]:
    """Make a command of a function ``f(session, arguments, **options) -> exit status``.

    Args:
        name: the command's name.
        count: least and most number of arguments; None for no limit.
        usage: how its arguments are shown.
        params: click option decorators.
    """

    def wrap(function: Callable[..., int | None]) -> ContractCommand:
        for decorate in reversed(params):
            function = decorate(function)

        @click.pass_context
        def run(ctx: click.Context, /, arguments: tuple[str, ...], **values: Any) -> None:
            session = ctx.find_object(Session)
            assert session is not None
            given = {
                key: values.pop(key) for key in ("graph", "run_root", "driver", "storage_options", "debug", "progress")
            }
            session.take(given)
            check_progress(session.progress)
            ctx.exit(function(session, arguments, **values) or 0)

        callback = update_wrapper(run, function)
        own = list(reversed(getattr(function, "__click_params__", [])))
        return ContractCommand(
            name, callback=callback, params=[*own, *global_options(hidden=True)], count=count,
            help=function.__doc__, options_metavar="[OPTIONS] " + usage if usage else "[OPTIONS]", add_help_option=False,
        )  # fmt: skip

    return wrap


def check_progress(word: str) -> None:
    """Refuse an unknown word for ``--progress``."""
    if word not in PROGRESS:
        raise InvalidInput(f"--progress takes {' or '.join(PROGRESS)}")


def per_argument(arguments: tuple[str, ...], act: Callable[[str], None]) -> dict[str, str]:
    """Run something for each argument and collect the errors' texts; empty ones for success."""
    results: dict[str, str] = {}
    for argument in arguments:
        try:
            act(argument)
            results[argument] = ""
        except LadingError as error:
            results[argument] = str(error)
    return results


def status_of(results: Mapping[str, str]) -> int:
    """The exit status of several results."""
    return FAILURE if any(results.values()) else 0
