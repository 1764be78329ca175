"""Commands about the store as a whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import lading
from lading.cli import output
from lading.cli.parse import FAILURE, json_option
from lading.cli.session import Session, command
from lading.errors import LadingError


@command("version", params=(json_option,))
def version(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """Print the version."""
    if as_json:
        output.emit_json([["Version", lading.__version__]])
    else:
        output.line(f"Version: {lading.__version__}", err=True)


@command("status", params=(json_option,))
def status(session: Session, arguments: Sequence[str], as_json: bool) -> None:
    """Describe the store's roots and driver."""
    pairs = session.store.status()
    if as_json:
        output.emit_json([list(pair) for pair in pairs])
        return
    for key, value in pairs:
        output.line(f"{key}: {output.shown(value)}", err=True)


@command("wipe", params=(json_option,))
def wipe(session: Session, arguments: Sequence[str], as_json: bool) -> int:
    """Delete all containers, images and layers."""
    try:
        session.store.wipe()
    except LadingError as error:
        if as_json:
            output.emit_json({})
        else:
            output.line(f"wipe: {error}", err=True)
        return FAILURE
    if as_json:
        output.emit_json("")
    return 0


@command(
    "shutdown",
    params=(click.option("--force", "-f", is_flag=True, help="Unmount everything first."), json_option),
)
def shutdown(session: Session, arguments: Sequence[str], force: bool, as_json: bool) -> int:
    """Release what the store holds in the kernel."""
    try:
        session.store.shutdown(force=force)
    except LadingError as error:
        if as_json:
            output.emit_json({})
        else:
            output.line(f"shutdown: {error}", err=True)
        return FAILURE
    if as_json:
        output.emit_json("")
    return 0


@command(
    "gc",
    params=(
        click.option("--dry-run", "-n", "dry_run", is_flag=True, help="Only tell what would be freed."),
        json_option,
    ),
)
def gc(session: Session, arguments: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Collect garbage: bytes that no record needs any more."""
    report = session.store.gc(dry_run=dry_run)
    if dry_run:
        if as_json:
            output.emit_json(report.as_dict())
        else:
            for text in report.lines():
                output.line(text)
        return 0
    if as_json:
        output.emit_json("")
    elif sys.stderr.isatty() and session.progress == "auto":
        for text in report.lines():
            output.line(text, err=True)
    for warning in report.warnings:
        output.line(warning, err=True)
    return FAILURE if report.warnings else 0


@command(
    "check",
    params=(
        click.option("--content", is_flag=True, help="Read and hash every stored byte."),
        click.option("--quick", "-q", is_flag=True, help="Look at the catalog and the presence of packs only."),
        json_option,
    ),
)
def check(session: Session, arguments: Sequence[str], content: bool, quick: bool, as_json: bool) -> int:
    """Look for damage; silent when there is none."""
    report = session.store.check(content=content and not quick)
    groups: dict[str, dict[str, list[str]]] = {}
    for finding in report.findings:
        groups.setdefault(finding.kind, {}).setdefault(finding.id, []).append(finding.message)
    if as_json:
        kinds = {"Layers": "layer", "ROLayers": "", "Images": "image", "ROImages": "", "Containers": "container"}
        output.emit_json(
            {
                key: {name: [{} for _ in found] for name, found in sorted(groups.get(kind, {}).items())}
                for key, kind in kinds.items()
            }
        )
    else:
        for kind in ("store", "layer", "image", "container"):
            for name, messages in sorted(groups.get(kind, {}).items()):
                output.line(f"{kind} {output.shown(name)}:")
                for message in messages:
                    output.line(f" {message}")
    if session.progress == "auto" and sys.stderr.isatty():
        for name, seconds, looked_at in report.depths:
            output.line(f"{name}: {looked_at}, {seconds:.2f} s", err=True)
    if report.findings:
        counts = {kind: len(groups.get(kind, {})) for kind in ("layer", "image", "container")}
        output.line(
            f"{counts['layer']} layer errors, 0 read-only layer errors, {counts['image']} image errors, "
            f"0 read-only image errors, {counts['container']} container errors",
            err=True,
        )
    return FAILURE if report.findings or report.incomplete else 0
