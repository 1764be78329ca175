"""The command ``lading``: its table of commands, and the frame in which each one runs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from lading.cli.parse import FAILURE, OptionError, normalise
from lading.cli.session import Session, Stopped, StoreNotOpened, global_options, log
from lading.errors import LadingError, Untidy
from lading.values import printable, tamed

#: The name under which scripts of ``containers-storage`` find what they know, and others that mean the same.
COMPAT: Final = "lading-compat"
COMPAT_NAMES: Final = frozenset({COMPAT, "containers-storage"})

#: Command, and the module and attribute that hold it. Modules are loaded for the command asked for alone.
COMMANDS: Final[dict[str, str]] = {
    "add-names": "names:add_names",
    "applydiff": "diffs:applydiff",
    "applydiff-using-staging-dir": "diffs:applydiff_using_staging_dir",
    "changes": "diffs:changes",
    "check": "upkeep:check",
    "cache": "cache:cache",
    "catalog": "catalog:catalog",
    "checkout": "mounts:checkout",
    "clone": "containers:clone",
    "commit": "containers:commit",
    "config": "upkeep:config",
    "container": "containers:container",
    "container-parent-owners": "driver:container_parent_owners",
    "containers": "containers:containers",
    "copy": "diffs:copy",
    "create-container": "containers:create_container",
    "create-image": "images:create_image",
    "create-layer": "layers:create_layer",
    "create-storage-layer": "driver:create_storage_layer",
    "dedup": "upkeep:dedup",
    "delete": "names:delete",
    "delete-container": "containers:delete_container",
    "delete-image": "images:delete_image",
    "delete-layer": "layers:delete_layer",
    "diff": "diffs:diff",
    "diffsize": "diffs:diffsize",
    "exists": "names:exists",
    "gc": "upkeep:gc",
    "get-container-data": "data:get_container_data",
    "get-container-data-digest": "data:get_container_data_digest",
    "get-container-data-size": "data:get_container_data_size",
    "get-container-dir": "containers:get_container_dir",
    "get-container-run-dir": "containers:get_container_run_dir",
    "get-image-data": "data:get_image_data",
    "get-image-data-digest": "data:get_image_data_digest",
    "get-image-data-size": "data:get_image_data_size",
    "get-image-dir": "images:get_image_dir",
    "get-image-run-dir": "images:get_image_run_dir",
    "get-layer-data": "data:get_layer_data",
    "get-names": "names:get_names",
    "image": "images:image",
    "images": "images:images",
    "images-by-digest": "images:images_by_digest",
    "import": "ours:import_",
    "import-layer": "layers:import_layer",
    "layer": "layers:layer",
    "layer-parent-owners": "driver:layer_parent_owners",
    "layers": "layers:layers",
    "list-container-data": "data:list_container_data",
    "list-image-data": "data:list_image_data",
    "list-layer-data": "data:list_layer_data",
    "metadata": "names:metadata",
    "mount": "mounts:mount",
    "mounted": "mounts:mounted",
    "remove-names": "names:remove_names",
    "seal": "ours:seal",
    "set-container-data": "data:set_container_data",
    "set-image-data": "data:set_image_data",
    "set-layer-data": "data:set_layer_data",
    "set-metadata": "names:set_metadata",
    "set-names": "names:set_names",
    "shutdown": "upkeep:shutdown",
    "sql": "ours:sql",
    "status": "upkeep:status",
    "storage-layers": "driver:storage_layers",
    "balance": "ours:balance",
    "unmount": "mounts:unmount",
    "unshare": "upkeep:unshare",
    "version": "upkeep:version",
    "wipe": "upkeep:wipe",
}

#: Other spellings.
ALIASES: Final[dict[str, str]] = {
    "apply-diff": "applydiff",
    "diff-size": "diffsize",
    "umount": "unmount",
    **{
        name.replace("-", ""): name
        for name in COMMANDS
        if name.startswith(("add-", "create-", "delete-", "get-", "import-", "list-", "remove-", "set-"))
        and name != "create-storage-layer"
    },
}

#: What ``lading --help`` shows, by what people want to do.
SECTIONS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Images in, trees out", ("import", "mount", "unmount", "mounted", "checkout", "cache")),
    ("Layers", ("create-layer", "import-layer", "applydiff", "diff", "changes", "diffsize", "layers", "layer", "copy", "seal", "delete-layer", "applydiff-using-staging-dir", "layer-parent-owners", "storage-layers", "create-storage-layer")),
    ("Images", ("create-image", "images", "image", "images-by-digest", "get-image-dir", "get-image-run-dir", "delete-image")),
    ("Containers", ("create-container", "containers", "container", "get-container-dir", "get-container-run-dir", "container-parent-owners", "commit", "clone", "delete-container")),
    ("Names and metadata", ("exists", "get-names", "add-names", "set-names", "remove-names", "metadata", "set-metadata", "delete")),
    ("Data", tuple(name for name in COMMANDS if name.endswith("-data") or "-data-" in name)),
    ("Questions and upkeep", ("sql", "balance", "status", "version", "config", "check", "gc", "catalog", "dedup", "shutdown", "wipe", "unshare")),
)  # fmt: skip


class Lading(click.Group):
    """The group: commands are loaded when asked for, options end at the command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command by its name or another spelling."""
        place = COMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(f"lading.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the commands by section, a line each."""
        for title, names in SECTIONS:
            with formatter.section(title):
                rows = []
                for name in names:
                    command = self.get_command(ctx, name)
                    assert command is not None
                    rows.append((name, command.get_short_help_str(80)))
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command."""
        if args and args[0] in ("--help", "-h", "-help"):
            click.echo(self.get_help(ctx))
            if args[0] != "--help":
                click.echo("flag: help requested while parsing arguments (1)")
                click.echo(self.get_help(ctx))
                ctx.exit(FAILURE)
            ctx.exit(0)
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        try:
            flags, rest = normalise(args, options)
        except OptionError as error:
            words = tamed(str(error))
            click.echo(f"{words}\nSee '{ctx.info_name} --help'.", err=True)
            click.echo(f"{words} while parsing arguments (1)\n{self.get_help(ctx)}")
            ctx.exit(FAILURE)
        if not rest:
            click.echo(self.get_help(ctx))
            ctx.exit(FAILURE)
        if self.get_command(ctx, rest[0]) is None:
            click.echo(f"{printable(rest[0])}: unrecognized command.")
            ctx.exit(FAILURE)
        return super().parse_args(ctx, [*flags, *rest])


def _start(ctx: click.Context, **values: Any) -> None:
    session = Session(compat=ctx.info_name == COMPAT)
    session.take(values, before=True)
    ctx.obj = session
    ctx.call_on_close(session.close)


cli = Lading(
    "lading",
    callback=click.pass_context(_start),
    params=list(global_options(hidden=False)),
    help="Store the layers, images and containers of container engines.",
    add_help_option=False,
    context_settings={"help_option_names": ["--help"]},
)


#: Signals that came, for what they raised may have been swallowed on the way: by a callback, or an error while tidying up.
_received: list[int] = []

#: What is said of a signal.
_STOPPED_BY: Final = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}

#: After this many seconds a signal that was swallowed is raised once more.
_ASK_AGAIN_S: Final = 0.01


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise Stopped(number)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Take what was raised where nothing can be: a signal asks again a moment later, and what follows one is no news."""
    stopped = unraisable.exc_value
    if isinstance(stopped, Stopped):
        signal.signal(signal.SIGALRM, lambda _, frame: _stop(stopped.number, frame))
        signal.setitimer(signal.ITIMER_REAL, _ASK_AGAIN_S)
    elif not _received:
        sys.__unraisablehook__(unraisable)


def compat() -> NoReturn:
    """Run the command as a stand-in for ``containers-storage``: its configuration files and its settings' rules."""
    main(program=COMPAT)


def main(arguments: Sequence[str] | None = None, program: str = "") -> NoReturn:
    """Run the command and exit with its status: 0, 1 for any failure, 125 for a wrong option.

    Args:
        arguments: the words after the program's name; None for the process's own.
        program: the name to run under; empty for the one it was called by.
    """
    for number in _STOPPED_BY:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup, or behind a shell's "&"
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    # One command and out: cycles are few and small beside what a search for them costs among many rows.
    gc.set_threshold(200_000, 50, 50)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = run(words, program or os.path.basename(sys.argv[0]))
    except Stopped:  # it came just before, or when the answer was already given
        status = _stopped(words)
    with contextlib.suppress(OSError, Stopped):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # everything is closed and written: taking a large heap apart would only cost time


def run(words: list[str], program: str = "lading") -> int:
    """Run the command with these words.

    Args:
        words: what stands behind the program's name.
        program: "lading", or a name of :data:`COMPAT_NAMES`.

    Returns:
        The exit status.
    """
    _write_utf8()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Untidy)
        warnings.showwarning = _show_warning
        return _run(words, program)


def _run(words: list[str], program: str) -> int:
    """Run the command; every error becomes a line and a status."""
    try:
        status = cli.main(words, prog_name=COMPAT if program in COMPAT_NAMES else "lading", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except Stopped:
        return _stopped(words)
    except (LadingError, StoreNotOpened) as error:
        if _received:
            return _stopped(words)
        if isinstance(error, LadingError):
            return _fail(str(error), words)
        return _fail(f"error initializing: {error}", words, to_stdout=True)
    except click.ClickException as error:
        return _fail(error.format_message(), words)
    except BrokenPipeError:
        _drop_stdout()
        return FAILURE
    except OSError as error:
        return _stopped(words) if _received else _fail(_os_words(error), words)
    except Exception:
        if not _received:
            raise  # a mistake of this program's own
        return _stopped(words)  # the interpreter wraps what a signal raises in places, as in a class that is being made


def _stopped(words: list[str]) -> int:
    number = _received[0] if _received else signal.SIGINT
    _fail(_STOPPED_BY[signal.Signals(number)], words)
    return 128 + number


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show what could not be tidied up as a log line, which scripts know to ignore."""
    if issubclass(category, Untidy):
        log("warning", str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(message: str, words: list[str], *, to_stdout: bool = False) -> int:
    """Print one line; with ``--debug`` the traceback before it."""
    if "--debug" in words or "-D" in words:
        sys.stderr.write(tamed(traceback.format_exc(), keep="\t\n"))
    stream = sys.stdout if to_stdout else sys.stderr
    try:
        stream.write(tamed(message) + "\n")
        stream.flush()
    except OSError:  # a closed pipe, or a terminal that has gone
        _drop_stdout()
    return FAILURE


def _os_words(error: OSError) -> str:
    """What the operating system refused, with the path it was about."""
    what = f"{printable(os.fsencode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
    return f"{what}{(error.strerror or str(error)).lower()}"


def _write_utf8() -> None:
    """Names are UTF-8 whatever the locale says; a script's bytes must not depend on it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace")


def _drop_stdout() -> None:
    """Keep the interpreter from writing to a closed pipe once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
