"""The command ``lading``: its table of commands, and the frame in which each one runs."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from typing import Any, Final

import click

from lading.cli.entry import COMPAT, received
from lading.cli.parse import FAILURE, OptionError, normalise
from lading.cli.session import Session, StoreNotOpened, global_options, log
from lading.errors import LadingError, Untidy
from lading.values import printable, tamed

#: Names that mean :data:`COMPAT`.
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


def run(words: list[str], program: str = "lading") -> int:
    """Run the command with these words.

    Args:
        words: what stands behind the program's name.
        program: "lading", or a name of :data:`COMPAT_NAMES`.

    Returns:
        The exit status.

    Raises:
        Stopped: a signal came; or whatever the interpreter made of it, as in a class that is being made.
    """
    _write_utf8()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Untidy)
        warnings.showwarning = _show_warning
        status = _run(words, program)
    with contextlib.suppress(OSError):  # what came before an error
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _run(words: list[str], program: str) -> int:
    """Run the command; every error becomes a line and a status."""
    try:
        status = cli.main(words, prog_name=COMPAT if program in COMPAT_NAMES else "lading", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except Exception as error:
        if received:
            raise  # the signal has its own line
        return _failed(error, words)


def _failed(error: Exception, words: list[str]) -> int:
    """Tell of an error. What nobody has foreseen is a mistake of this program's own, and goes on."""
    match error:
        case LadingError():
            return _fail(str(error), words)
        case StoreNotOpened():
            return _fail(f"error initializing: {error}", words, to_stdout=True)
        case click.ClickException():
            return _fail(error.format_message(), words)
        case BrokenPipeError():
            _drop_stdout()
            return FAILURE
        case OSError():
            return _fail(_os_words(error), words)
    raise error


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
