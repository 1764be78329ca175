"""One run of the command: where its store is, opening it once, and how errors reach the user."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final

import click

from lading.cli.entry import Stopped
from lading.cli.parse import FAILURE, ContractCommand
from lading.errors import InvalidInput, LadingError
from lading.values import tamed

if TYPE_CHECKING:
    from lading.flows.rebuild import RebuildReport
    from lading.settings import Chosen
    from lading.store import Store

#: Choices of ``--progress``.
PROGRESS: Final = ("auto", "none")

#: Set for a command that runs inside the namespace that ``--unshare`` asked for.
_UNSHARED: Final = "LADING_UNSHARED"


class StoreNotOpened(Exception):
    """The store could not be opened; scripts expect the reason on standard output."""


@dataclass
class Session:
    """What the global options said; the store is opened when a command first needs it.

    Options before the command and options among its own are kept apart: under the name that scripts of
    ``containers-storage`` use, the first decide whether a configuration file counts.
    """

    compat: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    debug: bool = False
    progress: str = "auto"
    _store: Store | None = None

    def take(self, values: Mapping[str, Any], *, before: bool) -> None:
        """Take over global options."""
        given = self.before if before else self.after
        given.update({key: values[key] for key in _STORE_OPTIONS if values.get(key)})
        self.debug = bool(values.get("debug")) or self.debug
        self.progress = values.get("progress") or self.progress
        check_progress(self.progress)

    @property
    def store(self) -> Store:
        """The store, opened on first use.

        Raises:
            StoreNotOpened: with the reason.
        """
        if self._store is None:
            self._store = self._open()
        return self._store

    def _chosen(self) -> Chosen:
        from lading import settings

        choose = settings.choose_compatible if self.compat else settings.choose
        return choose(os.environ, os.geteuid(), self.before, self.after)

    def _open(self) -> Store:
        from lading.store import Store

        try:
            chosen = self._chosen()
            for warning in chosen.warnings:
                log("warning", warning)
            return Store.open(
                chosen.root, run=chosen.run, driver=chosen.settings.driver, settings=chosen.settings, warn=warn
            )
        except LadingError as error:
            raise StoreNotOpened(str(error)) from error

    def rebuild(self, *, force: bool, progress: Callable[[int, int | None], None]) -> RebuildReport:
        """Make the catalog of the store again, which is not opened before."""
        from lading.store import Store

        chosen = self._chosen()
        return Store.rebuild(
            chosen.root,
            run=chosen.run,
            driver=chosen.settings.driver,
            settings=chosen.settings,
            force=force,
            progress=progress,
        )

    def configuration(self, path: str | None) -> dict[str, Any]:
        """The configuration as a JSON object; that of a file when one is named."""
        from lading import settings

        show = settings.show_compatible if self.compat else settings.show
        return show(os.environ, os.geteuid(), path)

    def reopen_inside(self) -> int | None:
        """Run the whole command again in a user namespace, if that was asked for.

        Returns:
            Its exit status; None when nothing was asked for, or we are inside already.
        """
        if not self.after.get("unshare") or os.environ.get(_UNSHARED):
            return None
        from lading.userns import run

        program = [sys.executable, sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]
        ended = run([*program, *sys.argv[1:]], {**os.environ, _UNSHARED: "1"})
        return ended.status if ended.status >= 0 else 128 - ended.status

    def close(self) -> None:
        """Close the store if it was opened."""
        if self._store is not None:
            self._store.close()

    def progress_bar(self, what: str) -> Any:
        """A progress display for work that may take long; shows nothing where nobody looks."""
        from lading.cli.progress import Display

        return Display(what, enabled=self.progress == "auto" and sys.stderr.isatty())


def warn(sentence: str) -> None:
    """Tell of something that was done otherwise than asked for."""
    sys.stderr.write(f"warning: {sentence}\n")


def log(level: str, message: str) -> None:
    """Write a log line, as scripts know to ignore them."""
    quoted = message.replace("\\", "\\\\").replace('"', '\\"')
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f'time="{now}" level={level} msg="{tamed(quoted)}"\n')


#: Global options that say something about the store.
_STORE_OPTIONS: Final = ("graph", "run_root", "driver", "storage_options", "image_store", "transient", "unshare")

_GLOBAL_NAMES: Final = (*_STORE_OPTIONS, "debug", "progress")

GLOBAL_OPTIONS: Final = (
    (("--graph", "-g", "graph"), {"metavar": "PATH", "help": "Root of persistent storage."}),
    (("--run", "-R", "run_root"), {"metavar": "PATH", "help": "Root of this boot's state."}),
    (("--storage-driver", "-s", "driver"), {"metavar": "NAME", "help": "How layers are shown: overlay or vfs."}),
    (("--storage-opt", "storage_options"), {"multiple": True, "metavar": "KEY=VALUE", "help": "Driver option."}),
    (("--image-store", "image_store"), {"metavar": "PATH", "help": "Root of a separate store for images."}),
    (("--transient-store", "transient"), {"is_flag": True, "help": "Let new containers end with the run root."}),
    (("--unshare", "-U", "unshare"), {"is_flag": True, "help": "Run in a user namespace."}),
    (("--debug", "-D", "debug"), {"is_flag": True, "help": "Show the traceback of an error."}),
    (("--progress", "progress"), {"metavar": "WHEN", "help": "auto, or none: never show progress."}),
)


def global_options(*, hidden: bool) -> list[click.Option]:
    """The options that may stand before the command and among its own."""
    return [click.Option(names, hidden=hidden, **settings) for names, settings in GLOBAL_OPTIONS]


def command(
    name: str,
    *,
    count: tuple[int, int | None] = (0, 0),
    usage: str = "",
    params: tuple[Callable[..., Any], ...] = (),
    opens: bool = True,
) -> Callable[[Callable[..., int | None]], ContractCommand]:
    """Make a command of a function ``f(session, arguments, **options) -> exit status``.

    Args:
        name: the command's name.
        count: least and most number of arguments; None for no limit.
        usage: how its arguments are shown.
        params: click option decorators.
        opens: whether a store that cannot be opened makes it fail before it begins, where scripts expect that.
    """

    def wrap(function: Callable[..., int | None]) -> ContractCommand:
        for decorate in reversed(params):
            function = decorate(function)

        @click.pass_context
        def run(ctx: click.Context, /, arguments: tuple[str, ...], **values: Any) -> None:
            session = ctx.find_object(Session)
            assert session is not None
            session.take({key: values.pop(key) for key in _GLOBAL_NAMES}, before=False)
            status = session.reopen_inside()
            if status is not None:
                ctx.exit(status)
            if session.compat and opens:
                _ = session.store  # scripts expect a store that cannot be opened to fail every command
            try:
                status = function(session, arguments, **values)
            except KeyboardInterrupt as error:  # what SQLite makes of a signal; click would print an empty line for it
                raise Stopped(signal.SIGINT) from error
            ctx.exit(status or 0)

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
