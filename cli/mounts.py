"""Commands that show trees."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lading.cli import output
from lading.cli.parse import FAILURE, json_option
from lading.cli.session import Session, command
from lading.errors import LadingError


@command(
    "mount",
    count=(1, None),
    usage="LAYER|CONTAINER...",
    params=(
        click.option("--read-only", "--ro", "-r", "read_only", is_flag=True, help="Mount images, read-only."),
        click.option("--label", "-l", default="", metavar="TEXT", help="SELinux mount label."),
        click.option("--flatten", is_flag=True, help="Show the layers below as one view."),
        click.option("--opt", "-o", "options", default=None, metavar="TEXT", help="Accepted for scripts, ignored."),
        json_option,
    ),
)
def mount(
    session: Session,
    arguments: Sequence[str],
    read_only: bool,
    label: str,
    flatten: bool,
    options: str | None,
    as_json: bool,
) -> int:
    """Mount layers or containers and print where; each mount needs one unmount."""
    store = session.store
    act = store.images.mount if read_only else store.mount
    results = []
    for argument in arguments:
        try:
            path, error = str(act(argument, label=label, flatten=flatten)), ""
        except LadingError as failure:
            path, error = "", str(failure)
        results.append({"id": argument, "mountpoint": path, "error": error})
        if not as_json:
            output.line(path)
            if error:
                output.line(f"{error} while mounting {output.shown(argument)}", err=True)
    if as_json:
        output.emit_json(results)
    return FAILURE if any(result["error"] for result in results) else 0


@command(
    "unmount",
    count=(1, None),
    usage="LAYER|CONTAINER|IMAGE...",
    params=(click.option("--force", "-f", is_flag=True, help="Give all mounts back at once."), json_option),
)
def unmount(session: Session, arguments: Sequence[str], force: bool, as_json: bool) -> int:
    """Give mounts back."""
    store = session.store
    results = []
    for argument in arguments:
        error = ""
        try:
            is_image = not store.layers.exists(argument) and not store.containers.exists(argument)
            if store.unmount(argument, force=force) and not is_image:
                output.line(f"{output.shown(argument)} mountpoint unmounted")
        except LadingError as failure:
            error = str(failure)
            if not as_json:
                output.line(f"{error} while unmounting {output.shown(argument)}", err=True)
        results.append({"id": argument, "error": error})
    if as_json:
        output.emit_json(results)
    return FAILURE if any(result["error"] for result in results) else 0


@command("mounted", count=(1, None), usage="LAYER|CONTAINER...", params=(json_option,))
def mounted(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """Tell which layers or containers are mounted."""
    results = []
    for argument in arguments:
        error = ""
        try:
            if session.store.mounted(argument):
                output.line(f"{output.shown(argument)} mounted")
        except LadingError as failure:
            error = str(failure)
            if not as_json:
                output.line(f"{error} checking if {output.shown(argument)} is mounted", err=True)
        results.append({"id": argument, "error": error})
    if as_json:
        output.emit_json(results)
    return FAILURE if any(result["error"] for result in results) else 0


@command(
    "checkout",
    count=(2, 2),
    usage="RECORD DIRECTORY",
    params=(
        click.option("--copy", "way", flag_value="copy", help="Write every file."),
        click.option("--reflink", "way", flag_value="reflink", help="Share blocks with the cache's files."),
        click.option("--hardlink", "way", flag_value="hardlink", help="Mount the cache's files there, read-only."),
    ),
)
def checkout(session: Session, arguments: Sequence[str], way: str | None) -> None:
    """Write the whole tree of a layer, image or container into a new directory."""
    with session.progress_bar("checkout") as progress:
        report = session.store.checkout(arguments[0], arguments[1], way=way or "auto", progress=progress)
    for warning in report.warnings:
        output.line(f"warning: {warning}", err=True)
    output.line(str(report.path))
